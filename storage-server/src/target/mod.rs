//! One target: the replica's state machine, its chunk store, and the way to its neighbours.

mod actions;
mod fill;
mod filled;
mod reads;
mod repair;

use crate::peers::Peers;
use crate::pulse::{Pulse, Silence};
use crate::recovery::Recovery;
use fill::Filling;
use filled::Filled;
use kiln_chain::replica::{Action, Event, Replica, Ticket, View};
use kiln_chunk_store::{self as chunk_store, Store};
use kiln_env::Env;
use kiln_memory::Bytes;
use kiln_telemetry::{Phase, Trace};
use kiln_types::rehearsal::planted;
use kiln_types::{
    ChainId, ChainVersion, ChunkId, ChunkVersion, Code, Deadline, DiskId, Error, LocalState,
    Monotonic, PublicState, Result, RetryKey, RetryRecord, TargetId,
};
use kiln_wire::{Forward, Name, Update};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long one attempt to pass a write on, or to ask the commit point, may take.
const NEIGHBOUR_TIMEOUT: Duration = Duration::from_secs(3);

/// A replica on one of this server's disks.
///
/// Every event is applied under one short lock; what it says to do is carried out outside, by a task of
/// its own, and comes back as further events.
pub struct Target {
    id: TargetId,
    chain: ChainId,
    store: Arc<Store>,
    env: Env,
    peers: Arc<Peers>,
    recovery: Arc<Recovery>,
    state: Mutex<State>,
    filling: Mutex<Filling>,
    pulse: Pulse,
    silence: Silence,
    /// Damaged chunks that are being written anew.
    repairs: Mutex<HashSet<ChunkId>>,
    completeness: Mutex<Completeness>,
    standing: Mutex<Standing>,
    tickets: AtomicU64,
    failed: AtomicBool,
}

struct State {
    replica: Replica,
    waiting: HashMap<Ticket, oneshot::Sender<Result<ChunkVersion>>>,
    requests: HashMap<Ticket, Arc<Incoming>>,
    /// The request that brought the version in progress, for passing it on without reading it again.
    current: HashMap<ChunkId, (ChunkVersion, Arc<Incoming>)>,
    /// Copies that wait to be installed.
    copies: HashMap<Ticket, chunk_store::Install>,
    /// The last walk that filled this target.
    filled: Option<Filled>,
    /// When the disk had no room for a copy.
    full_since: Option<Monotonic>,
}

/// The state of a target that has to be filled, as its store keeps it.
pub(crate) const INCOMPLETE: &[u8] = &[1];

/// Whether a target has all that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completeness {
    /// It has, as far as it was in its chain.
    Complete,
    /// Its disk lost some: it must leave its chain, and be filled.
    Leaves,
    /// It has left.
    Left,
}

/// Whether the manager lets a target take part in its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    In,
    /// It does not need it any more.
    Out,
    /// It does again, but may have heard that the target is out: it takes part when the chain does not have it
    /// as one that serves.
    Returning,
}

/// A change and its bytes, taken once into memory of this server.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The change.
    pub update: Update,
    /// Its bytes.
    pub payload: Bytes,
    /// Where the time of the request goes.
    pub trace: Trace,
}

impl Target {
    /// Opens a target that `store` has; versions that were pending when the server stopped are settled
    /// once the chain is known.
    pub fn open(
        id: TargetId,
        chain: ChainId,
        store: Arc<Store>,
        env: Env,
        peers: Arc<Peers>,
        recovery: Arc<Recovery>,
        completeness: Completeness,
    ) -> Arc<Self> {
        let replica = Replica::new(id, store.version_max(id));
        let pending = store.pending(id);
        let target = Arc::new(Self {
            id,
            chain,
            store,
            env,
            peers,
            recovery,
            state: Mutex::new(State {
                replica,
                waiting: HashMap::new(),
                requests: HashMap::new(),
                current: HashMap::new(),
                copies: HashMap::new(),
                filled: None,
                full_since: None,
            }),
            filling: Mutex::default(),
            pulse: Pulse::default(),
            silence: Silence::default(),
            repairs: Mutex::default(),
            completeness: Mutex::new(completeness),
            standing: Mutex::new(Standing::In),
            tickets: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        });
        for (chunk, version) in pending {
            if planted("pending versions are forgotten") {
                continue;
            }
            target.apply(Event::Recovered { chunk, version });
        }
        target
    }

