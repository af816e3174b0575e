//! Counting what was there before.
//!
//! A directory that gets another quota to count for is queued: its entries follow, a page in a transaction, and
//! directories among them are queued in their turn. What is made or moved meanwhile takes over the quota of its
//! directory. So of a directory that is not queued all entries count for its quota, but for directories that
//! have their own, and files that have names elsewhere.
//!
//! Inodes that a version before quotas wrote count for nobody until they are written anew, which one walk
//! through all of them does.

use crate::keys::directory_of;
use crate::quota::has_own;
use crate::records::{Inode, Record, Recount};
use crate::store::Store;
use crate::tx::Tx;
use kiln_kv::RangeOptions;
use kiln_types::{InodeId, Result};

/// Inodes that are counted in one transaction.
const PAGE: usize = 128;

impl Store {
    /// Directories whose entries have yet to be counted, a page of them.
    ///
    /// # Errors
    /// What kv reports.
    pub(crate) async fn uncounted(&self) -> Result<Vec<InodeId>> {
        self.transact("directories to count", &|tx| {
            Box::pin(async move {
                let options = RangeOptions::limit(PAGE).snapshot();
                let page = tx.kv.range(tx.keys.recounts(), options).await?;
                page.iter().map(|(key, _)| directory_of(key)).collect()
            })
        })
        .await
    }

    /// Counts a page of a directory's entries; whether there may be more.
    ///
    /// # Errors
    /// What kv reports.
    pub(crate) async fn count(&self, directory: InodeId) -> Result<bool> {
        self.transact("count of a directory", &|tx| Box::pin(count(tx, directory))).await
    }

    /// Counts a page of the inodes that were there before quotas; whether there may be more.
    ///
    /// # Errors
    /// What kv reports.
    pub(crate) async fn count_old(&self) -> Result<bool> {
        self.transact("count of inodes", &|tx| Box::pin(count_old(tx))).await
    }
}

async fn count(tx: &mut Tx<'_, '_>, id: InodeId) -> Result<bool> {
    let key = tx.keys.recount(id);
    let Some(mut at) = tx.get::<Recount>(&key).await? else { return Ok(false) };
    let directory = tx.find_inode(id).await?;
    let mut is_end = true;
    if let Some(directory) = &directory {
        // Entries that come and go meanwhile do not matter: their inodes are read with a conflict.
        let (entries, end) = tx.entries(id, at.after, PAGE).await?;
        is_end = end;
        for (cookie, entry) in entries {
            at.after = cookie;
            if let Some(mut inode) = tx.find_inode(entry.inode).await? {
                tx.follow(&mut inode, directory).await?;
            }
        }
    }
    match is_end {
        true => {
            tx.kv.clear(&key);
            tx.kv.add(&tx.keys.uncounted(at.quota), -1);
        }
        false => tx.put(&key, &at),
    }
    Ok(!is_end)
}

async fn count_old(tx: &mut Tx<'_, '_>) -> Result<bool> {
    let key = tx.keys.counted_to();
    let to = InodeId(tx.number(&key).await?);
    if to == InodeId(u64::MAX) {
        return Ok(false);
    }
    let options = RangeOptions::limit(PAGE).snapshot();
    let page = tx.kv.range(tx.keys.inodes().after(&tx.keys.inode(to)), options).await?;
    let mut last = u64::MAX;
    for (_, value) in &page {
        let inode = Inode::decode(value)?;
        if page.len() == PAGE {
            last = inode.id.0;
        }
        if inode.counted {
            continue;
        }
        // Again with a conflict.
        if let Some(inode) = tx.find_inode(inode.id).await? {
            tx.put_unseen(&inode);
        }
    }
    tx.kv.max(&key, last);
    Ok(last < u64::MAX)
}

impl Tx<'_, '_> {
    /// Puts an inode that counts for the quota of its directory from now on, if it did not before; nothing else
    /// that anybody sees has changed.
    pub(crate) async fn follow(&mut self, inode: &mut Inode, directory: &Inode) -> Result<()> {
        if inode.quota == directory.quota || has_own(inode) {
            return Ok(());
        }
        inode.quota = directory.quota;
        match inode.is_directory() {
            true => self.recount(inode).await?,
            false => self.put_unseen(inode),
        }
        Ok(())
    }

    /// Puts a directory that counts for another quota, and queues its entries.
    pub(crate) async fn recount(&mut self, directory: &Inode) -> Result<()> {
        let key = self.keys.recount(directory.id);
        if let Some(queued) = self.get::<Recount>(&key).await? {
            self.kv.add(&self.keys.uncounted(queued.quota), -1);
        }
        self.put_unseen(directory);
        self.put(&key, &Recount { quota: directory.quota, after: 0 });
        self.kv.add(&self.keys.uncounted(directory.quota), 1);
        Ok(())
    }
}
