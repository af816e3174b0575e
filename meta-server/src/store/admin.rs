//! What operators and df ask.

use crate::keys::{directory_of, garbage_name};
use crate::records::{Body, Garbage, Inode, LostIds, REMOVED, Record};
use crate::store::Store;
use crate::tx::Tx;
use kiln_kv::RangeOptions;
use kiln_types::{InodeId, Layout, Result, TruncateEpoch};
use std::ops::Range;

/// The most inodes, or names, in one page.
const PAGE_MAX: usize = 1024;
/// The most backups that were put back, of which is known what was behind them.
const LOST_MAX: usize = 1000;
/// The most names in a path that is told.
const DEPTH_MAX: usize = 4096;

/// An inode that has, or may still have, chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InodeChunks {
    /// The inode.
    pub inode: InodeId,
    /// Its length in bytes; 0 when it was removed.
    pub length: u64,
    /// Its placement.
    pub layout: Layout,
    /// Removed, and its chunks are being collected.
    pub removed: bool,
    /// As in [`Attr`](kiln_types::Attr), as the next two are.
    pub dense_end: u64,
    /// Changes with each truncation.
    pub epoch: TruncateEpoch,
    /// Chunks of an older epoch do not count.
    pub floors: Vec<(u64, TruncateEpoch)>,
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

    /// No inode was ever made with this id or a higher one; but those in the ranges that come with it may have been,
    /// behind backups that were put back.
    ///
    /// # Errors
    /// What kv reports.
    pub async fn inode_ids_end(&self) -> Result<(InodeId, Vec<Range<u64>>)> {
        self.transact("inode ids", &|tx| {
            Box::pin(async move {
                let key = tx.keys.next_inode();
                let next = crate::records::number(tx.kv.snapshot_get(&key).await?.as_deref())?;
                let mut lost = Vec::new();
                let options = RangeOptions::limit(LOST_MAX).snapshot();
                for (key, value) in tx.kv.range(tx.keys.all_lost_ids(), options).await? {
                    lost.push(directory_of(&key)?.0..LostIds::decode(&value)?.end.0);
                }
                Ok((InodeId(next.max(InodeId::ROOT.0 + 1)), lost))
            })
        })
        .await
    }

    /// A path that leads to an inode; `None` when it has no name, or it is not known in which
    /// directory. Names may change meanwhile.
    ///
    /// # Errors
    /// What kv reports.
    pub async fn path_of(&self, inode: InodeId) -> Result<Option<Vec<u8>>> {
        let (mut names, mut at) = (Vec::new(), inode);
        while at != InodeId::ROOT && names.len() < DEPTH_MAX {
            let Some(parent) = self.parent_of(at).await? else { return Ok(None) };
            let Some(name) = self.name_in(parent, at).await? else { return Ok(None) };
            names.push(name);
            at = parent;
        }
        let slashed = names.iter().rev().flat_map(|name| [b"/", name.as_slice()]);
        let path: Vec<u8> = slashed.flatten().copied().collect();
        let path = if path.is_empty() { b"/".to_vec() } else { path };
        Ok((at == InodeId::ROOT).then_some(path))
    }

    async fn parent_of(&self, inode: InodeId) -> Result<Option<InodeId>> {
        self.transact("path", &|tx| {
            Box::pin(async move {
                let found = tx.find_inode(inode).await?;
                Ok(found.map(|inode| inode.parent).filter(|parent| *parent != InodeId(0)))
            })
        })
        .await
    }

    /// The name that `inode` has in a directory, which may be large.
    async fn name_in(&self, directory: InodeId, inode: InodeId) -> Result<Option<Vec<u8>>> {
        let mut after = 0;
        loop {
            let (entries, end) = self
                .transact("path", &|tx| Box::pin(tx.entries(directory, after, PAGE_MAX)))
                .await?;
            if let Some((_, entry)) = entries.iter().find(|(_, entry)| entry.inode == inode) {
                return Ok(Some(entry.name.clone()));
            }
            match entries.last() {
                Some((cookie, _)) if !end => after = *cookie,
                _ => return Ok(None),
            }
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
            inodes.push(InodeChunks {
                inode: inode.id,
                length: file.length,
                layout: file.layout,
                removed: false,
                dense_end: file.dense_end,
                epoch: file.epoch,
                floors: file.floors,
            });
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
            inodes.push(InodeChunks {
                inode,
                length: 0,
                layout: Garbage::decode(value)?.layout,
                removed: true,
                dense_end: 0,
                epoch,
                floors: Vec::new(),
            });
        }
    }
    complete_to = complete_to.min(removed_to);
    inodes.retain(|listed| listed.inode <= complete_to);
    inodes.sort_by_key(|listed| listed.inode);
    Ok(Page { inodes, complete_to })
}
