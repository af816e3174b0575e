//! The transactional key-value trait, the memory engine and the conformance suite.
//!
//! A [`Transaction`] reads a consistent snapshot of committed, durable data, buffers its writes, and
//! commits serializably: it fails with `Conflict` when a range that it read was written since its
//! snapshot. Anyone may write at the same time, through any number of engines; no commit version is
//! exposed. [`transact`] is the retry loop that callers use.
//!
//! Keys are byte strings in byte order, not empty, and begin with a byte below [`KEY_END`].
//!
//! Invariant: the limits below hold on every engine, so that what runs on one runs on all.
#![forbid(unsafe_code)]

pub mod conformance;
pub mod dump;
pub mod history;
mod key;
mod memory;
pub mod optimistic;
mod range;
pub mod range_set;
mod transact;
pub mod writes;

pub use key::{KeyReader, KeyWriter};
pub use memory::MemoryKv;
pub use range::{KEY_END, KeyRange, RangeOptions, successor};
pub use transact::{ATTEMPTS_MAX, Body, RETRY_TIME_MAX, transact};

use crate::optimistic::Snapshot;
use async_trait::async_trait;
use kiln_types::Result;
use std::sync::Arc;
use std::time::Duration;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// The longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 90_000;
/// The most a transaction carries, in bytes: keys and values written, and keys of conflict ranges.
pub const TRANSACTION_BYTES_MAX: usize = 1_000_000;
/// The longest time from `begin` to `commit`.
pub const TRANSACTION_TIME_MAX: Duration = Duration::from_secs(1);
/// The most one [`Transaction::range`] returns, in bytes of keys and values.
pub const RANGE_BYTES_MAX: usize = 16 << 20;
/// The most stored keys that the [`Transaction::clear_range`] calls of one transaction remove.
pub const CLEARED_KEYS_MAX: usize = 100_000;

/// A store of ordered keys with serializable transactions.
#[async_trait]
pub trait Kv: Send + Sync + 'static {
    /// Begins a transaction on a consistent snapshot of everything that is committed and durable.
    ///
    /// # Errors
    /// What the engine reports of its disk or network (`DiskFailed`, `Unreachable`, `Cancelled`).
    async fn begin(&self) -> Result<Box<dyn Transaction>>;

    /// Whether there is room for what grows. Transactions that remove something, or that keep the
    /// service going, go on for a while without.
    ///
    /// # Errors
    /// `NoSpace`.
    fn may_grow(&self) -> Result<()> {
        Ok(())
    }

    /// A view of everything that is committed, which stays as it is for as long as somebody has it: for a backup
    /// while the store is in use. `None`: the engine has backups of its own.
    ///
    /// # Errors
    /// The engine's own.
    fn view(&self) -> Result<Option<Arc<dyn Snapshot>>> {
        Ok(None)
    }

    /// Whether whoever had opened the store before is gone for certain. Otherwise others may have it open
    /// at the same time, and learn of each other only by what they read in their transactions.
    fn is_exclusive(&self) -> bool {
        false
    }
}

#[async_trait]
impl<K: Kv + ?Sized> Kv for Arc<K> {
    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        (**self).begin().await
    }

    fn may_grow(&self) -> Result<()> {
        (**self).may_grow()
    }

    fn view(&self) -> Result<Option<Arc<dyn Snapshot>>> {
        (**self).view()
    }

    fn is_exclusive(&self) -> bool {
        (**self).is_exclusive()
    }
}

/// A transaction; dropping it without [`commit`](Self::commit) discards it.
///
/// Reads see the transaction's own writes. A write above the limits is reported by `commit`.
#[async_trait]
pub trait Transaction: Send {
    /// The value of `key`; the transaction conflicts with later writes to it.
    ///
    /// # Errors
    /// `TransactionTooOld`, `TransactionTooLarge` or `Invalid` for a bad key, or the engine's own.
    async fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// The value of `key`, without a conflict.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    async fn snapshot_get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// The pairs in `range`, in order. The conflict covers what was scanned: the whole range, or up to
    /// the last pair returned when the limit cut it; keys that appear there later conflict as well.
    ///
    /// # Errors
    /// As [`get`](Self::get); `TransactionTooLarge` for a result above [`RANGE_BYTES_MAX`].
    async fn range(
        &mut self,
        range: KeyRange,
        options: RangeOptions,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>>;

    /// Sets `key` to `value`.
    fn set(&mut self, key: &[u8], value: &[u8]);

    /// Removes `key`.
    fn clear(&mut self, key: &[u8]);

    /// Removes every key in `range`, also those that others add before this commits. Removing more
    /// than [`CLEARED_KEYS_MAX`] stored keys fails the commit.
    fn clear_range(&mut self, range: KeyRange);

    /// Adds `delta` to the i64 (little-endian, absent = 0, wrapping) at `key`, without reading it: two
    /// transactions that add to one key do not conflict.
    fn add(&mut self, key: &[u8], delta: i64);

    /// Raises the u64 (little-endian, absent = 0) at `key` to at least `value`, without reading it.
    fn max(&mut self, key: &[u8], value: u64);

    /// Makes the transaction conflict with later writes in `range`, as if it had read it.
    fn add_read_conflict(&mut self, range: KeyRange);

    /// Makes others that read in `range` conflict, as if this transaction wrote there.
    fn add_write_conflict(&mut self, range: KeyRange);

    /// Makes the writes durable, all or none. One that only read always succeeds: it read a snapshot.
    ///
    /// # Errors
    /// `Conflict` and `TransactionTooOld`: not committed, run it again. `MaybeCommitted`: unknown.
    /// `TransactionTooLarge`, `Invalid`: never will be. `Corrupt`: `add` or `max` met a value that
    /// is not 8 bytes; not committed. Or the engine's own, such as `DiskFailed`: unknown.
    async fn commit(self: Box<Self>) -> Result<()>;
}
