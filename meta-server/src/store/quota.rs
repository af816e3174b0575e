//! Quotas: how they are set, and what is told of them.

use crate::access::SEARCH;
use crate::quota::has_own;
use crate::store::lookup::{reach, reach_directory};
use crate::store::prune::require_attached;
use crate::store::{Change, Outcome, Store, Who};
use crate::tx::Tx;
use kiln_types::{Account, Code, Error, InodeId, Quota, QuotaLimits, Result, Usage};

/// What becomes of a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaChange {
    /// These limits; those that are `None` stay as they are.
    Set(QuotaLimits),
    /// It goes.
    Clear,
}

impl Store {
    /// Sets or takes away a quota. What is in a directory is counted in the background.
    ///
    /// # Errors
    /// `NotPermitted` unless root asks, who is not confined to a directory; `NotFound` when there is none to
    /// take away; `NotDirectory`, `StaleHandle`, or what kv reports.
    pub async fn set_quota(
        &self,
        change: &Change,
        account: Account,
        to: QuotaChange,
    ) -> Result<()> {
        if !sees_all(&change.who) {
            let text = "only root sets quotas, with a credential for the whole file system";
            return Err(Error::new(Code::NotPermitted, text));
        }
        let set = self
            .change(change, "set quota", &|tx| Box::pin(set_quota(tx, change, account, to)))
            .await;
        self.limits.forget();
        self.recounts.notify_one();
        set.map(drop)
    }

    /// The quota of an account: of any inode the one of the directory that it counts for. Without a quota it
    /// has no limits.
    ///
    /// # Errors
    /// `NotFound` when no directory above it has a quota, `NotPermitted` for other users and their groups,
    /// `StaleHandle`, `NotAuthorized`, or what kv reports.
    pub async fn quota(&self, who: &Who, account: Account) -> Result<Quota> {
        if !concerns(who, account) {
            let text = format!("only root may see what {account} has");
            return Err(Error::new(Code::NotPermitted, text));
        }
        let account = match account {
            Account::Directory(inode) => self.quota_above(who, inode).await?,
            account => account,
        };
        self.whole_quota(who, account).await
    }

    /// The quotas behind `after` that a caller may see, a page of them, and whether there are no more: root
    /// sees all, others those of themselves and their groups.
    ///
    /// # Errors
    /// What kv reports.
    pub async fn quotas(&self, who: &Who, after: Option<Account>) -> Result<(Vec<Quota>, bool)> {
        let page = self.quota_page(after).await?;
        let next = page.last().map(|(account, _)| *account);
        let mut quotas = Vec::new();
        for (account, _) in page {
            let is_own = !matches!(account, Account::Directory(_)) && concerns(who, account);
            if sees_all(who) || is_own {
                quotas.push(self.whole_quota(who, account).await?);
            }
        }
        match next.filter(|_| quotas.is_empty()) {
            // None of these concerned the caller: later ones may.
            Some(next) => Box::pin(self.quotas(who, Some(next))).await,
            None => Ok((quotas, next.is_none())),
        }
    }

