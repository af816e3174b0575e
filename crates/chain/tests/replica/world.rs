//! Replicas, their stores, a manager, clients, and the bag of what is under way between them.

use crate::history::{self, Seen};
use kiln_chain::replica::{Action, Event, Remembered, Replica, Ticket, Versions, View};
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
pub(crate) struct Stored {
    pub(crate) committed: (ChunkVersion, u64),
    /// What was committed before, as long as the commit mark is not durable.
    pub(crate) undo: Option<(ChunkVersion, u64)>,
    pub(crate) pending: Option<(ChunkVersion, u64)>,
    pub(crate) pending_retry: Option<RetryKey>,
}

#[derive(Clone, Default)]
pub(crate) struct Store {
    pub(crate) chunks: BTreeMap<ChunkId, Stored>,
    pub(crate) retries: BTreeMap<(ClientId, ChannelId), Remembered>,
    pub(crate) version_max: ChunkVersion,
}

pub(crate) struct Node {
    pub(crate) target: TargetId,
    pub(crate) replica: Replica,
    pub(crate) store: Store,
    pub(crate) life: u64,
    /// Will not come back.
    pub(crate) dead: bool,
    /// Not running now.
    pub(crate) down: bool,
    pub(crate) tickets: HashMap<Ticket, Caller>,
    pub(crate) payloads: HashMap<Ticket, (u64, Option<RetryKey>)>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Caller {
    Client(usize, u64),
    /// (node, life, chunk, version, attempt) of the predecessor.
    Node(usize, u64, ChunkId, ChunkVersion, u32),
}

/// Something under way. The first numbers are node and life: a restart loses what it had under way.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a few of them in a test")]
pub(crate) enum Flight {
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

pub(crate) struct Client {
    pub(crate) chain: Chain,
    pub(crate) attempt: u64,
    pub(crate) sequence: u64,
    pub(crate) operation: Option<Operation>,
    pub(crate) left: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) chunk: ChunkId,
    pub(crate) value: u64,
    pub(crate) started: u64,
    pub(crate) is_write: bool,
}

pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) random: fastrand::Rng,
    pub(crate) chain: Chain,
    pub(crate) nodes: Vec<Node>,
    pub(crate) clients: Vec<Client>,
    pub(crate) flights: Vec<Flight>,
    pub(crate) history: Vec<Seen>,
    pub(crate) now: u64,
    pub(crate) values: u64,
    pub(crate) tickets: u64,
    pub(crate) calm: bool,
    pub(crate) trace: u64,
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

    pub(crate) fn step(&mut self) {
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

    pub(crate) fn kill(&mut self, node: usize) {
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

    pub(crate) fn bury(&mut self, node: usize) {
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

    pub(crate) fn deliver(&mut self) {
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

    pub(crate) fn lost(&mut self) -> bool {
        !self.calm && self.random.u8(..100) < self.options.loss
    }

    pub(crate) fn restart(&mut self, node: usize) {
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

    pub(crate) fn take_view(&mut self, node: usize) {
        if !self.nodes[node].down {
            let view = View::of(&self.chain, self.nodes[node].target);
            self.apply(node, Event::View(view));
        }
    }

    pub(crate) fn apply(&mut self, node: usize, event: Event) {
        let life = self.nodes[node].life;
        let actions = self.nodes[node].replica.apply(event);
        let prepares = actions.iter().any(|action| matches!(action, Action::Prepare { .. }));
        for action in actions {
            match action {
                Action::Commit { chunk, version } if prepares => {
                    self.commit(node, chunk, version);
                }
                Action::Answer { ticket, result } => {
                    if let Some(to) = self.nodes[node].tickets.remove(&ticket) {
                        self.flights.push(Flight::Reply { to, result });
                    }
                }
                Action::Settled { .. } => {}
                Action::Joined { ticket } => {
                    self.nodes[node].payloads.remove(&ticket);
                }
                other => self.flights.push(Flight::Local(node, life, other)),
            }
        }
    }

    pub(crate) fn commit(&mut self, node: usize, chunk: ChunkId, version: ChunkVersion) {
        let stored = self.nodes[node].store.chunks.get_mut(&chunk).expect("it is pending");
        if stored.committed.0 < version {
            let pending = stored.pending.take().expect("a commit has its pending version");
            assert_eq!(pending.0, version);
            stored.undo = Some(stored.committed);
            stored.committed = pending;
        }
    }

    pub(crate) fn carry_out(&mut self, node: usize, action: Action) {
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
            Action::Commit { chunk, version } => {
                self.commit(node, chunk, version);
                self.apply(node, Event::Committed { chunk, version, result: Ok(()) });
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

    pub(crate) fn prepare(
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

    pub(crate) fn ticket(
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

    pub(crate) fn forward(
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

    pub(crate) fn reply(&mut self, to: Caller, result: Result<ChunkVersion>) {
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

    pub(crate) fn finish(&mut self, client: usize, version: Option<ChunkVersion>) {
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
}

impl Node {
    pub(crate) fn new(target: TargetId, store: Store, life: u64) -> Self {
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
