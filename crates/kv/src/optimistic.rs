//! The transaction of an engine that validates at commit: it reads one snapshot, remembers what it
//! read, and hands both its reads and its writes to the engine.

use crate::range_set::RangeSet;
use crate::writes::{Merge, Write, Writes, check_key, check_range};
use crate::{
    CLEARED_KEYS_MAX, KeyRange, RANGE_BYTES_MAX, RangeOptions, TRANSACTION_TIME_MAX, Transaction,
    successor,
};
use async_trait::async_trait;
use kiln_env::Env;
use kiln_types::{Code, Error, Monotonic, Result};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// What a scan shows keys and values to, until it breaks.
pub type Visit<'a> = &'a mut (dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + Send);

/// A consistent view of what is stored.
#[async_trait]
pub trait Snapshot: Send + Sync {
    /// The version that it shows.
    fn version(&self) -> u64;

    /// The value of `key`.
    ///
    /// # Errors
    /// `TransactionTooOld` when the view is gone, or the engine's own.
    async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Shows the pairs of a range that is not empty to `visit`, in order or in reverse, until it breaks,
    /// which it usually does before it has seen more than `options.limit`.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    async fn scan(&self, range: &KeyRange, options: RangeOptions, visit: Visit<'_>) -> Result<()>;
}

/// What an engine validates and applies.
#[derive(Debug)]
pub struct Commit {
    /// The version that the transaction read.
    pub snapshot: u64,
    /// What it read.
    pub reads: RangeSet,
    /// What it writes.
    pub writes: Writes,
}

/// What is stored at the moment of a commit.
pub trait Stored {
    /// The value of `key`.
    ///
    /// # Errors
    /// The engine's own.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// The keys in `range`, in any order; no more than `most`.
    ///
    /// # Errors
    /// The engine's own.
    fn keys(&self, range: &KeyRange, most: usize) -> Result<Vec<Vec<u8>>>;
}

/// What a commit leaves at the keys that it touches; `None` = removed.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

impl Commit {
    /// Resolves the writes over what is `stored`.
    ///
    /// # Errors
    /// `TransactionTooLarge` when more than [`CLEARED_KEYS_MAX`] keys are cleared by ranges, `Corrupt`
    /// when a merge meets a value that is not 8 bytes, or the engine's own.
    pub fn changes(&self, stored: &impl Stored) -> Result<Changes> {
        let mut changes = Changes::new();
        for range in self.writes.cleared().iter() {
            let most = CLEARED_KEYS_MAX + 1 - changes.len();
            changes.extend(stored.keys(&range, most)?.into_iter().map(|key| (key, None)));
            if changes.len() > CLEARED_KEYS_MAX {
                let message = format!("clear_range over more than {CLEARED_KEYS_MAX} stored keys");
                let error = Error::new(Code::TransactionTooLarge, message);
                return Err(error.with_hint("clear smaller ranges, in several transactions"));
            }
        }
        for key in self.writes.keys().keys() {
            let base = if self.writes.decides(key) { None } else { stored.get(key)? };
            changes.insert(key.clone(), self.writes.overlay(key, base.as_deref())?);
        }
        Ok(changes)
    }
}

/// The engine below an [`OptimisticTransaction`].
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Its snapshots.
    type Snapshot: Snapshot + 'static;

    /// Called before each read, so that the simulator can interleave transactions.
    async fn turn(&self) {}

    /// Validates `commit` and makes it durable.
    ///
    /// # Errors
    /// As [`Transaction::commit`].
    async fn commit(&self, commit: Commit) -> Result<()>;
}

/// A [`Transaction`] over a snapshot of an [`Engine`].
pub struct OptimisticTransaction<E: Engine> {
    engine: Arc<E>,
    env: Env,
    snapshot: Arc<E::Snapshot>,
    begun: Monotonic,
    reads: RangeSet,
    writes: Writes,
}

impl<E: Engine> OptimisticTransaction<E> {
    /// A transaction that begins now, on `snapshot`.
    pub fn new(engine: Arc<E>, env: &Env, snapshot: Arc<E::Snapshot>) -> Self {
        let (reads, writes) = (RangeSet::default(), Writes::default());
        Self { engine, env: env.clone(), snapshot, begun: env.now(), reads, writes }
    }

    fn check_age(&self) -> Result<()> {
        let age = self.env.now().since(self.begun);
        if age <= TRANSACTION_TIME_MAX {
            return Ok(());
        }
        let message = format!("a transaction of {age:.1?}, at most {TRANSACTION_TIME_MAX:?}");
        Err(Error::new(Code::TransactionTooOld, message))
    }

    fn add_read(&mut self, range: KeyRange) {
        if self.writes.admit_range(&range) {
            self.reads.insert(range);
        }
    }
}

