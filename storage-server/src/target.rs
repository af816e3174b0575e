//! One target: the replica's state machine, its chunk store, and the way to its neighbours.

use crate::insist::insist;
use crate::peers::Peers;
use kiln_chain::replica::{
    Action, Event, ReadRule, Remembered, Replica, Ticket, Versions, View, refuses,
};
use kiln_chunk_store::{self as chunk_store, ChunkRead, ChunkStat, Store, Which};
use kiln_env::Env;
use kiln_memory::Bytes;
use kiln_telemetry::{Phase, Trace, phase};
use kiln_types::{
    ChainId, ChainVersion, ChunkId, ChunkVersion, Code, Context, Deadline, Error, LocalState,
    Monotonic, PublicState, Result, RetryKey, TargetId, TruncateEpoch,
};
use kiln_wire::{Change, Forward, Name, Update};
use parking_lot::Mutex;
use std::collections::HashMap;
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
    state: Mutex<State>,
    tickets: AtomicU64,
    failed: AtomicBool,
}

struct State {
    replica: Replica,
    waiting: HashMap<Ticket, Waiting>,
    requests: HashMap<Ticket, Arc<Incoming>>,
    /// The request that brought the version in progress, for passing it on without reading it again.
    current: HashMap<ChunkId, (ChunkVersion, Arc<Incoming>)>,
}

