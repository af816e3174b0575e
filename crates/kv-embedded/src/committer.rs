//! The one thread that writes: groups of transactions, one sync each.

use crate::directory::Opened;
use crate::snapshot::{Published, failed};
use crate::{Shared, State};
use fjall::PersistMode;
use kiln_kv::KeyRange;
use kiln_kv::history::History;
use kiln_kv::optimistic::{Changes, Commit, Stored};
use kiln_telemetry::metrics::{KV_COMMITS, KV_CONFLICTS, KV_GROUP, KV_SYNC_DURATION};
use kiln_types::{Code, Error, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// How long the writes are kept against which transactions are validated: longer than a transaction
/// lives and waits, so that only a disk that stalls makes it too old.
const HISTORY_TIME: Duration = Duration::from_secs(4);
/// The most transactions, and about the most bytes, that share one sync.
const GROUP_MAX: usize = 1024;
const GROUP_BYTES_MAX: usize = 8 << 20;

/// A commit that waits for its group.
pub(crate) struct Request {
    pub(crate) commit: Commit,
    pub(crate) answer: oneshot::Sender<Result<()>>,
    pub(crate) _room: OwnedSemaphorePermit,
}

pub(crate) struct Committer {
    queue: mpsc::Receiver<Request>,
    shared: Arc<Shared>,
    history: History,
    published: Arc<Published>,
    /// Last, so that the lock of the directory goes when nothing reads there any more.
    opened: Opened,
}

/// What is stored once the members of a group so far have committed.
struct Group {
    before: Arc<Published>,
    changes: Changes,
}

impl Committer {
    pub(crate) fn new(opened: Opened, queue: mpsc::Receiver<Request>, shared: Arc<Shared>) -> Self {
        let published = Arc::new(opened.publish(0));
        Self { opened, queue, shared, history: History::new(0, HISTORY_TIME), published }
    }

    /// Runs until every sender is gone and the queue is empty.
    pub(crate) fn run(mut self) {
        let _panic = FailOnPanic(Arc::clone(&self.shared));
        while let Some(first) = self.queue.blocking_recv() {
            let requests = self.group(first);
            self.commit(requests);
        }
        let mut state = self.shared.state.write();
        if matches!(*state, State::Open(_)) {
            *state = State::Closed;
        }
    }

    /// Takes what waits.
    fn group(&mut self, first: Request) -> Vec<Request> {
        let mut bytes = first.commit.writes.bytes();
        let mut requests = vec![first];
        while requests.len() < GROUP_MAX && bytes < GROUP_BYTES_MAX {
            let Ok(request) = self.queue.try_recv() else { break };
            bytes += request.commit.writes.bytes();
            requests.push(request);
        }
        requests
    }

    /// Validates, writes, syncs, publishes and answers, in this order.
    fn commit(&mut self, requests: Vec<Request>) {
        if let Err(full) = self.opened.room.check() {
            requests.into_iter().for_each(|request| drop(request.answer.send(Err(full.clone()))));
            return;
        }
        let version = self.published.version + 1;
        let mut group = Group { before: Arc::clone(&self.published), changes: Changes::new() };
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            let outcome = self.shared.published().map(drop);
            let outcome = outcome.and_then(|()| self.admit(&request.commit, version, &mut group));
            answers.push((request.answer, outcome));
        }
        if answers.iter().any(|(_, outcome)| outcome.is_ok()) {
            if let Err(error) = self.write(group.changes) {
                tracing::error!(%error, "the store failed and refuses everything until a restart");
                self.shared.fail(error.clone());
                for (_, outcome) in answers.iter_mut().filter(|(_, outcome)| outcome.is_ok()) {
                    *outcome = Err(error.clone());
                }
            } else {
                self.publish(version);
            }
        }
        count(&answers);
        for (answer, outcome) in answers {
            // Whoever gave up waiting has been told `MaybeCommitted`.
            let _ = answer.send(outcome);
        }
    }

    /// Validates one member against everything before it, and adds what it writes to the group.
    fn admit(&mut self, commit: &Commit, version: u64, group: &mut Group) -> Result<()> {
        self.history.validate(commit)?;
        let changes = commit.changes(group)?;
        group.changes.extend(changes);
        for range in commit.writes.conflict_ranges() {
            self.history.record(range, version);
        }
        Ok(())
    }

    fn write(&self, changes: Changes) -> Result<()> {
        let mut batch = self.opened.database.batch().durability(Some(PersistMode::SyncData));
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&self.opened.keyspace, key, value),
                None => batch.remove(&self.opened.keyspace, key),
            }
        }
        let start = self.shared.env.now();
        batch.commit().map_err(|error| failed("commit", &error))?;
        KV_SYNC_DURATION.record_duration(self.shared.env.now().since(start));
        Ok(())
    }

    fn publish(&mut self, version: u64) {
        self.history.advance(version, self.shared.env.now());
        self.published = Arc::new(self.opened.publish(version));
        *self.shared.state.write() = State::Open(Arc::clone(&self.published));
    }
}

impl Stored for Group {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.changes.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.before.value(key),
        }
    }

    fn keys(&self, range: &KeyRange, most: usize) -> Result<Vec<Vec<u8>>> {
        let is_unchanged = |key: &[u8]| !self.changes.contains_key(key);
        let mut keys = self.before.keys(range, most, is_unchanged)?;
        let changed = self.changes.range(range.start.clone()..range.end.clone());
        let added = changed.filter(|(_, value)| value.is_some()).map(|(key, _)| key.clone());
        keys.extend(added.take(most - keys.len()));
        Ok(keys)
    }
}

fn count(answers: &[(oneshot::Sender<Result<()>>, Result<()>)]) {
    let committed = answers.iter().filter(|(_, outcome)| outcome.is_ok()).count() as u64;
    let is_conflict =
        |outcome: &Result<()>| outcome.as_ref().is_err_and(|error| error.code() == Code::Conflict);
    let conflicts = answers.iter().filter(|(_, outcome)| is_conflict(outcome)).count() as u64;
    KV_COMMITS.add(committed);
    KV_CONFLICTS.add(conflicts);
    if committed > 0 {
        KV_GROUP.record(committed);
    }
}

/// Fails the engine when the committer panics: what it had in hand is in doubt.
struct FailOnPanic(Arc<Shared>);

impl Drop for FailOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = Error::new(Code::DiskFailed, "the committer panicked");
            let error = error.with_hint("a defect; restart the server and report it");
            self.0.fail(error);
        }
    }
}

#[cfg(test)]
#[path = "committer_tests.rs"]
mod tests;