    /// Its id.
    pub fn id(&self) -> TargetId {
        self.id
    }

    /// Its chain.
    pub fn chain(&self) -> ChainId {
        self.chain
    }

    /// Its disk.
    pub fn disk(&self) -> DiskId {
        self.store.identity().disk
    }

    /// Whether it shall take no part, from the next view on, although its chain may have it.
    pub fn step_out(&self, out: bool) {
        let mut standing = self.standing.lock();
        let next = match (out, *standing) {
            (true, _) => Standing::Out,
            (false, Standing::In) => Standing::In,
            (false, _) => Standing::Returning,
        };
        if next != *standing {
            tracing::info!(target_id = %self.id, ?next, "whether the target takes part in its chain");
        }
        *standing = next;
    }

    fn check_standing(&self, view: Option<View>) -> Option<View> {
        let mut standing = self.standing.lock();
        let serving = view.is_some_and(|view| view.state == PublicState::Serving);
        if *standing == Standing::Returning && !serving {
            *standing = Standing::In;
        }
        view.filter(|_| *standing == Standing::In)
    }

    /// Its store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// What the manager is told of it.
    pub fn local_state(&self) -> LocalState {
        let state = self.state.lock().replica.view().map(|view| view.state);
        if self.failed.load(Ordering::Relaxed) {
            return LocalState::Offline;
        }
        match state {
            // Only when it serves nothing any more.
            None if *self.standing.lock() != Standing::In => LocalState::Offline,
            _ if *self.completeness.lock() == Completeness::Leaves => LocalState::Offline,
            Some(PublicState::Serving | PublicState::LastServing) => LocalState::UpToDate,
            _ if self.steps_aside() => LocalState::Offline,
            Some(PublicState::Syncing) if self.is_filled() => LocalState::UpToDate,
            _ => LocalState::Online,
        }
    }

    /// The age of the oldest request that the disk has not answered.
    pub fn oldest_io(&self) -> Duration {
        self.pulse.oldest(&self.env)
    }

    /// The target behind this one, when it has not answered for long.
    pub fn unreachable(&self) -> Option<TargetId> {
        self.silence.target(&self.env)
    }

    /// How many writes wait for an answer.
    pub fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// How it sees its chain; `None` when it takes no part.
    pub fn view(&self) -> Option<View> {
        self.state.lock().replica.view().copied()
    }

    /// The version of the chain that it acts under.
    pub fn chain_version(&self) -> ChainVersion {
        self.view().map_or(ChainVersion(0), |view| view.chain_version)
    }

    /// Takes the chain as the manager published it.
    pub fn take_view(self: &Arc<Self>, view: Option<View>) {
        let view = self.check_standing(self.check_completeness(view));
        let (old, actions) = {
            let mut state = self.state.lock();
            let old = state.replica.view().copied();
            let mut actions = Vec::new();
            let forgets = planted("pending versions are forgotten");
            if serves(view) && !serves(old) && !forgets {
                // While others decided, nothing of this was in progress.
                for (chunk, version) in self.store.pending(self.id) {
                    actions.extend(state.replica.apply(Event::Recovered { chunk, version }));
                }
            }
            actions.extend(state.replica.apply(Event::View(view)));
            (old, actions)
        };
        if successor(old) != successor(view) {
            self.silence.begin(&self.env);
        }
        self.drive(actions);
        if old.map(|view| view.chain_version) != view.map(|view| view.chain_version) {
            self.follow_successor(view);
        }
    }

    /// A client's write, at the head. The answer comes when every serving replica has it durable.
    ///
    /// # Errors
    /// What the replica says; `DeadlineExceeded` when nothing is decided by `deadline`.
    pub async fn write(
        self: &Arc<Self>,
        name: Name,
        incoming: Incoming,
        deadline: Deadline,
    ) -> Result<ChunkVersion> {
        let retry = incoming.update.retry;
        let remembered = self.remembered(retry);
        let Name { chunk, chain_version, .. } = name;
        self.request(incoming, deadline, |ticket| Event::Write {
            ticket,
            chain_version,
            chunk,
            retry,
            remembered,
        })
        .await
    }