#[async_trait]
impl<E: Engine> Transaction for OptimisticTransaction<E> {
    async fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self.snapshot_get(key).await?;
        if !self.writes.decides(key) {
            self.add_read(KeyRange::key(key));
        }
        Ok(value)
    }

    async fn snapshot_get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.engine.turn().await;
        self.check_age()?;
        check_key(key)?;
        let decided = self.writes.decides(key);
        let stored = if decided { None } else { self.snapshot.get(key).await? };
        self.writes.overlay(key, stored.as_deref())
    }

    async fn range(
        &mut self,
        range: KeyRange,
        options: RangeOptions,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.engine.turn().await;
        self.check_age()?;
        check_range(&range)?;
        if range.is_empty() || options.limit == 0 {
            return Ok(Vec::new());
        }
        let mut page = Page { writes: &self.writes, options, pairs: Vec::new(), bytes: 0 };
        page.fill(self.snapshot.as_ref(), &range).await?;
        let pairs = page.pairs;
        if !options.snapshot {
            self.add_read(scanned(range, options, &pairs));
        }
        Ok(pairs)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.writes.set(key, value);
    }

    fn clear(&mut self, key: &[u8]) {
        self.writes.clear(key);
    }

    fn clear_range(&mut self, range: KeyRange) {
        self.writes.clear_range(range);
    }

    fn add(&mut self, key: &[u8], delta: i64) {
        self.writes.merge(key, Merge::Add(delta));
    }

    fn max(&mut self, key: &[u8], value: u64) {
        self.writes.merge(key, Merge::Max(value));
    }

    fn add_read_conflict(&mut self, range: KeyRange) {
        self.add_read(range);
    }

    fn add_write_conflict(&mut self, range: KeyRange) {
        self.writes.add_conflict(range);
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        self.writes.check()?;
        if self.writes.is_empty() {
            return Ok(());
        }
        self.check_age()?;
        let Self { engine, snapshot, reads, writes, .. } = *self;
        let version = snapshot.version();
        drop(snapshot);
        engine.commit(Commit { snapshot: version, reads, writes }).await
    }
}

/// The part of `range` that a read which returned `pairs` depends on.
fn scanned(range: KeyRange, options: RangeOptions, pairs: &[(Vec<u8>, Vec<u8>)]) -> KeyRange {
    match pairs.last() {
        Some((last, _)) if pairs.len() == options.limit => match options.reverse {
            false => KeyRange { start: range.start, end: successor(last) },
            true => KeyRange { start: last.clone(), end: range.end },
        },
        _ => range,
    }
}

/// A page of a range read: the snapshot's pairs, overlaid with the transaction's own writes.
struct Page<'a> {
    writes: &'a Writes,
    options: RangeOptions,
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
}

impl Page<'_> {
    async fn fill(&mut self, snapshot: &impl Snapshot, range: &KeyRange) -> Result<()> {
        let options = self.options;
        let reverse = options.reverse;
        let own = self.writes.keys().range(range.start.clone()..range.end.clone());
        let own: Box<dyn Iterator<Item = (&Vec<u8>, &Write)> + Send> =
            if reverse { Box::new(own.rev()) } else { Box::new(own) };
        let mut own = own.peekable();
        let mut outcome = Ok(());
        let mut visit = |key: &[u8], stored: &[u8]| {
            let is_due = |own: &Vec<u8>| match reverse {
                false => own.as_slice() < key,
                true => own.as_slice() > key,
            };
            while let Some((own_key, _)) = own.next_if(|(own_key, _)| is_due(own_key)) {
                outcome = self.push(own_key, None);
                if outcome.is_err() || self.is_full() {
                    return ControlFlow::Break(());
                }
            }
            own.next_if(|(own_key, _)| own_key.as_slice() == key);
            outcome = self.push(key, Some(stored));
            if outcome.is_err() || self.is_full() {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        snapshot.scan(range, options, &mut visit).await?;
        outcome?;
        for (key, _) in own {
            if self.is_full() {
                break;
            }
            self.push(key, None)?;
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.pairs.len() >= self.options.limit
    }

    fn push(&mut self, key: &[u8], stored: Option<&[u8]>) -> Result<()> {
        let Some(value) = self.writes.overlay(key, stored)? else { return Ok(()) };
        self.bytes += key.len() + value.len();
        if self.bytes > RANGE_BYTES_MAX {
            let message = format!("a range read above {RANGE_BYTES_MAX} bytes");
            let hint = "read it in pages, with a limit";
            return Err(Error::new(Code::TransactionTooLarge, message).with_hint(hint));
        }
        self.pairs.push((key.to_vec(), value));
        Ok(())
    }
}
