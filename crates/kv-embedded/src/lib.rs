//! The embedded key-value engine: durable, group-committed, opened in-process by one server.
//!
//! A directory holds `LOCK` (an exclusive lock while the engine is open), `store` (the format marker
//! and a log-structured merge tree) and `ballast` (space that is held back for a full file system). Transactions read the latest published snapshot. One committer
//! thread takes all commits that wait, validates them against what was written since their snapshots,
//! writes one batch, syncs once, publishes the new snapshot and answers all. Reads run on the caller's
//! thread: they are served from memory or the page cache, or wait for the local disk.
//!
//! Invariant: nothing is visible to any transaction before it is durable; after a failed write or sync
//! the engine refuses everything until it is opened anew.
#![forbid(unsafe_code)]

mod committer;
mod directory;
mod room;
mod snapshot;
mod tail;

use crate::committer::{Committer, Request};
use crate::directory::{Directory, Opened};
use crate::room::Room;
use crate::snapshot::Published;
use async_trait::async_trait;
use kiln_env::Env;
use kiln_kv::optimistic::{Commit, Engine, OptimisticTransaction, Snapshot};
use kiln_kv::{Kv, Transaction};
use kiln_types::{Code, Context, Error, Result};
use parking_lot::{Mutex, RwLock};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

/// What waits for the committer at most, in KiB.
const QUEUE_KIB: u32 = 32 << 10;
/// How long a commit waits for room in the queue.
const ROOM_TIME_MAX: Duration = Duration::from_secs(1);
/// How long a commit waits for the disk.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// How long `open` waits for another engine to let go of the directory.
const LOCK_TIME_MAX: Duration = Duration::from_secs(1);

/// How much memory and disk the engine takes beside its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The cache of blocks read, in bytes.
    pub cache_bytes: u64,
    /// What is collected in memory before it goes into a table, in bytes; fixed when the store is
    /// created. A few times as much is held while tables are written.
    pub memtable_bytes: u64,
    /// The most that journals take on disk, in bytes; at least 64 MiB.
    pub journal_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20, memtable_bytes: 16 << 20, journal_bytes: 256 << 20 }
    }
}

/// A store in a local directory, held exclusively by this process.
pub struct EmbeddedKv {
    shared: Arc<Shared>,
    committer: Mutex<Option<JoinHandle<()>>>,
    path: PathBuf,
}

/// What transactions and the committer share.
struct Shared {
    env: Env,
    state: RwLock<State>,
    queue: RwLock<Option<mpsc::Sender<Request>>>,
    /// Room in the queue.
    room: Arc<Semaphore>,
    disk: Arc<Room>,
    /// Wakes those who wait for a failure.
    failed: Notify,
}

/// What a new transaction finds.
enum State {
    Open(Arc<Published>),
    Failed(Error),
    Closed,
}

impl EmbeddedKv {
    /// Opens the store in `path`, or creates one there when the directory is empty or missing.
    ///
    /// # Errors
    /// `Busy` when another process has it, `Unsupported` for a format of another version, `Invalid` for
    /// a directory with something else in it, `Corrupt`, `NoSpace` or `Local`.
    pub async fn open(path: impl AsRef<Path>, env: &Env, options: Options) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let what = format!("store in {}", path.display());
        let directory = lock(&path, env).await.context(&what)?;
        let opened = env.blocking(move || directory.open(options)).await?.context(&what)?;
        let (sender, queue) = mpsc::channel(QUEUE_KIB as usize);
        let shared = Arc::new(Shared::new(env, &opened, sender));
        let committer = Committer::new(opened, queue, Arc::clone(&shared));
        let thread = env.spawn_thread("kv-commit", move || committer.run()).context(&what)?;
        tracing::info!(path = %path.display(), "store opened");
        Ok(Self { shared, committer: Mutex::new(Some(thread)), path })
    }

    /// Ends when the engine has failed: nothing works any more until it is opened anew.
    pub async fn failed(&self) {
        loop {
            let failed = self.shared.failed.notified();
            if matches!(*self.shared.state.read(), State::Failed(_)) {
                return;
            }
            failed.await;
        }
    }

    /// Makes what waits durable, and lets go of the directory. Transactions that are still open see
    /// `Cancelled` when they commit, and keep the directory until they are dropped.
    ///
    /// # Errors
    /// `DiskFailed` when the engine had failed.
    pub async fn close(&self) -> Result<()> {
        self.shared.queue.write().take();
        let thread = self.committer.lock().take();
        if let Some(thread) = thread {
            let ended = self.shared.env.blocking(move || thread.join()).await?;
            ended.map_err(|_| Error::internal("the committer panicked"))?;
            tracing::info!(path = %self.path.display(), "store closed");
        }
        match &*self.shared.state.read() {
            State::Failed(error) => Err(error.clone()),
            State::Open(_) | State::Closed => Ok(()),
        }
    }
}

