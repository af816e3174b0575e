//! What operators and df ask.

use crate::keys::garbage_name;
use crate::records::{Body, Garbage, Inode, REMOVED, Record};
use crate::store::Store;
use crate::tx::Tx;
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
    /// Pages through the inodes that may have chunks, in the order of ids, those behind `after`;
    /// and whether there are no more. A page is empty only at the end.
    ///
    /// # Errors
    /// What kv reports.
    pub async fn list_inodes(
        &self,
        mut after: InodeId,
        limit: usize,
    ) -> Result<(Vec<InodeChunks>, bool)> {
        let limit = if limit == 0 { PAGE_MAX } else { limit.min(PAGE_MAX) };
        loop {
            let page =
                self.transact("list of inodes", &|tx| Box::pin(page(tx, after, limit))).await?;
            let is_end = page.complete_to == InodeId(u64::MAX);
            if is_end || !page.inodes.is_empty() {
                return Ok((page.inodes, is_end));
            }
            after = page.complete_to;
        }
    }

    /// The number of inodes.
    ///
    /// # Errors
    /// What kv reports.
    pub async fn inode_count(&self) -> Result<u64> {
        self.transact("statfs", &|tx| {
            Box::pin(async move {
                let key = tx.keys.inode_count();
                crate::records::number(tx.kv.snapshot_get(&key).await?.as_deref())
            })
        })
        .await
    }
}

/// All inodes with chunks behind some id, up to and with `complete_to`.
struct Page {
    inodes: Vec<InodeChunks>,
    complete_to: InodeId,
}

async fn page(tx: &mut Tx<'_, '_>, after: InodeId, limit: usize) -> Result<Page> {
    let mut inodes = Vec::new();
    let (keys, options) = (tx.keys, RangeOptions::limit(limit).snapshot());
    let live = tx.kv.range(keys.inodes().after(&keys.inode(after)), options).await?;
    let mut complete_to = InodeId(u64::MAX);
    for (_, value) in &live {
        let inode = Inode::decode(value)?;
        if live.len() == limit {
            complete_to = inode.id;
        }
        if let Body::File(file) = inode.body {
            let (length, layout) = (file.length, file.layout);
            inodes.push(InodeChunks { inode: inode.id, length, layout, removed: false });
        }
    }
    // A removed inode has one record; those of truncations belong to live ones.
    let range = keys.garbage_all().after(&keys.garbage(after, REMOVED));
    let removed = tx.kv.range(range, options).await?;
    let mut removed_to = InodeId(u64::MAX);
    for (key, value) in &removed {
        let (inode, epoch) = garbage_name(key)?;
        if removed.len() == limit {
            removed_to = inode;
        }
        if epoch == REMOVED {
            let layout = Garbage::decode(value)?.layout;
            inodes.push(InodeChunks { inode, length: 0, layout, removed: true });
        }
    }
    complete_to = complete_to.min(removed_to);
    inodes.retain(|listed| listed.inode <= complete_to);
    inodes.sort_by_key(|listed| listed.inode);
    Ok(Page { inodes, complete_to })
}
