//! What operators and df ask.

use crate::keys::garbage_name;
use crate::records::{Body, Garbage, Inode, REMOVED, Record};
use crate::store::Store;
use kiln_kv::RangeOptions;
use kiln_types::{InodeId, Layout, Result};

/// The most inodes in one page.
const PAGE_MAX: usize = 1024;

/// An inode that has, or may still have, chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InodeChunks {
    /// The inode.
    pub inode: InodeId,
    /// Its length in bytes; 0 when it was removed.
    pub length: u64,
    /// Its placement.
    pub layout: Layout,
    /// Removed, and its chunks are being collected.
    pub removed: bool,
}

impl Store {
    /// Pages through the inodes that may have chunks, in the order of ids, those behind `after`; and
    /// whether there are no more.
    ///
    /// # Errors
    /// What kv reports.
    pub async fn list_inodes(
        &self,
        after: InodeId,
        limit: usize,
    ) -> Result<(Vec<InodeChunks>, bool)> {
        let limit = if limit == 0 { PAGE_MAX } else { limit.min(PAGE_MAX) };
        self.view("list of inodes", &|tx| {
            Box::pin(async move {
                let keys = tx.keys;
                let options = RangeOptions::limit(limit).snapshot();
                let range = keys.inodes().after(&keys.inode(after));
                let live = tx.kv.range(range, options).await?;
                let range = keys.garbage_all().after(&keys.garbage(after, REMOVED));
                let removed = tx.kv.range(range, options).await?;
                // Both pages are complete up to the lesser of their last ids.
                let mut last = InodeId(u64::MAX);
                let is_end = live.len() < limit && removed.len() < limit;
                let mut inodes = Vec::new();
                for (_, value) in &live {
                    let inode = Inode::decode(value)?;
                    if live.len() == limit {
                        last = inode.id;
                    }
                    if let Body::File(file) = inode.body {
                        let (length, layout) = (file.length, file.layout);
                        inodes.push(InodeChunks {
                            inode: inode.id,
                            length,
                            layout,
                            removed: false,
                        });
                    }
                }
                let mut last_removed = InodeId(u64::MAX);
                for (key, value) in &removed {
                    let (inode, epoch) = garbage_name(key)?;
                    if removed.len() == limit {
                        last_removed = InodeId(inode.0.saturating_sub(u64::from(epoch != REMOVED)));
                    }
                    if epoch == REMOVED {
                        let layout = Garbage::decode(value)?.layout;
                        inodes.push(InodeChunks { inode, length: 0, layout, removed: true });
                    }
                }
                let complete = last.min(last_removed);
                inodes.retain(|listed| listed.inode <= complete);
                inodes.sort_by_key(|listed| listed.inode);
                Ok((inodes, is_end))
            })
        })
        .await
    }

    /// The number of inodes.
    ///
    /// # Errors
    /// What kv reports.
    pub async fn inode_count(&self) -> Result<u64> {
        self.view("statfs", &|tx| {
            Box::pin(async move {
                let key = tx.keys.inode_count();
                crate::records::number(tx.kv.snapshot_get(&key).await?.as_deref())
            })
        })
        .await
    }
}
