//! Telling clients what other clients changed, so that they drop it from their caches.
//!
//! A transaction notes what it changes ([`Changes`]); once it is committed, and before it is
//! answered, the [`Hub`] puts that into one ring for all [`Watcher`]s. Each of them has its own
//! place in the ring, takes what lies before it as one message, and learns that it lost something
//! when the ring has overtaken it.
//!
//! Invariant: nothing is committed of which a watcher is told neither what it was nor that
//! something was lost. What is told may not have happened.

use bytes::Bytes;
use kiln_env::Env;
use kiln_types::{ClientId, Code, Error, InodeId, Monotonic, Result};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};

/// Transactions in the ring.
const RING: usize = 4096;
/// The most watchers of one server.
const WATCHERS_MAX: usize = 10_000;
/// The most changes of one message; more are told as a loss.
const CHANGES_MAX: usize = 4096;
/// A watcher hears something at least this often.
const BEAT: Duration = Duration::from_secs(1);
/// How long changes are collected after a message, so that a busy server sends few of them.
const PAUSE: Duration = Duration::from_millis(1);
/// The same for a confined client, for which every change of anybody is a loss.
const PAUSE_CONFINED: Duration = Duration::from_millis(100);
/// A commit whose caller went away is decided after this time.
const COMMIT_TIME_MAX: Duration = Duration::from_secs(15);

/// What changed, without order or number: telling it twice does no harm.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Changes {
    lost: bool,
    inodes: BTreeMap<InodeId, bool>,
    names: BTreeSet<(InodeId, Bytes)>,
    unlocked: BTreeSet<InodeId>,
    appends: BTreeSet<InodeId>,
}

impl Changes {
    /// Anything may have changed.
    pub(crate) fn anything() -> Self {
        Self { lost: true, ..Self::default() }
    }

    /// Whether anything may have changed; then nothing is told one by one.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.lost && self.count() == 0
    }

    /// Inodes whose attributes changed or that are gone; `true`: their content changed, too.
    pub fn inodes(&self) -> impl Iterator<Item = (InodeId, bool)> {
        self.inodes.iter().map(|(inode, content)| (*inode, *content))
    }

    /// Names that were made, removed, or lead to something else.
    pub fn names(&self) -> impl Iterator<Item = (InodeId, &Bytes)> {
        self.names.iter().map(|(parent, name)| (*parent, name))
    }

    /// Inodes on which locks ended that somebody waits for.
    pub fn unlocked_inodes(&self) -> impl Iterator<Item = InodeId> {
        self.unlocked.iter().copied()
    }

    /// Inodes to which somebody wants to append.
    pub fn appends(&self) -> impl Iterator<Item = InodeId> {
        self.appends.iter().copied()
    }

    fn count(&self) -> usize {
        self.inodes.len() + self.names.len() + self.unlocked.len() + self.appends.len()
    }

    /// Attributes of an inode change.
    pub(crate) fn attr(&mut self, inode: InodeId) {
        self.inodes.entry(inode).or_insert(false);
    }

    /// Content and attributes of a file change.
    pub(crate) fn content(&mut self, inode: InodeId) {
        self.inodes.insert(inode, true);
    }

    /// What a directory has under a name changes.
    pub(crate) fn name(&mut self, parent: InodeId, name: &[u8]) {
        self.names.insert((parent, Bytes::copy_from_slice(name)));
    }

    /// Locks on an inode end that somebody waits for.
    pub(crate) fn unlocked(&mut self, inode: InodeId) {
        self.unlocked.insert(inode);
    }

    /// Somebody wants the right to append to an inode, which another client has.
    pub(crate) fn append(&mut self, inode: InodeId) {
        self.appends.insert(inode);
    }

    /// Adds others.
    fn extend(&mut self, others: &Self) {
        if self.lost {
            return;
        }
        if others.lost || self.count() + others.count() > CHANGES_MAX {
            *self = Self::anything();
            return;
        }
        for (inode, content) in &others.inodes {
            *self.inodes.entry(*inode).or_insert(false) |= content;
        }
        self.names.extend(others.names.iter().cloned());
        self.unlocked.extend(&others.unlocked);
        self.appends.extend(&others.appends);
    }
}

/// What one transaction changed.
#[derive(Debug)]
struct Told {
    /// The client that asked for it.
    by: Option<ClientId>,
    changes: Changes,
}

/// Where everything that is committed is told.
pub(crate) struct Hub {
    env: Env,
    /// `None` once the server stops.
    ring: RwLock<Option<broadcast::Sender<Arc<Told>>>>,
}

