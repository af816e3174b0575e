//! Limits as a server knows them, and whether there is a trash, and what transactions do with them.
//!
//! A server keeps them in memory and looks at most every [`FRESH`] whether they changed: so a change costs
//! nothing where no account of it has a limit. Usage is read where there is one, without a conflict, so that
//! changes for one account do not meet; those that are under way at a time do not see each other.

use crate::keys::account_of;
use crate::quota::{self, Delta, accounts};
use crate::records::{self, Inode, Record, Trash};
use crate::store::Store;
use crate::tx::Tx;
use kiln_kv::RangeOptions;
use kiln_types::{Account, InodeId, Monotonic, QuotaLimits, Result, Usage};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// For how long limits count without a look.
const FRESH: Duration = Duration::from_secs(1);
/// Quotas in one page.
pub(crate) const PAGE: usize = 256;

/// All limits, and whether there is a trash.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    by: HashMap<Account, QuotaLimits>,
    /// Whether any is of bytes.
    pub(crate) any_bytes: bool,
    /// Whether what loses its last name goes to the trash.
    pub(crate) trash: bool,
    /// How often all this had changed then.
    changes: u64,
}

impl Limits {
    fn of(&self, account: Account) -> Option<QuotaLimits> {
        self.by.get(&account).copied()
    }
}

/// What a server knows of the limits.
#[derive(Default)]
pub(crate) struct KnownLimits {
    known: Mutex<(Arc<Limits>, Option<Monotonic>)>,
    looking: tokio::sync::Mutex<()>,
}

impl KnownLimits {
    /// They may have changed.
    pub(crate) fn forget(&self) {
        self.known.lock().1 = None;
    }
}

impl Store {
    /// The limits, as they were at most [`FRESH`] ago.
    ///
    /// # Errors
    /// What kv reports.
    pub(crate) async fn limits(&self) -> Result<Arc<Limits>> {
        let (limits, looked) = self.limits.known.lock().clone();
        if looked.is_some_and(|at| self.env.now().since(at) < FRESH) {
            return Ok(limits);
        }
        let _one = match self.limits.looking.try_lock() {
            Ok(one) => one,
            // Somebody looks already.
            Err(_) if looked.is_some() => return Ok(limits),
            Err(_) => self.limits.looking.lock().await,
        };
        let now = self.env.now();
        let limits = self.look_at_limits(limits).await?;
        *self.limits.known.lock() = (Arc::clone(&limits), Some(now));
        Ok(limits)
    }

    async fn look_at_limits(&self, known: Arc<Limits>) -> Result<Arc<Limits>> {
        let (changes, trash) = self
            .transact("quotas", &|tx| {
                Box::pin(async move {
                    let changes = tx.kv.snapshot_get(&tx.keys.quota_changes()).await?;
                    let trash = tx.kv.snapshot_get(&tx.keys.trash()).await?;
                    let trash = trash.map(|trash| Trash::decode(&trash)).transpose()?;
                    Ok((records::number(changes.as_deref())?, trash.unwrap_or_default()))
                })
            })
            .await?;
        if changes == known.changes {
            return Ok(known);
        }
        let mut limits = Limits { changes, trash: trash.on, ..Limits::default() };
        let mut after = None;
        loop {
            let page = self.quota_page(after).await?;
            let is_end = page.len() < PAGE;
            after = page.last().map(|(account, _)| *account);
            limits.any_bytes |= page.iter().any(|(_, limits)| limits.bytes.is_some());
            limits.by.extend(page);
            if is_end {
                return Ok(Arc::new(limits));
            }
        }
    }

    /// The quotas behind an account, a page of them; fewer than [`PAGE`] are the last.
    pub(crate) async fn quota_page(
        &self,
        after: Option<Account>,
    ) -> Result<Vec<(Account, QuotaLimits)>> {
        self.transact("quotas", &|tx| {
            Box::pin(async move {
                let mut range = tx.keys.quotas();
                if let Some(after) = after {
                    range = range.after(&tx.keys.quota(after));
                }
                let page = tx.kv.range(range, RangeOptions::limit(PAGE).snapshot()).await?;
                let quota = |(key, value): &(Vec<u8>, Vec<u8>)| {
                    Ok((account_of(key)?, QuotaLimits::decode(value)?))
                };
                page.iter().map(quota).collect()
            })
        })
        .await
    }

    /// How far a file may be written by somebody who wants to reach `end` and was `promised` as much before;
    /// `None`: as far as files go.
    ///
    /// # Errors
    /// `QuotaExceeded`, or what kv reports.
    pub(crate) async fn bound(
        &self,
        inode: InodeId,
        end: u64,
        promised: u64,
    ) -> Result<Option<u64>> {
        let limits = &self.limits().await?;
        if !limits.any_bytes {
            return Ok(None);
        }
        self.transact("quota of a file", &|tx| {
            Box::pin(async move {
                let Some(inode) = tx.find_inode(inode).await? else { return Ok(None) };
                let Some((left, account)) = tx.bytes_left(&inode, limits).await? else {
                    return Ok(None);
                };
                let granted = quota::grant(inode.file()?.length, left, end, promised);
                let limit = limits.of(account).and_then(|limits| limits.bytes);
                granted.map(Some).ok_or_else(|| quota::exceeded(account, "bytes", limit))
            })
        })
        .await
    }
}

impl Tx<'_, '_> {
    /// Writes what the transaction changes of usages; with `limits`, only if they allow it.
    ///
    /// # Errors
    /// `QuotaExceeded`, or what kv reports.
    pub(crate) async fn settle(&mut self, limits: Option<&Limits>) -> Result<()> {
        let ledger = std::mem::take(&mut self.ledger);
        self.add_usage(self.keys.trash_usage(), ledger.trash);
        for (account, change, wanted) in ledger.changes() {
            let limit = limits.and_then(|limits| limits.of(account));
            if let Some(limit) = limit.filter(|_| wanted.grows()) {
                quota::check(account, limit, self.usage(account).await?, change, wanted)?;
            }
            self.add_usage(self.keys.usage(account), change);
        }
        Ok(())
    }

    fn add_usage(&mut self, keys: [Vec<u8>; 2], change: Delta) {
        for (key, delta) in keys.iter().zip([change.bytes, change.inodes]) {
            if delta != 0 {
                self.kv.add(key, delta);
            }
        }
    }

    /// What counts for an account, as it was when the transaction began. Causes no conflict.
    pub(crate) async fn usage(&mut self, account: Account) -> Result<Usage> {
        let options = RangeOptions::default().snapshot();
        let stored = self.kv.range(self.keys.whole_usage(account), options).await?;
        let mut numbers = [0; 2];
        for (number, key) in numbers.iter_mut().zip(self.keys.usage(account)) {
            let found = stored.iter().find(|(stored, _)| *stored == key);
            *number = records::number(found.map(|(_, value)| value.as_slice()))?;
        }
        let [bytes, inodes] = numbers;
        Ok(Usage { bytes, inodes })
    }

    /// How many bytes the accounts of an inode may still get, and which one the fewest; `None`: no limit.
    async fn bytes_left(
        &mut self,
        inode: &Inode,
        limits: &Limits,
    ) -> Result<Option<(u64, Account)>> {
        let mut least = None;
        for account in accounts(inode.quota, inode.uid, inode.gid) {
            let limit = limits.of(account).and_then(|limits| limits.bytes);
            let Some(limit) = limit else { continue };
            let left = limit.saturating_sub(self.usage(account).await?.bytes);
            least = least.into_iter().chain([(left, account)]).min();
        }
        Ok(least)
    }
}
