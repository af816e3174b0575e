//! The memory engine: the reference for every other one, and the simulator's store.

use crate::history::History;
use crate::optimistic::{Commit, Engine, OptimisticTransaction, Snapshot, Stored, Visit};
use crate::{KeyRange, Kv, RangeOptions, TRANSACTION_TIME_MAX, Transaction};
use async_trait::async_trait;
use kiln_env::Env;
use kiln_types::{Code, Error, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::Poll;

/// Every version of each key that a snapshot may still ask for, oldest first; `None` = removed.
type Versions = Vec<(u64, Option<Vec<u8>>)>;

/// A store in memory, as long as a clone of it lives. Clones share the store.
///
/// In the simulator the fault points `kv.conflict` (a commit fails with `Conflict`) and `kv.maybe`
/// (a commit is applied or not, and answers `MaybeCommitted`) strike.
#[derive(Clone)]
pub struct MemoryKv {
    store: Arc<Store>,
}

struct Store {
    env: Env,
    state: Mutex<State>,
}

struct State {
    keys: BTreeMap<Vec<u8>, Versions>,
    history: History,
    version: u64,
    /// Keys that hold more than one version or a removal, to be looked at again.
    stale: Vec<Vec<u8>>,
}

impl MemoryKv {
    /// An empty store.
    pub fn new(env: &Env) -> Self {
        let state = State {
            keys: BTreeMap::new(),
            history: History::new(0, TRANSACTION_TIME_MAX * 2),
            version: 0,
            stale: Vec::new(),
        };
        Self { store: Arc::new(Store { env: env.clone(), state: Mutex::new(state) }) }
    }

    /// The number of keys stored.
    pub fn key_count(&self) -> usize {
        let state = self.store.state.lock();
        state.keys.values().filter(|versions| newest(versions, u64::MAX).is_some()).count()
    }

    /// The number of versions kept, of all keys.
    pub fn version_count(&self) -> usize {
        self.store.state.lock().keys.values().map(Vec::len).sum()
    }
}

#[async_trait]
impl Kv for MemoryKv {
    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        self.store.turn().await;
        let version = self.store.state.lock().version;
        let view = Arc::new(View { store: Arc::clone(&self.store), version });
        Ok(Box::new(OptimisticTransaction::new(Arc::clone(&self.store), &self.store.env, view)))
    }

    fn view(&self) -> Result<Option<Arc<dyn Snapshot>>> {
        let state = self.store.state.lock();
        let newest = |(key, versions): (&Vec<u8>, &Versions)| {
            Some((key.clone(), newest(versions, u64::MAX)?.to_vec()))
        };
        Ok(Some(Arc::new(Copy {
            version: state.version,
            pairs: state.keys.iter().filter_map(newest).collect(),
        })))
    }

    /// Those who share it are of one process, and whoever begins anew there has ended what it was.
    fn is_exclusive(&self) -> bool {
        true
    }
}

#[async_trait]
impl Engine for Store {
    type Snapshot = View;

    /// Lets the executor run something else first.
    async fn turn(&self) {
        let mut yielded = false;
        std::future::poll_fn(|context| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    async fn commit(&self, commit: Commit) -> Result<()> {
        self.turn().await;
        if self.env.fault("kv.conflict") {
            return Err(Error::new(Code::Conflict, "an injected conflict"));
        }
        let is_lost = self.env.fault("kv.maybe");
        if !is_lost || self.env.random_below(2) == 0 {
            self.state.lock().commit(&commit, &self.env)?;
        }
        self.turn().await;
        match is_lost {
            true => Err(Error::new(Code::MaybeCommitted, "an injected loss of the answer")),
            false => Ok(()),
        }
    }
}

impl State {
    fn commit(&mut self, commit: &Commit, env: &Env) -> Result<()> {
        self.history.validate(commit)?;
        let changes = commit.changes(self)?;
        self.version += 1;
        for (key, value) in changes {
            let versions = self.keys.entry(key.clone()).or_default();
            versions.push((self.version, value));
            self.stale.push(key);
        }
        for range in commit.writes.conflict_ranges() {
            self.history.record(range, self.version);
        }
        self.history.advance(self.version, env.now());
        self.collect();
        Ok(())
    }

    /// Drops the versions that no snapshot can ask for any more.
    fn collect(&mut self) {
        if self.stale.len() < self.keys.len().max(1024) {
            return;
        }
        let oldest = self.history.oldest();
        let mut stale = std::mem::take(&mut self.stale);
        stale.sort_unstable();
        stale.dedup();
        stale.retain(|key| {
            let Some(versions) = self.keys.get_mut(key) else { return false };
            let visible = versions.iter().rposition(|(version, _)| *version <= oldest);
            versions.drain(..visible.unwrap_or(0));
            if matches!(versions.as_slice(), [(version, None)] if *version <= oldest) {
                self.keys.remove(key);
                return false;
            }
            versions.len() > 1 || matches!(versions.as_slice(), [(_, None)])
        });
        self.stale = stale;
    }
}

impl Stored for State {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let versions = self.keys.get(key);
        Ok(versions.and_then(|versions| newest(versions, u64::MAX)).map(<[u8]>::to_vec))
    }

    fn keys(&self, range: &KeyRange, most: usize) -> Result<Vec<Vec<u8>>> {
        let all = self.keys.range(range.start.clone()..range.end.clone());
        let stored = all.filter(|(_, versions)| newest(versions, u64::MAX).is_some());
        Ok(stored.take(most).map(|(key, _)| key.clone()).collect())
    }
}

fn newest(versions: &Versions, at: u64) -> Option<&[u8]> {
    let seen = versions.iter().rev().find(|(version, _)| *version <= at);
    seen.and_then(|(_, value)| value.as_deref())
}

/// The store as it was at `version`.
struct View {
    store: Arc<Store>,
    version: u64,
}

impl View {
    fn check(&self, state: &State) -> Result<()> {
        match self.version < state.history.oldest() {
            true => Err(Error::new(Code::TransactionTooOld, "the snapshot is no longer kept")),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Snapshot for View {
    fn version(&self) -> u64 {
        self.version
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let state = self.store.state.lock();
        self.check(&state)?;
        let versions = state.keys.get(key);
        Ok(versions.and_then(|versions| newest(versions, self.version)).map(<[u8]>::to_vec))
    }

    async fn scan(&self, range: &KeyRange, options: RangeOptions, visit: Visit<'_>) -> Result<()> {
        let state = self.store.state.lock();
        self.check(&state)?;
        let mut show = |(key, versions): (&Vec<u8>, &Versions)| match newest(versions, self.version)
        {
            Some(value) => visit(key, value),
            None => ControlFlow::Continue(()),
        };
        let mut pairs = state.keys.range(range.start.clone()..range.end.clone());
        let _ = match options.reverse {
            false => pairs.try_for_each(&mut show),
            true => pairs.rev().try_for_each(&mut show),
        };
        Ok(())
    }
}

/// Everything that was committed, for as long as it is wanted.
struct Copy {
    version: u64,
    pairs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[async_trait]
impl Snapshot for Copy {
    fn version(&self) -> u64 {
        self.version
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.pairs.get(key).cloned())
    }

    async fn scan(&self, range: &KeyRange, options: RangeOptions, visit: Visit<'_>) -> Result<()> {
        let mut show = |(key, value): (&Vec<u8>, &Vec<u8>)| visit(key, value);
        let mut pairs = self.pairs.range(range.start.clone()..range.end.clone());
        let _ = match options.reverse {
            false => pairs.try_for_each(&mut show),
            true => pairs.rev().try_for_each(&mut show),
        };
        Ok(())
    }
}