impl Hub {
    pub(crate) fn new(env: Env) -> Arc<Self> {
        let ring = RwLock::new(Some(broadcast::Sender::new(RING)));
        Arc::new(Self { env, ring })
    }

    /// Begins a transaction of `by`.
    pub(crate) fn telling(self: &Arc<Self>, by: Option<ClientId>) -> Arc<Telling> {
        Arc::new(Telling { hub: Arc::clone(self), by, changes: Mutex::default() })
    }

    /// Tells `client` what others change from now on.
    pub(crate) fn watch(&self, client: ClientId, confined: bool) -> Result<Watcher> {
        let ring = self.ring.read();
        let ring = ring.as_ref();
        let ring = ring.ok_or_else(|| Error::new(Code::Cancelled, "the server stops"))?;
        if ring.receiver_count() >= WATCHERS_MAX {
            let text = format!("{WATCHERS_MAX} clients watch this server");
            return Err(Error::new(Code::Overloaded, text));
        }
        let (env, ring) = (self.env.clone(), ring.subscribe());
        Ok(Watcher { env, client, confined, ring, quiet_until: None })
    }

    /// Ends all watchers.
    pub(crate) fn close(&self) {
        self.ring.write().take();
    }

    fn tell(&self, told: Arc<Told>) {
        if let Some(ring) = &*self.ring.read() {
            // An error: nobody watches.
            let _ = ring.send(told);
        }
    }
}

/// What a transaction changes, until it was told.
pub(crate) struct Telling {
    hub: Arc<Hub>,
    by: Option<ClientId>,
    changes: Mutex<Changes>,
}

impl Telling {
    /// An attempt to commit this begins; earlier attempts may have been successful unnoticed.
    pub(crate) fn note(&self, changes: &Changes) {
        if !changes.is_empty() {
            self.changes.lock().extend(changes);
        }
    }

    /// The transaction is committed.
    pub(crate) fn done(&self) {
        if let Some(told) = self.take() {
            self.hub.tell(told);
        }
    }

    fn take(&self) -> Option<Arc<Told>> {
        let changes = std::mem::take(&mut *self.changes.lock());
        (!changes.is_empty()).then(|| Arc::new(Told { by: self.by, changes }))
    }
}

impl Drop for Telling {
    /// A transaction that failed or that nobody waits for any more may have been committed, or be
    /// committed yet: it is told now, and again when that is over.
    fn drop(&mut self) {
        let Some(told) = self.take() else { return };
        self.hub.tell(Arc::clone(&told));
        let hub = Arc::clone(&self.hub);
        let again = async move {
            hub.env.sleep(COMMIT_TIME_MAX).await;
            hub.tell(told);
        };
        self.hub.env.spawn("late commit", again).detach();
    }
}

/// One client's place in the ring.
pub struct Watcher {
    env: Env,
    client: ClientId,
    confined: bool,
    ring: broadcast::Receiver<Arc<Told>>,
    /// When the next message may come; `None` before the first one.
    quiet_until: Option<Monotonic>,
}

impl Watcher {
    /// The next message: anything may have changed before the first one, later what changed since
    /// the last one, nothing when nothing did for a second. `None` when the server stops.
    pub async fn next(&mut self) -> Option<Changes> {
        let Some(quiet_until) = self.quiet_until else {
            self.quiet_until = Some(self.env.now());
            return Some(Changes::anything());
        };
        let left = quiet_until.since(self.env.now());
        if !left.is_zero() {
            self.env.sleep(left).await;
        }
        let deadline = self.env.deadline_after(BEAT);
        let mut changes = Changes::default();
        while changes.is_empty() {
            let env = self.env.clone();
            let Ok(received) = env.until(deadline, "a change", self.ring.recv()).await else {
                return Some(changes);
            };
            match received {
                Ok(told) => self.take(&mut changes, &told),
                Err(RecvError::Lagged(_)) => changes = Changes::anything(),
                Err(RecvError::Closed) => return None,
            }
        }
        for _ in 0..RING {
            match self.ring.try_recv() {
                Ok(told) => self.take(&mut changes, &told),
                Err(TryRecvError::Lagged(_)) => changes = Changes::anything(),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        let pause = if self.confined { PAUSE_CONFINED } else { PAUSE };
        self.quiet_until = Some(self.env.now().plus(pause));
        Some(changes)
    }

    fn take(&self, changes: &mut Changes, told: &Told) {
        if told.by == Some(self.client) {
            return;
        }
        match self.confined {
            true => *changes = Changes::anything(),
            false => changes.extend(&told.changes),
        }
    }
}
