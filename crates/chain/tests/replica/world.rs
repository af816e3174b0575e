//! Replicas, their stores, a manager, clients, and the bag of what is under way between them.

use crate::history::{self, Seen};
use kiln_chain::replica::{Action, Event, ReadRule, Remembered, Replica, Ticket, Versions, View};
use kiln_types::*;
use std::collections::{BTreeMap, HashMap};

const REPLICAS: usize = 3;

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) clients: usize,
    pub(crate) chunks: u64,
    pub(crate) operations: usize,
    /// Per cent of messages that are lost.
    pub(crate) loss: u8,
    /// Quick restarts.
    pub(crate) kills: usize,
    /// Replicas that die for good (never the last one).
    pub(crate) deaths: usize,
    /// Per cent of prepares that find the disk full.
    pub(crate) full: u8,
    pub(crate) store_forgets: bool,
    pub(crate) dirty_reads: bool,
}

impl Options {
    pub(crate) fn swarm(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x5eed);
        Self {
            clients: random.usize(1..5),
            chunks: random.u64(1..4),
            operations: random.usize(5..40),
            loss: *random.choice(&[0, 2, 10, 30]).unwrap(),
            kills: random.usize(0..6),
            deaths: random.usize(0..3),
            full: *random.choice(&[0, 0, 5]).unwrap(),
            store_forgets: false,
            dirty_reads: false,
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Stored {
    committed: (ChunkVersion, u64),
    /// What was committed before, as long as the commit mark is not durable.
    undo: Option<(ChunkVersion, u64)>,
    pending: Option<(ChunkVersion, u64)>,
    pending_retry: Option<RetryKey>,
}

#[derive(Clone, Default)]
struct Store {
    chunks: BTreeMap<ChunkId, Stored>,
    retries: BTreeMap<(ClientId, ChannelId), Remembered>,
    version_max: ChunkVersion,
}

struct Node {
    target: TargetId,
    replica: Replica,
    store: Store,
    life: u64,
    /// Will not come back.
    dead: bool,
    /// Not running now.
    down: bool,
    tickets: HashMap<Ticket, Caller>,
    payloads: HashMap<Ticket, (u64, Option<RetryKey>)>,
}

#[derive(Clone, Copy, Debug)]
enum Caller {
    Client(usize, u64),
    /// (node, life, chunk, version, attempt) of the predecessor.
    Node(usize, u64, ChunkId, ChunkVersion, u32),
}

/// Something under way. The first numbers are node and life: a restart loses what it had under way.
#[derive(Clone, Debug)]
enum Flight {
    Local(usize, u64, Action),
    /// `life` is the receiver's: a connection does not outlive it.
    Forward {
        to: usize,
        life: u64,
        from: Caller,
        event: Event,
        value: u64,
        retry: Option<RetryKey>,
    },
    Reply {
        to: Caller,
        result: Result<ChunkVersion>,
    },
    View(usize),
    ClientView(usize),
    Write {
        node: usize,
        client: usize,
        attempt: u64,
    },
    Read {
        node: usize,
        client: usize,
        attempt: u64,
    },
    AskCommitted {
        tail: usize,
        node: usize,
        life: u64,
        client: usize,
        attempt: u64,
    },
    Committed {
        node: usize,
        life: u64,
        client: usize,
        attempt: u64,
        version: ChunkVersion,
    },
    ReadReply {
        client: usize,
        attempt: u64,
        result: Option<(ChunkVersion, u64)>,
    },
    Restart(usize),
}

struct Client {
    chain: Chain,
    attempt: u64,
    sequence: u64,
    operation: Option<Operation>,
    left: usize,
}

#[derive(Clone, Debug)]
struct Operation {
    chunk: ChunkId,
    value: u64,
    started: u64,
    is_write: bool,
}

pub(crate) struct World {
    options: Options,
    random: fastrand::Rng,
    chain: Chain,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    flights: Vec<Flight>,
    history: Vec<Seen>,
    now: u64,
    values: u64,
    tickets: u64,
    calm: bool,
    trace: u64,
}

impl World {
    pub(crate) fn new(seed: u64, options: Options) -> Self {
        let members = (0..REPLICAS)
            .map(|i| Member { target: TargetId(i as u64), state: PublicState::Serving })
            .collect();
        let chain = Chain { id: ChainId(1), version: ChainVersion(1), members, min_serving: 1 };
        let nodes = (0..REPLICAS).map(|i| Node::new(TargetId(i as u64), Store::default(), 0));
        let clients = (0..options.clients).map(|_| Client {
            chain: chain.clone(),
            attempt: 0,
            sequence: 0,
            operation: None,
            left: options.operations,
        });
        let (nodes, clients) = (nodes.collect(), clients.collect());
        let flights = (0..REPLICAS).map(Flight::View).collect();
        Self {
            random: fastrand::Rng::with_seed(seed),
            options,
            chain,
            nodes,
            clients,
            flights,
            history: Vec::new(),
            now: 0,
            values: 0,
            tickets: 0,
            calm: false,
            trace: seed,
        }
    }

    pub(crate) fn trace(&self) -> u64 {
        self.trace
    }

    pub(crate) fn run(&mut self) {
        let mut steps = 0;
        while self.clients.iter().any(|client| client.left > 0 || client.operation.is_some()) {
            steps += 1;
            self.calm = steps > 20_000;
            assert!(steps < 400_000, "no progress: {:?}", self.flights);
            self.step();
        }
    }

    /// Lets everything come to rest, without further faults.
    pub(crate) fn settle(&mut self) {
        self.calm = true;
        for _ in 0..100_000 {
            if self.flights.is_empty() {
                return;
            }
            self.deliver();
        }
        panic!("never comes to rest: {:?}", self.flights);
    }

    pub(crate) fn check(&self) {
        history::check(&self.history);
        let serving: Vec<_> = self.chain.serving().map(|t| &self.nodes[t.0 as usize]).collect();
        for node in &serving {
            assert_eq!(node.replica.works(), 0, "target {} still works", node.target);
            for (chunk, stored) in &node.store.chunks {
                assert_eq!(stored.pending, None, "{chunk} of {} is pending", node.target);
                let head = serving[0].store.chunks.get(chunk).map(|s| s.committed);
                assert_eq!(head, Some(stored.committed), "{chunk} of {} differs", node.target);
            }
        }
    }

    fn step(&mut self) {
        let strike = !self.calm && self.random.u8(..100) < 2;
        if strike && self.options.kills > 0 {
            self.options.kills -= 1;
            let node = self.random.usize(..REPLICAS);
            if !self.nodes[node].down {
                self.kill(node);
                self.flights.push(Flight::Restart(node));
                return;
            }
        }
        if strike && self.options.deaths > 0 && self.chain.serving().count() > 1 {
            self.options.deaths -= 1;
            let node = self.random.usize(..REPLICAS);
            if self.chain.state_of(TargetId(node as u64)) == Some(PublicState::Serving) {
                self.bury(node);
                return;
            }
        }
        let client = self.random.usize(..self.clients.len());
        if self.clients[client].operation.is_none() && self.clients[client].left > 0 {
            return self.start_operation(client);
        }
        self.deliver();
    }

    fn kill(&mut self, node: usize) {
        let dying = &mut self.nodes[node];
        let mut store = std::mem::take(&mut dying.store);
        for stored in store.chunks.values_mut() {
            if let Some(undo) = stored.undo.take().filter(|_| self.random.bool()) {
                stored.pending = Some(stored.committed);
                stored.committed = undo;
            }
            if self.options.store_forgets {
                stored.pending = None;
            }
        }
        let mut waiting: Vec<_> = dying.tickets.drain().collect();
        waiting.sort_by_key(|(ticket, _)| *ticket);
        self.flights.extend(
            waiting.into_iter().map(|(_, to)| Flight::Reply {
                to,
                result: Err(Error::from(Code::ConnectionLost)),
            }),
        );
        let (target, life, dead) = (dying.target, dying.life + 1, dying.dead);
        self.nodes[node] = Node::new(target, store, life);
        self.nodes[node].dead = dead;
        self.nodes[node].down = true;
    }

    fn bury(&mut self, node: usize) {
        self.nodes[node].dead = true;
        self.kill(node);
        for member in &mut self.chain.members {
            if member.target == TargetId(node as u64) {
                member.state = PublicState::Offline;
            }
        }
        self.chain.members.sort_by_key(|member| member.state);
        self.chain.version = self.chain.version.next();
        self.flights.extend((0..REPLICAS).map(Flight::View));
        self.flights.extend((0..self.clients.len()).map(Flight::ClientView));
    }

    fn start_operation(&mut self, client: usize) {
        self.now += 1;
        self.values += 1;
        let is_write = self.random.bool();
        let chunk = ChunkId::file(TreeId(0), InodeId(1), self.random.u64(..self.options.chunks));
        let state = &mut self.clients[client];
        state.left -= 1;
        state.sequence += u64::from(is_write);
        let value = if is_write { self.values } else { 0 };
        state.operation = Some(Operation { chunk, value, started: self.now, is_write });
        self.send(client);
    }

    fn send(&mut self, client: usize) {
        let state = &mut self.clients[client];
        state.attempt += 1;
        let (attempt, chain) = (state.attempt, &state.chain);
        let is_write = state.operation.as_ref().is_some_and(|operation| operation.is_write);
        let serving: Vec<_> = chain.serving().collect();
        let flight = if is_write {
            Flight::Write { node: serving[0].0 as usize, client, attempt }
        } else {
            let node = self.random.choice(&serving).unwrap().0 as usize;
            Flight::Read { node, client, attempt }
        };
        self.flights.push(flight);
    }

    fn deliver(&mut self) {
        if self.flights.is_empty() {
            return;
        }
        let at = self.random.usize(..self.flights.len());
        let flight = self.flights.swap_remove(at);
        self.trace = self.trace.rotate_left(5) ^ (at as u64 + 1) ^ self.values;
        self.now += 1;
        match flight {
            Flight::Local(node, life, action) => {
                if self.nodes[node].life == life {
                    self.carry_out(node, action);
                }
            }
            Flight::Restart(node) => self.restart(node),
            Flight::View(node) => self.take_view(node),
            Flight::ClientView(client) => self.clients[client].chain = self.chain.clone(),
            Flight::Forward { to, life, from, event, value, retry } => {
                if self.nodes[to].life == life {
                    self.forward(to, from, event, value, retry);
                } else {
                    let result = Err(Error::from(Code::ConnectionLost));
                    self.flights.push(Flight::Reply { to: from, result });
                }
            }
            Flight::Reply { to, result } => self.reply(to, result),
            Flight::Write { node, client, attempt } => self.write(node, client, attempt),
            Flight::Read { node, client, attempt } => self.read(node, client, attempt),
            Flight::AskCommitted { tail, node, life, client, attempt } => {
                self.ask_committed(tail, node, life, client, attempt);
            }
            Flight::Committed { node, life, client, attempt, version } => {
                self.committed(node, life, client, attempt, version);
            }
            Flight::ReadReply { client, attempt, result } => {
                self.read_reply(client, attempt, result);
            }
        }
    }

    fn lost(&mut self) -> bool {
        !self.calm && self.random.u8(..100) < self.options.loss
    }

    fn restart(&mut self, node: usize) {
        if self.nodes[node].dead {
            return;
        }
        self.nodes[node].down = false;
        let store = &self.nodes[node].store;
        let pending = store.chunks.iter().filter_map(|(c, s)| Some((*c, s.pending?.0)));
        for (chunk, version) in pending.collect::<Vec<_>>() {
            self.apply(node, Event::Recovered { chunk, version });
        }
        self.flights.push(Flight::View(node));
    }

    fn take_view(&mut self, node: usize) {
        if !self.nodes[node].down {
            let view = View::of(&self.chain, self.nodes[node].target);
            self.apply(node, Event::View(view));
        }
    }

    fn apply(&mut self, node: usize, event: Event) {
        let life = self.nodes[node].life;
        for action in self.nodes[node].replica.apply(event) {
            match action {
                Action::Commit { chunk, version } => self.commit(node, chunk, version),
                Action::Answer { ticket, result } => {
                    if let Some(to) = self.nodes[node].tickets.remove(&ticket) {
                        self.flights.push(Flight::Reply { to, result });
                    }
                }
                Action::Settled { .. } => {}
                other => self.flights.push(Flight::Local(node, life, other)),
            }
        }
    }

    fn commit(&mut self, node: usize, chunk: ChunkId, version: ChunkVersion) {
        let stored = self.nodes[node].store.chunks.get_mut(&chunk).expect("it is pending");
        if stored.committed.0 < version {
            let pending = stored.pending.take().expect("a commit has its pending version");
            assert_eq!(pending.0, version);
            stored.undo = Some(stored.committed);
            stored.committed = pending;
        }
    }

    fn carry_out(&mut self, node: usize, action: Action) {
        match action {
            Action::Begin { chunk, retry } => {
                let store = &self.nodes[node].store;
                let stored = store.chunks.get(&chunk).cloned().unwrap_or_default();
                let versions = Versions {
                    committed: stored.committed.0,
                    present: stored.committed.0 != ChunkVersion::NONE,
                    pending: stored.pending.map(|pending| pending.0),
                };
                let channel = retry.map(|key| (key.client, key.channel));
                let remembered = channel.and_then(|c| store.retries.get(&c).copied());
                self.apply(node, Event::Began { chunk, versions: Ok(versions), remembered });
            }
            Action::Prepare { chunk, ticket, version, previous, commit } => {
                let result = self.prepare(node, chunk, ticket, version, previous, commit);
                self.apply(node, Event::Prepared { chunk, version, result });
            }
            Action::Discard { chunk, version } => {
                let store = &mut self.nodes[node].store;
                let stored = store.chunks.get_mut(&chunk).expect("it is pending");
                assert_eq!(stored.pending.take().map(|pending| pending.0), Some(version));
                store.retries.retain(|_, remembered| remembered.version != version);
                self.apply(node, Event::Discarded { chunk, version });
            }
            Action::Forward { chunk, version, previous, to, chain_version, attempt } => {
                let stored = &self.nodes[node].store.chunks[&chunk];
                let value = match stored.pending {
                    Some((pending, value)) if pending == version => value,
                    _ => return,
                };
                let retry = stored.pending_retry;
                let from = Caller::Node(node, self.nodes[node].life, chunk, version, attempt);
                let ticket = Ticket(0);
                let event = Event::Forward {
                    ticket,
                    chain_version,
                    from: self.nodes[node].target,
                    chunk,
                    version,
                    previous,
                };
                let to = to.0 as usize;
                let life = self.nodes[to].life;
                let flight = Flight::Forward { to, life, from, event, value, retry };
                if self.random.u8(..100) < self.options.loss {
                    self.flights.push(flight.clone());
                }
                self.flights.push(flight);
            }
            Action::Pause { chunk, version, attempt, .. } => {
                self.apply(node, Event::PauseOver { chunk, version, attempt });
            }
            other => panic!("carried out at once: {other:?}"),
        }
    }

    fn prepare(
        &mut self,
        node: usize,
        chunk: ChunkId,
        ticket: Ticket,
        version: ChunkVersion,
        previous: ChunkVersion,
        commit: bool,
    ) -> Result<()> {
        if !self.calm && self.random.u8(..100) < self.options.full {
            return Err(Error::from(Code::NoSpace));
        }
        let (value, retry) = self.nodes[node].payloads[&ticket];
        let store = &mut self.nodes[node].store;
        for stored in store.chunks.values_mut() {
            stored.undo = None;
        }
        let stored = store.chunks.entry(chunk).or_default();
        assert_eq!(stored.committed.0, previous, "prepared on another base");
        assert!(stored.pending.is_none() && version > previous);
        stored.pending = Some((version, value));
        stored.pending_retry = retry;
        if commit {
            stored.committed = stored.pending.take().unwrap();
        }
        if let Some(key) = retry {
            let remembered = Remembered { key, chunk, version };
            store.retries.insert((key.client, key.channel), remembered);
        }
        store.version_max = store.version_max.max(version);
        Ok(())
    }

    fn ticket(
        &mut self,
        node: usize,
        caller: Caller,
        value: u64,
        retry: Option<RetryKey>,
    ) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.nodes[node].tickets.insert(ticket, caller);
        self.nodes[node].payloads.insert(ticket, (value, retry));
        ticket
    }

    fn forward(
        &mut self,
        to: usize,
        from: Caller,
        event: Event,
        value: u64,
        retry: Option<RetryKey>,
    ) {
        if self.lost() || self.nodes[to].down || self.nodes[to].replica.view().is_none() {
            let result = Err(Error::from(Code::ConnectionLost));
            return self.flights.push(Flight::Reply { to: from, result });
        }
        let new = self.ticket(to, from, value, retry);
        let Event::Forward { chain_version, from, chunk, version, previous, .. } = event else {
            unreachable!("only forwards fly so")
        };
        let event = Event::Forward { ticket: new, chain_version, from, chunk, version, previous };
        self.apply(to, event);
    }

    fn reply(&mut self, to: Caller, result: Result<ChunkVersion>) {
        let lost = self.lost();
        let result = if lost { Err(Error::from(Code::ConnectionLost)) } else { result };
        match to {
            Caller::Node(node, life, chunk, version, attempt) => {
                if self.nodes[node].life == life {
                    let result = result.map(drop);
                    self.apply(node, Event::Forwarded { chunk, version, attempt, result });
                }
            }
            Caller::Client(client, attempt) if self.clients[client].attempt == attempt => {
                match result {
                    Ok(version) => self.finish(client, Some(version)),
                    // The client is told, and its write may or may not have taken effect: over.
                    Err(error) if error.code() == Code::NoSpace => self.finish(client, None),
                    Err(_) => self.send(client),
                }
            }
            Caller::Client(..) => {}
        }
    }

    fn finish(&mut self, client: usize, version: Option<ChunkVersion>) {
        let operation = self.clients[client].operation.take().expect("an answer to something");
        let Some(version) = version else { return };
        self.history.push(Seen {
            chunk: operation.chunk,
            started: operation.started,
            ended: self.now,
            version,
            value: operation.value,
            is_write: operation.is_write,
        });
    }

    fn write(&mut self, node: usize, client: usize, attempt: u64) {
        let caller = Caller::Client(client, attempt);
        if self.lost() || self.nodes[node].down || self.nodes[node].replica.view().is_none() {
            let result = Err(Error::from(Code::ConnectionLost));
            return self.flights.push(Flight::Reply { to: caller, result });
        }
        let state = &self.clients[client];
        let Some(operation) = state.operation.clone().filter(|_| state.attempt == attempt) else {
            return;
        };
        let retry = Some(RetryKey {
            client: ClientId(client as u128),
            channel: ChannelId(0),
            sequence: Sequence(state.sequence),
        });
        let chain_version = state.chain.version;
        let ticket = self.ticket(node, caller, operation.value, retry);
        let channel = (ClientId(client as u128), ChannelId(0));
        let remembered = self.nodes[node].store.retries.get(&channel).copied();
        let chunk = operation.chunk;
        self.apply(node, Event::Write { ticket, chain_version, chunk, retry, remembered });
    }

    fn read(&mut self, node: usize, client: usize, attempt: u64) {
        let state = &self.clients[client];
        let Some(operation) = state.operation.clone().filter(|_| state.attempt == attempt) else {
            return;
        };
        let chain_version = state.chain.version;
        let failed = Flight::ReadReply { client, attempt, result: None };
        let view = self.nodes[node].replica.view().copied();
        let view = view.filter(|v| v.chain_version == chain_version);
        let view = view.filter(|v| v.state == PublicState::Serving);
        let lost = self.lost();
        if view.is_none() || lost || self.nodes[node].down {
            return self.flights.push(failed);
        }
        let chunk = operation.chunk;
        let stored = self.nodes[node].store.chunks.get(&chunk).cloned().unwrap_or_default();
        let rule = self.nodes[node].replica.read_rule(&chunk);
        if self.options.dirty_reads && stored.pending.is_some() {
            let result = stored.pending;
            return self.flights.push(Flight::ReadReply { client, attempt, result });
        }
        let tail = match rule {
            ReadRule::Committed => {
                let result = Some(stored.committed);
                return self.flights.push(Flight::ReadReply { client, attempt, result });
            }
            ReadRule::Wait => return self.flights.push(failed),
            ReadRule::Ask(target) => target.0 as usize,
        };
        let life = self.nodes[node].life;
        self.flights.push(Flight::AskCommitted { tail, node, life, client, attempt });
    }

    fn ask_committed(&mut self, tail: usize, node: usize, life: u64, client: usize, attempt: u64) {
        let chain_version = self.nodes[node].replica.view().map(|view| view.chain_version);
        let there = self.nodes[tail].replica.view();
        let current = there
            .is_some_and(|view| view.is_commit_point && Some(view.chain_version) == chain_version);
        if !current || self.nodes[tail].down || self.lost() {
            return self.flights.push(Flight::ReadReply { client, attempt, result: None });
        }
        let Some(operation) = &self.clients[client].operation else { return };
        if self.nodes[tail].replica.read_rule(&operation.chunk) != ReadRule::Committed {
            return self.flights.push(Flight::ReadReply { client, attempt, result: None });
        }
        let stored = self.nodes[tail].store.chunks.get(&operation.chunk);
        let version = stored.map_or(ChunkVersion::NONE, |stored| stored.committed.0);
        self.flights.push(Flight::Committed { node, life, client, attempt, version });
    }

    fn committed(
        &mut self,
        node: usize,
        life: u64,
        client: usize,
        attempt: u64,
        version: ChunkVersion,
    ) {
        let state = &self.clients[client];
        let Some(operation) = state.operation.clone().filter(|_| state.attempt == attempt) else {
            return;
        };
        let stored = self.nodes[node].store.chunks.get(&operation.chunk).cloned();
        let stored = stored.unwrap_or_default();
        let found = if stored.committed.0 >= version {
            Some(stored.committed)
        } else {
            stored.pending.filter(|pending| pending.0 == version)
        };
        let alive = self.nodes[node].life == life && !self.nodes[node].down;
        let result = found.filter(|_| alive);
        self.flights.push(Flight::ReadReply { client, attempt, result });
    }

    fn read_reply(&mut self, client: usize, attempt: u64, result: Option<(ChunkVersion, u64)>) {
        if self.clients[client].attempt != attempt {
            return;
        }
        match result {
            Some((version, value)) => {
                if let Some(operation) = &mut self.clients[client].operation {
                    operation.value = value;
                }
                self.finish(client, Some(version));
            }
            None => self.send(client),
        }
    }
}

impl Node {
    fn new(target: TargetId, store: Store, life: u64) -> Self {
        Self {
            target,
            replica: Replica::new(target, store.version_max),
            store,
            life,
            dead: false,
            down: false,
            tickets: HashMap::new(),
            payloads: HashMap::new(),
        }
    }
}
