//! Replicas, their stores, a manager, clients, and the bag of what is under way between them.

use crate::filling::{Stage, Walk};
use crate::history::{self, Seen};
use kiln_chain::replica::{Action, Event, Replica, Ticket};
use kiln_types::*;
use std::collections::{BTreeMap, HashMap};

pub(crate) const REPLICAS: usize = 3;

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) clients: usize,
    pub(crate) chunks: u64,
    pub(crate) operations: usize,
    /// Per cent of messages that are lost.
    pub(crate) loss: u8,
    /// Quick restarts.
    pub(crate) kills: usize,
    /// Replicas that are declared dead; they may return later.
    pub(crate) deaths: usize,
    /// Whether a replica returns without the write marks that were not durable, and with all it had
    /// pending.
    pub(crate) returns: bool,
    /// Per cent of prepares that find the disk full.
    pub(crate) full: u8,
    /// Per cent of turns that a prepare is passed over.
    pub(crate) slow_disk: u8,
    /// Per cent of turns that a client's write is passed over.
    pub(crate) slow_clients: u8,
    pub(crate) plant: Option<Plant>,
}

/// Defects that the checker must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    /// A killed store loses what was pending.
    StoreForgets,
    /// A replica answers reads with what it has pending.
    DirtyReads,
    /// A filled replica says what it holds while its earlier changes are under way.
    ListsTooEarly,
    /// The commit point does not look again at chunks that were changing when the filling began.
    SkipsChanging,
    /// A copy is installed whatever is there.
    InstallsBlindly,
    /// Retry records do not travel.
    SkipsRetries,
    /// Retry records travel also of writes that are pending.
    PassesUndecided,
    /// A returned replica is taken for up-to-date.
    PromotesStale,
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
            deaths: random.usize(0..6),
            returns: random.bool(),
            full: *random.choice(&[0, 0, 5]).unwrap(),
            slow_disk: *random.choice(&[0, 0, 80, 95]).unwrap(),
            slow_clients: *random.choice(&[0, 0, 90, 97]).unwrap(),
            plant: None,
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
    pub(crate) retries: BTreeMap<(ClientId, ChannelId), RetryRecord>,
    pub(crate) version_max: ChunkVersion,
}

impl Store {
    /// A version is discarded: of its channel it is known only that the write before it is over.
    pub(crate) fn undo_retry(&mut self, version: ChunkVersion) {
        for record in self.retries.values_mut().filter(|record| record.version == version) {
            record.key.sequence.0 = record.key.sequence.0.saturating_sub(1);
            record.version = ChunkVersion::NONE;
        }
    }
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
    /// Cut off from the manager for so long that its lease has ended.
    pub(crate) fenced: bool,
    pub(crate) tickets: HashMap<Ticket, Caller>,
    pub(crate) payloads: HashMap<Ticket, (u64, Option<RetryKey>)>,
    /// The copies that wait to be installed.
    pub(crate) copies: HashMap<Ticket, Copied>,
    /// The chain version in which it was filled.
    pub(crate) filled: Option<ChainVersion>,
    /// The walk that fills it.
    pub(crate) session: Option<u64>,
}

/// What an install brings: what is expected, and what it becomes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copied {
    pub(crate) expected: Held,
    pub(crate) copy: (ChunkVersion, u64),
}

#[derive(Clone, Debug)]
pub(crate) enum Caller {
    Client(usize, u64),
    /// (node, life, chunk, version, attempt) of the predecessor.
    Node(usize, u64, ChunkId, ChunkVersion, u32),
    /// (node, life, chunk, attempt) of the predecessor that fills.
    Filler(usize, u64, ChunkId, u32),
    /// The walk that fills a replica.
    Walk(Walk),
}

/// Something under way. The first numbers are node and life: a restart loses what it had under way.
#[derive(Clone, Debug)]
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
    /// A heartbeat of a node.
    Report(usize),
    Walk(Walk, Stage),
    /// The predecessor (node, life) looks what `to` holds of a chunk, for attempt `attempt`.
    LookUp {
        to: usize,
        from: (usize, u64),
        chunk: ChunkId,
        chain_version: ChainVersion,
        attempt: u32,
    },
    Found {
        from: (usize, u64),
        chunk: ChunkId,
        attempt: u32,
        to: usize,
        chain_version: ChainVersion,
        found: Option<Held>,
    },
    Install {
        to: usize,
        life: u64,
        from: Caller,
        chunk: ChunkId,
        chain_version: ChainVersion,
        copied: Copied,
        /// A copy that the network kept for a while.
        late: bool,
    },
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
    /// Of a read.
    pub(crate) consistency: Consistency,
}

pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) random: fastrand::Rng,
    pub(crate) chain: Chain,
    /// What the manager knows of the targets.
    pub(crate) local: [LocalState; REPLICAS],
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
        let chain = Chain {
            id: ChainId(1),
            version: ChainVersion(1),
            members,
            min_serving: 1,
            replicas: REPLICAS as u32,
        };
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
            local: [LocalState::UpToDate; REPLICAS],
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

    /// A whole life, checked; returns its trace.
    pub(crate) fn lives(seed: u64, options: Options) -> u64 {
        let mut world = Self::new(seed, options);
        world.run();
        world.settle();
        world.check();
        world.trace()
    }

    pub(crate) fn trace(&self) -> u64 {
        self.trace
    }

    pub(crate) fn run(&mut self) {
        let mut steps = 0;
        while self.clients.iter().any(|client| client.left > 0 || client.operation.is_some()) {
            steps += 1;
            self.calm = steps > 20_000;
            if self.calm {
                self.revive_all();
            }
            assert!(steps < 400_000, "no progress: {:?}", self.flights);
            self.step();
        }
    }

    /// Lets everything come to rest, without further faults.
    pub(crate) fn settle(&mut self) {
        self.calm = true;
        self.revive_all();
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
        if self.options.returns {
            assert_eq!(self.chain.serving().count(), REPLICAS, "not all serve: {:?}", self.chain);
        }
        let serving: Vec<_> = self.chain.serving().map(|t| &self.nodes[t.0 as usize]).collect();
        for node in &serving {
            assert_eq!(node.replica.works(), 0, "target {} still works", node.target);
            for (chunk, stored) in &node.store.chunks {
                assert_eq!(stored.pending, None, "{chunk} of {} is pending", node.target);
                let head = serving[0].store.chunks.get(chunk).cloned().unwrap_or_default();
                assert_eq!(head.committed, stored.committed, "{chunk} of {} differs", node.target);
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
        let spare = self.chain.serving().count() > 1 || self.options.returns;
        if strike && self.options.deaths > 0 && spare {
            self.options.deaths -= 1;
            let node = self.random.usize(..REPLICAS);
            let state = self.chain.state_of(TargetId(node as u64));
            if state.is_some_and(PublicState::takes_writes) {
                self.bury(node);
                return;
            }
        }
        if self.options.returns && self.random.u8(..100) < 2 {
            let node = self.random.usize(..REPLICAS);
            self.revive(node);
        }
        let client = self.random.usize(..self.clients.len());
        if self.clients[client].operation.is_none() && self.clients[client].left > 0 {
            return self.start_operation(client);
        }
        self.deliver();
    }

    pub(crate) fn deliver(&mut self) {
        if self.flights.is_empty() {
            return;
        }
        let at = self.random.usize(..self.flights.len());
        let patience = match self.flights[at] {
            Flight::Local(_, _, Action::Prepare { .. }) => self.options.slow_disk,
            Flight::Install { late: true, .. } => 95,
            Flight::Write { .. } => self.options.slow_clients,
            _ => 0,
        };
        if !self.calm && self.random.u8(..100) < patience {
            return;
        }
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
            Flight::Report(node) => self.heartbeat(node),
            Flight::Walk(walk, stage) => self.walk(walk, stage),
            Flight::LookUp { to, from, chunk, chain_version, attempt } => {
                self.look_up(to, from, chunk, chain_version, attempt);
            }
            Flight::Found { from, chunk, attempt, to, chain_version, found } => {
                self.found(from, chunk, attempt, to, chain_version, found);
            }
            Flight::Install { to, life, from, chunk, chain_version, copied, .. } => {
                self.install(to, life, from, chunk, chain_version, copied);
            }
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
}

impl Node {
    /// Whether requests reach it.
    pub(crate) fn answers(&self) -> bool {
        !self.down && !self.fenced
    }

    pub(crate) fn new(target: TargetId, store: Store, life: u64) -> Self {
        Self {
            target,
            replica: Replica::new(target, store.version_max),
            store,
            life,
            dead: false,
            down: false,
            fenced: false,
            tickets: HashMap::new(),
            payloads: HashMap::new(),
            copies: HashMap::new(),
            filled: None,
            session: None,
        }
    }
}