struct Waiting {
    sender: oneshot::Sender<Result<ChunkVersion>>,
    since: Monotonic,
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
    ) -> Arc<Self> {
        let replica = Replica::new(id, store.version_max(id));
        let pending = store.pending(id);
        let target = Arc::new(Self {
            id,
            chain,
            store,
            env,
            peers,
            state: Mutex::new(State {
                replica,
                waiting: HashMap::new(),
                requests: HashMap::new(),
                current: HashMap::new(),
            }),
            tickets: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        });
        for (chunk, version) in pending {
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

    /// Its store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// What the manager is told of it.
    pub fn local_state(&self) -> LocalState {
        let serves = self.state.lock().replica.view().is_some_and(|view| {
            matches!(view.state, PublicState::Serving | PublicState::LastServing)
        });
        match (self.failed.load(Ordering::Relaxed), serves) {
            (true, _) => LocalState::Offline,
            (false, true) => LocalState::UpToDate,
            (false, false) => LocalState::Online,
        }
    }

    /// The age of the oldest write that waits for an answer.
    pub fn oldest_request(&self) -> Duration {
        let state = self.state.lock();
        let oldest = state.waiting.values().map(|waiting| waiting.since).min();
        oldest.map_or(Duration::ZERO, |since| self.env.now().since(since))
    }

    /// How many writes wait for an answer.
    pub fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// The version of the chain that it acts under.
    pub fn chain_version(&self) -> ChainVersion {
        let view = self.state.lock().replica.view().copied();
        view.map_or(ChainVersion(0), |view| view.chain_version)
    }

    /// Takes the chain as the manager published it.
    pub fn take_view(self: &Arc<Self>, view: Option<View>) {
        self.apply(Event::View(view));
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

    /// Reads what is committed, so that no later read can contradict it.
    ///
    /// # Errors
    /// `ChunkNotFound` for a hole; `StaleChainVersion`, `NotServing` and `Busy` send the caller
    /// elsewhere or let it try again.
    pub async fn read(
        &self,
        name: Name,
        offset: u32,
        length: u32,
        floor: TruncateEpoch,
        deadline: Deadline,
    ) -> Result<ChunkRead> {
        let chunk = name.chunk;
        let committed = || self.read_store(chunk, Which::Committed, offset, length, floor);
        match self.read_rule(name)? {
            ReadRule::Committed => committed().await,
            ReadRule::Wait => Err(settling(chunk)),
            ReadRule::Ask(commit_point) => {
                let decided = self.ask_committed(name, commit_point, deadline).await?;
                let stat = self.store.stat(self.id, chunk).await?;
                let version_of = |stat: &Option<chunk_store::VersionStat>| {
                    stat.as_ref().map_or(ChunkVersion::NONE, |stat| stat.version)
                };
                if version_of(&stat.committed) >= decided {
                    return committed().await;
                }
                if version_of(&stat.pending) != decided {
                    return Err(settling(chunk));
                }
                let which = Which::Version(decided);
                match self.read_store(chunk, which, offset, length, floor).await {
                    // Committed and replaced meanwhile.
                    Err(error) if error.code() == Code::ChunkNotFound => committed().await,
                    result => result,
                }
            }
        }
    }

    /// The committed version of a chunk, told by the commit point.
    ///
    /// # Errors
    /// `WrongTarget` when this is not the commit point, `Busy` while the chunk is being settled.
    pub async fn committed_version(&self, name: Name) -> Result<ChunkVersion> {
        if self.read_rule(name)? != ReadRule::Committed {
            return Err(settling(name.chunk));
        }
        let is_commit_point =
            self.state.lock().replica.view().is_some_and(|view| view.is_commit_point);
        if !is_commit_point {
            let text = format!("target {} is not the commit point of its chain", self.id);
            return Err(Error::new(Code::WrongTarget, text));
        }
        let stat = self.store.stat(self.id, name.chunk).await?;
        Ok(stat.committed.map_or(ChunkVersion::NONE, |committed| committed.version))
    }

    fn read_rule(&self, name: Name) -> Result<ReadRule> {
        let state = self.state.lock();
        let view = state.replica.view().filter(|view| view.state == PublicState::Serving);
        let Some(view) = view else {
            let text = format!("target {} does not serve", self.id);
            return Err(Error::new(Code::NotServing, text));
        };
        if view.chain_version != name.chain_version {
            let text = format!(
                "chain {} is at version {}, the request at {}",
                self.chain, view.chain_version, name.chain_version
            );
            return Err(Error::new(Code::StaleChainVersion, text));
        }
        Ok(state.replica.read_rule(&name.chunk))
    }

    async fn read_store(
        &self,
        chunk: ChunkId,
        which: Which,
        offset: u32,
        length: u32,
        floor: TruncateEpoch,
    ) -> Result<ChunkRead> {
        let result = self.store.read(self.id, chunk, which, offset, length, floor).await;
        self.notice(result)
    }

    async fn ask_committed(
        &self,
        name: Name,
        commit_point: TargetId,
        deadline: Deadline,
    ) -> Result<ChunkVersion> {
        let latest = self.env.deadline_after(NEIGHBOUR_TIMEOUT).min(deadline);
        let asked = self.peers.committed_version(commit_point, name, latest);
        phase(&self.env, Phase::CommitPoint, asked).await
    }

    async fn request(
        self: &Arc<Self>,
        incoming: Incoming,
        deadline: Deadline,
        event: impl FnOnce(Ticket) -> Event,
    ) -> Result<ChunkVersion> {
        let ticket = Ticket(self.tickets.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = oneshot::channel();
        // Until its turn comes.
        incoming.trace.enter(&self.env, Phase::Queue);
        let actions = {
            let mut state = self.state.lock();
            state.waiting.insert(ticket, Waiting { sender, since: self.env.now() });
            state.requests.insert(ticket, Arc::new(incoming));
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

    fn remembered(&self, retry: Option<RetryKey>) -> Option<Remembered> {
        let key = retry?;
        let record = self.store.retry_record(self.id, key.client, key.channel)?;
        Some(Remembered { key: record.key, chunk: record.chunk, version: record.version })
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
        let task = async move {
            for action in actions {
                if let Some(event) = target.carry_out(action).await {
                    target.apply(event);
                }
            }
        };
        self.env.spawn("replica action", task).detach();
    }

    fn answer(&self, ticket: Ticket, result: Result<ChunkVersion>) {
        let mut state = self.state.lock();
        state.requests.remove(&ticket);
        let waiting = state.waiting.remove(&ticket);
        drop(state);
        if let Some(waiting) = waiting {
            // The caller may have stopped waiting: it asks again.
            let _ = waiting.sender.send(result);
        }
    }

    async fn carry_out(self: &Arc<Self>, action: Action) -> Option<Event> {
        match action {
            Action::Begin { chunk, retry } => {
                let versions = self.notice(self.store.stat(self.id, chunk).await).map(versions);
                Some(Event::Began { chunk, versions, remembered: self.remembered(retry) })
            }
            Action::Prepare { chunk, ticket, version, previous, commit } => {
                let result = self.prepare(chunk, ticket, version, previous, commit).await;
                Some(Event::Prepared { chunk, version, result })
            }
            Action::Commit { chunk, version } => {
                let result = self.notice(self.store.commit(self.id, chunk, version).await);
                Some(Event::Committed { chunk, version, result })
            }
            Action::Discard { chunk, version } => {
                // Nothing else happens to the chunk before: it is tried until it is done.
                let what = format!("drop of version {version} of chunk {chunk}");
                let discard = || self.store.discard(self.id, chunk, version);
                match self.notice(insist(&self.env, &what, discard).await) {
                    Ok(()) => Some(Event::Discarded { chunk, version }),
                    // The disk failed: the target leaves its chain, and the version with it.
                    Err(_) => None,
                }
            }
            Action::Forward { chunk, version, previous, to, chain_version, attempt } => {
                let name = Name { chain: self.chain, chain_version, chunk };
                let result = self.pass_on(name, version, previous, to).await;
                if let Err(error) = &result {
                    tracing::debug!(target_id = %self.id, %chunk, %version, %to, %error, "forward failed");
                }
                Some(Event::Forwarded { chunk, version, attempt, result })
            }
            Action::Pause { chunk, version, attempt, duration } => {
                let trace = self.trace_of(chunk, version);
                let pause = self.env.sleep(self.env.jittered(duration));
                trace.scope(phase(&self.env, Phase::Pause, pause)).await;
                Some(Event::PauseOver { chunk, version, attempt })
            }
            Action::Answer { .. } | Action::Settled { .. } | Action::Joined { .. } => None,
        }
    }

    async fn prepare(
        &self,
        chunk: ChunkId,
        ticket: Ticket,
        version: ChunkVersion,
        previous: ChunkVersion,
        commit: bool,
    ) -> Result<()> {
        let incoming = {
            let mut state = self.state.lock();
            let incoming = state.requests.get(&ticket).cloned().ok_or_else(|| {
                Error::internal(format!("the request of chunk {chunk} version {version} is gone"))
            })?;
            state.current.insert(chunk, (version, Arc::clone(&incoming)));
            incoming
        };
        let Incoming { update, payload, trace } = &*incoming;
        trace.leave(&self.env, Phase::Queue);
        if matches!(update.change, Change::Truncate { .. } | Change::Remove) {
            let stat = self.notice(self.store.stat(self.id, chunk).await)?;
            refuse_late_cut(update.epoch, stat.committed.as_ref())?;
        }
        let bytes = payload.clone();
        let change = match update.change.clone() {
            Change::Write { offset, checksums } => {
                chunk_store::Change::Write { offset, bytes, checksums }
            }
            Change::Truncate { length } => chunk_store::Change::Truncate { length },
            Change::Remove => chunk_store::Change::Remove,
            Change::Replace { checksums } => chunk_store::Change::Replace { bytes, checksums },
        };
        let result = self.store.prepare(
            self.id,
            chunk_store::Update {
                chunk,
                version,
                previous,
                epoch: update.epoch,
                floor: update.floor,
                chunk_bytes: update.chunk_bytes,
                change,
                retry: update.retry,
                commit,
            },
        );
        let result = self.notice(trace.scope(result).await);
        if let Err(error) = &result
            && !refuses(error.code())
        {
            tracing::warn!(target_id = %self.id, %chunk, %version, %error, "prepare failed");
        }
        result
    }

    async fn pass_on(
        &self,
        name: Name,
        version: ChunkVersion,
        previous: ChunkVersion,
        to: TargetId,
    ) -> Result<()> {
        let current = self.state.lock().current.get(&name.chunk).cloned();
        let incoming = match current {
            Some((current, incoming)) if current == version => incoming,
            _ => Arc::new(self.stored(name.chunk, version).await?),
        };
        let Incoming { update, payload, trace } = &*incoming;
        trace.about(|about| about.target = Some(to));
        let forward = Forward { name, from: self.id, version, previous, update: update.clone() };
        let deadline = self.env.deadline_after(NEIGHBOUR_TIMEOUT);
        let passed = self.peers.forward(to, forward, payload.clone(), deadline);
        trace.scope(phase(&self.env, Phase::Forward, passed)).await
    }

    /// The record of the request that brought a version in progress.
    fn trace_of(&self, chunk: ChunkId, version: ChunkVersion) -> Trace {
        let state = self.state.lock();
        let current = state.current.get(&chunk).filter(|(current, _)| *current == version);
        current.map(|(_, incoming)| incoming.trace.clone()).unwrap_or_default()
    }

    /// A pending version as the store has it, in the shape of a request.
    async fn stored(&self, chunk: ChunkId, version: ChunkVersion) -> Result<Incoming> {
        let stat = self.store.stat(self.id, chunk).await?;
        let pending = stat.pending.filter(|pending| pending.version == version);
        let pending = pending.ok_or_else(|| {
            Error::internal(format!("chunk {chunk}: version {version} is not pending"))
        })?;
        let (change, payload) = if pending.removed {
            (Change::Remove, Bytes::empty())
        } else {
            let (which, floor) = (Which::Version(version), TruncateEpoch(0));
            let read = self.read_store(chunk, which, 0, u32::MAX, floor).await;
            let read = read.context("reading a pending version to pass it on")?;
            (Change::Replace { checksums: read.checksums }, read.bytes)
        };
        let update = Update {
            change,
            epoch: pending.epoch,
            floor: TruncateEpoch(0),
            chunk_bytes: kiln_types::CHUNK_BYTES_MAX,
            retry: pending.retry,
        };
        Ok(Incoming { update, payload, trace: Trace::default() })
    }

    /// Takes note when the disk has failed: the target then leaves its chain.
    fn notice<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && error.code() == Code::DiskFailed
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            tracing::error!(target_id = %self.id, %error, "the disk failed: target goes offline");
        }
        result
    }
}

fn versions(stat: ChunkStat) -> Versions {
    Versions {
        committed: stat.committed.as_ref().map_or(ChunkVersion::NONE, |stat| stat.version),
        present: stat.committed.as_ref().is_some_and(|stat| !stat.removed),
        pending: stat.pending.map(|stat| stat.version),
    }
}

/// A truncation or removal under the chunk's own epoch was carried out before, and a writer may have
/// renewed the chunk since: it stays as it is.
fn refuse_late_cut(epoch: TruncateEpoch, stored: Option<&chunk_store::VersionStat>) -> Result<()> {
    match stored {
        Some(stored) if stored.epoch >= epoch => Err(Error::new(
            Code::StaleEpoch,
            format!("the chunk is of epoch {}, the cut of epoch {epoch}", stored.epoch),
        )),
        _ => Ok(()),
    }
}

fn settling(chunk: ChunkId) -> Error {
    Error::new(Code::Busy, format!("chunk {chunk} is being settled"))
}