    /// Limits and usage of the directory whose quota an inode counts for.
    ///
    /// # Errors
    /// `StaleHandle`, `NotAuthorized`, or what kv reports.
    pub async fn space_at(
        &self,
        who: &Who,
        inode: InodeId,
    ) -> Result<Option<(QuotaLimits, Usage)>> {
        match self.quota_above(who, inode).await {
            Ok(account) => {
                let Quota { limits, usage, .. } = self.stored_quota(account).await?;
                Ok(Some((limits, usage)))
            }
            Err(error) if error.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn quota_above(&self, who: &Who, inode: InodeId) -> Result<Account> {
        self.transact("quota", &|tx| {
            Box::pin(async move {
                let quota = reach(tx, who, inode).await?.quota;
                if quota == InodeId(0) {
                    return Err(Error::new(Code::NotFound, "no directory above has a quota"));
                }
                Ok(Account::Directory(quota))
            })
        })
        .await
    }

    async fn stored_quota(&self, account: Account) -> Result<Quota> {
        self.transact("quota", &|tx| {
            Box::pin(async move {
                let limits = tx.get(&tx.keys.quota(account)).await?.unwrap_or_default();
                let usage = tx.usage(account).await?;
                let mut counting = tx.number(&tx.keys.counted_to()).await? < u64::MAX;
                if let Account::Directory(inode) = account {
                    counting |= tx.number(&tx.keys.uncounted(inode)).await? != 0;
                }
                Ok(Quota { account, limits, usage, counting, path: Vec::new() })
            })
        })
        .await
    }

    async fn whole_quota(&self, who: &Who, account: Account) -> Result<Quota> {
        let mut quota = self.stored_quota(account).await?;
        if let (Account::Directory(inode), true) = (account, sees_all(who)) {
            quota.path = self.path_of(inode).await?.unwrap_or_default();
        }
        Ok(quota)
    }
}

/// Whether a caller may know of all names.
pub(crate) fn sees_all(who: &Who) -> bool {
    who.caller.uid == 0 && who.subtree.is_none()
}

/// Whether a caller may see what an account has: of a directory, whoever reaches it.
fn concerns(who: &Who, account: Account) -> bool {
    let caller = &who.caller;
    match account {
        Account::Directory(_) => true,
        Account::User(uid) => caller.uid == 0 || caller.uid == uid,
        Account::Group(gid) => caller.uid == 0 || caller.in_group(gid),
    }
}

async fn set_quota(
    tx: &mut Tx<'_, '_>,
    change: &Change,
    account: Account,
    to: QuotaChange,
) -> Result<Outcome> {
    let key = tx.keys.quota(account);
    let old: Option<QuotaLimits> = tx.get(&key).await?;
    match (to, old) {
        (QuotaChange::Set(limits), old) => {
            if let Account::Directory(inode) = account {
                begin(tx, &change.who, inode).await?;
            }
            let old = old.unwrap_or_default();
            let (bytes, inodes) = (limits.bytes.or(old.bytes), limits.inodes.or(old.inodes));
            tx.room.clone()?;
            tx.put(&key, &QuotaLimits { bytes, inodes });
            tx.kv.add(&tx.keys.quota_changes(), 1);
        }
        (QuotaChange::Clear, Some(_)) => {
            if let Account::Directory(inode) = account {
                end(tx, inode).await?;
            }
            tx.clear_quota(account);
        }
        (QuotaChange::Clear, None) => {
            return Err(Error::new(Code::NotFound, format!("{account} has no quota")));
        }
    }
    // A directory may be over a limit then.
    tx.ledger.allow();
    Ok(Outcome::done())
}

/// Lets a directory count for itself.
async fn begin(tx: &mut Tx<'_, '_>, who: &Who, inode: InodeId) -> Result<()> {
    let mut directory = reach_directory(tx, who, inode, SEARCH).await?;
    require_attached(&directory)?;
    if !has_own(&directory) {
        directory.quota = directory.id;
        tx.recount(&directory).await?;
    }
    Ok(())
}

/// Lets a directory count for what its parent counts for.
async fn end(tx: &mut Tx<'_, '_>, inode: InodeId) -> Result<()> {
    let mut directory = tx.inode(inode).await?;
    let above = match directory.parent {
        parent if parent == inode => None,
        parent => tx.find_inode(parent).await?,
    };
    directory.quota = above.map_or(InodeId(0), |above| above.quota);
    tx.recount(&directory).await
}

impl Tx<'_, '_> {
    /// Takes the quota of an account away.
    pub(crate) fn clear_quota(&mut self, account: Account) {
        self.kv.clear(&self.keys.quota(account));
        self.kv.add(&self.keys.quota_changes(), 1);
    }
}
