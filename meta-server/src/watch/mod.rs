//! Telling clients what other clients changed, so that they drop it from their caches.
//!
//! A transaction notes what it changes ([`Changes`]). Once it is committed, the [`Hub`] tells it to all watchers whom
//! it concerns, and it is answered when they have heard it or are gone ([`board`] says who and when). So whoever made
//! a change and got the answer knows that no cache shows anything else.
//!
//! Invariant: nothing is committed of which a watcher is told neither what it was nor that
//! something was lost. What is told may not have happened.

mod board;
#[cfg(test)]
mod board_tests;
mod changes;

pub(crate) use board::{Ask, Due, LEASE};
pub use changes::Changes;

use board::Board;
use kiln_env::Env;
use kiln_types::{ClientId, Code, Deadline, Error, InodeId, Result};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// A watcher hears something at least this often.
const BEAT: Duration = Duration::from_secs(1);
/// A commit whose caller went away is decided after this time.
pub(crate) const COMMIT_TIME_MAX: Duration = Duration::from_secs(15);

/// Where everything that is committed is told.
pub(crate) struct Hub {
    env: Env,
    board: Mutex<Board>,
    /// Wakes watchers that wait for a message.
    bells: Mutex<BTreeMap<ClientId, Arc<Notify>>>,
    /// Some watcher has heard something, or the server stops.
    heard: Notify,
    /// Watchers of an earlier run of this server, whose caches it does not know, and until when they may have any.
    before: Mutex<BTreeSet<ClientId>>,
    before_until: Deadline,
    closed: AtomicBool,
}

impl Hub {
    /// `before`: the clients that may have watched an earlier run.
    pub(crate) fn new(env: Env, before: BTreeSet<ClientId>) -> Arc<Self> {
        Arc::new(Self {
            board: Mutex::default(),
            bells: Mutex::default(),
            heard: Notify::new(),
            before: Mutex::new(before),
            before_until: env.deadline_after(LEASE),
            closed: AtomicBool::new(false),
            env,
        })
    }

    /// Begins a transaction of `by`.
    pub(crate) fn telling(self: &Arc<Self>, by: Option<ClientId>) -> Arc<Telling> {
        Arc::new(Telling { hub: Arc::clone(self), by, changes: Mutex::default() })
    }

    /// The number of the last change.
    pub(crate) fn last(&self) -> u64 {
        self.board.lock().last()
    }

    /// Whether [`Self::hold`] counts for a client.
    pub(crate) fn notes(&self, client: ClientId) -> bool {
        self.board.lock().notes(client)
    }

    /// See [`Board::hold`].
    pub(crate) fn hold(
        &self,
        client: ClientId,
        since: u64,
        attrs: &[InodeId],
        names: &[InodeId],
    ) -> bool {
        let is_fresh = self.board.lock().hold(client, since, attrs, names);
        // Too many holds are a message, too.
        self.ring(client);
        is_fresh
    }

    /// The next message to a watcher, and its number: that anything may have changed if it is a new one, or what
    /// changed since the last one; nothing when nothing did for a second.
    pub(crate) async fn next(&self, client: ClientId, ask: Ask) -> Result<(u64, Changes)> {
        let bell = {
            let mut board = self.board.lock();
            if !board.ask(client, ask, self.env.now()) {
                let text = "too many clients watch this server";
                return Err(Error::new(Code::Overloaded, text));
            }
            let mut bells = self.bells.lock();
            if bells.len() > 2 * board.watchers() {
                bells.retain(|client, _| board.watches(*client));
            }
            Arc::clone(bells.entry(client).or_default())
        };
        self.before.lock().remove(&client);
        self.heard.notify_waiters();
        let deadline = self.env.deadline_after(BEAT);
        loop {
            let rung = bell.notified();
            if self.closed.load(Ordering::Acquire) {
                return Err(Error::new(Code::Cancelled, "the server stops"));
            }
            let is_told = self.board.lock().is_told(client, ask.watch);
            if is_told || self.env.until(deadline, "a change", rung).await.is_err() {
                break;
            }
        }
        let message = self.board.lock().hand(client, ask.watch);
        message.ok_or_else(|| Error::new(Code::Cancelled, "another watch of this client began"))
    }

    /// Ends all watchers.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.bells.lock().values().for_each(|bell| bell.notify_one());
        self.heard.notify_waiters();
    }

    fn ring(&self, client: ClientId) {
        if let Some(bell) = self.bells.lock().get(&client) {
            bell.notify_one();
        }
    }

    fn tell(&self, by: Option<ClientId>, changes: &Changes) -> Vec<Due> {
        let due = self.board.lock().tell(by, changes);
        if changes.is_awaited() {
            self.bells.lock().values().for_each(|bell| bell.notify_one());
        } else {
            due.iter().for_each(|due| self.ring(due.client()));
        }
        due
    }

    /// Waits until all who are due have heard, or have nothing in a cache any more.
    ///
    /// # Errors
    /// `Cancelled` when the server stops before.
    pub(crate) async fn heard(&self, mut due: Vec<Due>) -> Result<()> {
        loop {
            let heard = self.heard.notified();
            let now = self.env.now();
            let mut until = None;
            due.retain(|due| {
                let waits = self.board.lock().waits_until(due, now);
                until = until.max(waits);
                waits.is_some()
            });
            if !self.before_until.passed(now) && !self.before.lock().is_empty() {
                until = until.max(Some(self.before_until.0));
            }
            let Some(until) = until else { return Ok(()) };
            if self.closed.load(Ordering::Acquire) {
                return Err(Error::new(Code::Cancelled, "the server stops"));
            }
            // Late is as good as heard: the loop looks again.
            let _ = self.env.until(Deadline(until), "watchers", heard).await;
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

    /// The transaction is committed. Who has to hear of it.
    pub(crate) fn done(&self) -> Vec<Due> {
        let changes = self.take();
        changes.map_or_else(Vec::new, |changes| self.hub.tell(self.by, &changes))
    }

    fn take(&self) -> Option<Changes> {
        let changes = std::mem::take(&mut *self.changes.lock());
        (!changes.is_empty()).then_some(changes)
    }
}

impl Drop for Telling {
    /// A transaction that failed or that nobody waits for any more may have been committed, or be
    /// committed yet: it is told now, and again when that is over.
    fn drop(&mut self) {
        let Some(changes) = self.take() else { return };
        let (hub, by) = (Arc::clone(&self.hub), self.by);
        hub.tell(by, &changes);
        let again = async move {
            hub.env.sleep(COMMIT_TIME_MAX).await;
            hub.tell(by, &changes);
        };
        self.hub.env.spawn("late commit", again).detach();
    }
}