async fn lock(path: &Path, env: &Env) -> Result<Directory> {
    let deadline = env.deadline_after(LOCK_TIME_MAX);
    loop {
        let path = path.to_path_buf();
        match env.blocking(move || Directory::lock(&path)).await? {
            Err(error) if error.code() == Code::Busy && !deadline.passed(env.now()) => {
                env.sleep(Duration::from_millis(20)).await;
            }
            outcome => return outcome,
        }
    }
}

impl Drop for EmbeddedKv {
    /// The committer finishes what waits, then lets go of the directory.
    fn drop(&mut self) {
        self.shared.queue.write().take();
    }
}

#[async_trait]
impl Kv for EmbeddedKv {
    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        let published = self.shared.published()?;
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(OptimisticTransaction::new(shared, &self.shared.env, published)))
    }

    fn may_grow(&self) -> Result<()> {
        self.shared.disk.may_grow()
    }

    fn view(&self) -> Result<Option<Arc<dyn Snapshot>>> {
        Ok(Some(self.shared.published()?))
    }

    /// By the lock of its directory.
    fn is_exclusive(&self) -> bool {
        true
    }
}

impl Shared {
    fn new(env: &Env, opened: &Opened, queue: mpsc::Sender<Request>) -> Self {
        Self {
            env: env.clone(),
            state: RwLock::new(State::Open(Arc::new(opened.publish(0)))),
            queue: RwLock::new(Some(queue)),
            room: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
            disk: Arc::clone(&opened.room),
            failed: Notify::new(),
        }
    }

    fn fail(&self, error: Error) {
        *self.state.write() = State::Failed(error);
        self.failed.notify_waiters();
    }

    fn published(&self) -> Result<Arc<Published>> {
        match &*self.state.read() {
            State::Open(published) => Ok(Arc::clone(published)),
            State::Failed(error) => Err(error.clone()),
            State::Closed => Err(closed()),
        }
    }
}

#[async_trait]
impl Engine for Shared {
    type Snapshot = Published;

    async fn commit(&self, commit: Commit) -> Result<()> {
        let _waiting = kiln_telemetry::metrics::KV_WAITING.hold();
        let kib = u32::try_from(commit.writes.bytes() >> 10).unwrap_or(QUEUE_KIB - 1) + 1;
        let room = Arc::clone(&self.room).acquire_many_owned(kib);
        let room = self.env.timeout(ROOM_TIME_MAX, "room in the commit queue", room).await;
        let room = room.map_err(|_| {
            let message = format!("no room in the commit queue within {ROOM_TIME_MAX:?}");
            Error::new(Code::Overloaded, message).with_hint("not committed; the disk is too slow")
        })?;
        let room = room.map_err(|_| closed())?;
        let (answer, outcome) = oneshot::channel();
        let request = Request { commit, answer, _room: room };
        let Some(queue) = self.queue.read().clone() else { return Err(closed()) };
        queue.try_send(request).map_err(|_| closed())?;
        drop(queue);
        match self.env.timeout(ANSWER_TIME_MAX, "commit", outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(self.published().err().unwrap_or_else(closed)),
            Err(_) => {
                let message = format!("the disk did not answer within {ANSWER_TIME_MAX:?}");
                Err(Error::new(Code::MaybeCommitted, message))
            }
        }
    }
}

fn closed() -> Error {
    Error::new(Code::Cancelled, "the store is closed")
}
