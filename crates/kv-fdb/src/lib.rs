//! The key-value engine over a FoundationDB that many servers share.
//!
//! A transaction takes a read version when it begins, reads as of that version, remembers what it read, and
//! buffers its writes. To commit, it hands all of that to FoundationDB as one transaction of the same read version:
//! its reads as read conflict ranges, its writes, and what it wants others to conflict with. So limits and what
//! conflicts are the same as with the other engines, all far below FoundationDB's own (5 s, 10 MB).
//!
//! A cluster's keys begin with its name and a zero byte; several share one FoundationDB. Behind them, at the name,
//! a zero byte and `ff`, stands the format.
//!
//! Invariants: a commit whose outcome is not known is `MaybeCommitted`; nothing is retried in here.
//!
//! Source: FoundationDB's C API, version 730.
#![cfg(feature = "client")]
#![deny(unsafe_code)]

mod client;
mod errors;
mod format;
mod options;
mod view;

pub use options::{CLUSTER_FILE, LIBRARY, Options, Tls};

use crate::errors::{Step, refused};
use crate::view::View;
use async_trait::async_trait;
use foundationdb::options::{ConflictRangeType, MutationType, TransactionOption};
use foundationdb::{Database, FdbResult, Transaction as FdbTransaction};
use futures_util::future::try_join_all;
use kiln_env::Env;
use kiln_kv::optimistic::{Commit, Engine, OptimisticTransaction};
use kiln_kv::writes::{Merge, Write, Writes};
use kiln_kv::{KeyRange, Kv, Transaction};
use kiln_types::{Code, Error, Result};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// How long a read waits for FoundationDB.
const READ_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a commit waits for its outcome.
const COMMIT_TIME_MAX: Duration = Duration::from_secs(10);

/// A store in a FoundationDB.
pub struct FdbKv {
    shared: Arc<Shared>,
}

/// What transactions share.
pub(crate) struct Shared {
    env: Env,
    database: Database,
    /// What all keys begin with.
    prefix: Vec<u8>,
}

impl FdbKv {
    /// Opens the store, or makes it where nothing begins with its name.
    ///
    /// The first store that is opened in a process starts FoundationDB's client there; all others have to name the
    /// same library and certificates.
    ///
    /// # Errors
    /// `NotFound` without the client library or the cluster file, `Unsupported` for a library that is too old or a
    /// format of another version, `Invalid` for a name that something else uses, or `Unreachable`.
    pub async fn open(options: Options, env: &Env) -> Result<Self> {
        let prefix = options.prefix()?;
        let starting = options.clone();
        let database = env.blocking(move || client::open(&starting)).await??;
        let shared = Arc::new(Shared { env: env.clone(), database, prefix });
        format::open(&shared).await?;
        tracing::info!(name = options.name, "store in FoundationDB opened");
        Ok(Self { shared })
    }
}

#[async_trait]
impl Kv for FdbKv {
    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        let view = Arc::new(View::now(&self.shared).await?);
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(OptimisticTransaction::new(shared, &self.shared.env, view)))
    }
}

#[async_trait]
impl Engine for Shared {
    type Snapshot = View;

    async fn commit(&self, commit: Commit) -> Result<()> {
        let _waiting = kiln_telemetry::metrics::KV_WAITING.hold();
        self.check_numbers(&commit).await?;
        let transaction = self.transaction_at(commit.snapshot)?;
        for range in commit.reads.iter() {
            self.add_conflict(&transaction, &range, ConflictRangeType::Read)?;
        }
        self.write(&transaction, &commit.writes)?;
        let committed = transaction.commit();
        match self.env.timeout(COMMIT_TIME_MAX, "commit", committed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(refused(Step::Commit, "commit", *error)),
            Err(_) => {
                let text = format!("FoundationDB did not answer within {COMMIT_TIME_MAX:?}");
                Err(Error::new(Code::MaybeCommitted, text))
            }
        }
    }
}

impl Shared {
    pub(crate) fn transaction(&self) -> Result<FdbTransaction> {
        let made = self.database.create_trx();
        made.map_err(|error| refused(Step::Read, "new transaction", error))
    }

    /// A transaction that reads what was committed up to `version`. It does not look at its own writes.
    fn transaction_at(&self, version: u64) -> Result<FdbTransaction> {
        let transaction = self.transaction()?;
        let set = transaction.set_option(TransactionOption::ReadYourWritesDisable);
        set.map_err(|error| refused(Step::Read, "new transaction", error))?;
        let version = i64::try_from(version).map_err(|_| Error::internal("a read version"))?;
        transaction.set_read_version(version);
        Ok(transaction)
    }

    pub(crate) async fn wait<T>(
        &self,
        what: &str,
        future: impl Future<Output = FdbResult<T>>,
    ) -> Result<T> {
        match self.env.timeout(READ_TIME_MAX, what, future).await {
            Ok(outcome) => outcome.map_err(|error| refused(Step::Read, what, error)),
            Err(_) => {
                let text = format!("FoundationDB, {what}: no answer within {READ_TIME_MAX:?}");
                Err(Error::new(Code::Unreachable, text).with_hint(errors::LOOK))
            }
        }
    }

    pub(crate) fn key(&self, key: &[u8]) -> Vec<u8> {
        [&self.prefix, key].concat()
    }

    fn add_conflict(
        &self,
        transaction: &FdbTransaction,
        range: &KeyRange,
        kind: ConflictRangeType,
    ) -> Result<()> {
        let (start, end) = (self.key(&range.start), self.key(&range.end));
        let added = transaction.add_conflict_range(&start, &end, kind);
        added.map_err(|error| refused(Step::Read, "conflict range", error))
    }

    fn write(&self, transaction: &FdbTransaction, writes: &Writes) -> Result<()> {
        for range in writes.cleared().iter() {
            transaction.clear_range(&self.key(&range.start), &self.key(&range.end));
        }
        for (key, write) in writes.keys() {
            let key = self.key(key);
            match write {
                Write::Set(value) => transaction.set(&key, value),
                Write::Clear => transaction.clear(&key),
                Write::Merge(merges) => merges.iter().for_each(|merge| match merge {
                    Merge::Add(delta) => {
                        transaction.atomic_op(&key, &delta.to_le_bytes(), MutationType::Add);
                    }
                    Merge::Max(value) => {
                        transaction.atomic_op(&key, &value.to_le_bytes(), MutationType::Max);
                    }
                }),
            }
        }
        for range in writes.conflicts().iter() {
            self.add_conflict(transaction, &range, ConflictRangeType::Write)?;
        }
        Ok(())
    }

    /// FoundationDB would cut or fill up what is no number.
    async fn check_numbers(&self, commit: &Commit) -> Result<()> {
        let merged: Vec<_> = commit
            .writes
            .keys()
            .iter()
            .filter_map(|(key, write)| match write {
                Write::Merge(merges) => Some((key, merges)),
                Write::Set(_) | Write::Clear => None,
            })
            .collect();
        if merged.is_empty() {
            return Ok(());
        }
        let transaction = self.transaction_at(commit.snapshot)?;
        let checks = merged.into_iter().map(async |(key, merges)| {
            let stored = self.wait("read", transaction.get(&self.key(key), true)).await?;
            merges.iter().try_for_each(|merge| merge.apply(stored.as_deref()).map(drop))
        });
        try_join_all(checks).await.map(drop)
    }
}