    /// A write that the predecessor passed on.
    ///
    /// # Errors
    /// See [`Self::write`].
    pub async fn forward(
        self: &Arc<Self>,
        forward: Forward,
        payload: Bytes,
        deadline: Deadline,
    ) -> Result<ChunkVersion> {
        let Forward { name, from, version, previous, update } = forward;
        let incoming = Incoming { update, payload, trace: Trace::current() };
        self.request(incoming, deadline, |ticket| Event::Forward {
            ticket,
            chain_version: name.chain_version,
            from,
            chunk: name.chunk,
            version,
            previous,
        })
        .await
    }

    async fn request(
        self: &Arc<Self>,
        incoming: Incoming,
        deadline: Deadline,
        event: impl FnOnce(Ticket) -> Event,
    ) -> Result<ChunkVersion> {
        // Until its turn comes.
        incoming.trace.enter(&self.env, Phase::Queue);
        let keep = |state: &mut State, ticket| {
            state.requests.insert(ticket, Arc::new(incoming));
        };
        self.wait_for(deadline, event, keep).await
    }

    /// Gives the replica an event, and waits for what it answers; `keep` stores what belongs to it.
    async fn wait_for(
        self: &Arc<Self>,
        deadline: Deadline,
        event: impl FnOnce(Ticket) -> Event,
        keep: impl FnOnce(&mut State, Ticket),
    ) -> Result<ChunkVersion> {
        let ticket = Ticket(self.tickets.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = oneshot::channel();
        let actions = {
            let mut state = self.state.lock();
            state.waiting.insert(ticket, sender);
            keep(&mut state, ticket);
            state.replica.apply(event(ticket))
        };
        self.drive(actions);
        match self.env.until(deadline, "the chain's answer to a write", receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::new(Code::Cancelled, "the server is stopping")),
            Err(late) => {
                self.state.lock().waiting.remove(&ticket);
                Err(late)
            }
        }
    }

    fn remembered(&self, retry: Option<RetryKey>) -> Option<RetryRecord> {
        let key = retry?;
        let record = self.store.retry_record(self.id, key.client, key.channel)?;
        let forgets = planted("retries are forgotten at a change of the chain");
        (!forgets || record.version.chain >= self.chain_version()).then_some(record)
    }

    fn apply(self: &Arc<Self>, event: Event) {
        let actions = self.state.lock().replica.apply(event);
        self.drive(actions);
    }

    /// Carries actions out: what is immediate at once, the rest each in a task of its own, but for a
    /// commit, which the actions behind it must find done.
    fn drive(self: &Arc<Self>, actions: Vec<Action>) {
        let mut behind_commit = Vec::new();
        for action in actions {
            match action {
                Action::Answer { ticket, result } => self.answer(ticket, result),
                Action::Settled { chunk } => drop(self.state.lock().current.remove(&chunk)),
                Action::Joined { ticket } => drop(self.state.lock().requests.remove(&ticket)),
                action if behind_commit.is_empty() && !matches!(action, Action::Commit { .. }) => {
                    self.start(vec![action]);
                }
                action => behind_commit.push(action),
            }
        }
        if !behind_commit.is_empty() {
            self.start(behind_commit);
        }
    }

    fn start(self: &Arc<Self>, actions: Vec<Action>) {
        let target = Arc::clone(self);
        let work = async move {
            for action in actions {
                if let Some(event) = target.carry_out(action).await {
                    target.apply(event);
                }
            }
        };
        self.env.spawn("replica action", work).detach();
    }

    fn answer(&self, ticket: Ticket, result: Result<ChunkVersion>) {
        let mut state = self.state.lock();
        state.requests.remove(&ticket);
        state.copies.remove(&ticket);
        let waiting = state.waiting.remove(&ticket);
        drop(state);
        if let Some(waiting) = waiting {
            // The caller may have stopped waiting: it asks again.
            let _ = waiting.send(result);
        }
    }

    /// Takes note when the disk has failed: the target then leaves its chain.
    pub(super) fn notice<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && error.code() == Code::DiskFailed
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            tracing::error!(target_id = %self.id, %error, "the disk failed: target goes offline");
        }
        result
    }
}

fn successor(view: Option<View>) -> Option<TargetId> {
    view.and_then(|view| view.successor)
}

fn serves(view: Option<View>) -> bool {
    view.is_some_and(|v| matches!(v.state, PublicState::Serving | PublicState::LastServing))
}
