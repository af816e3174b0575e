//! Garbage records: what the collector takes from them and how they end.

use crate::chunks::ChunkFile;
use crate::keys::garbage_name;
use crate::records::{Garbage, REMOVED, Record};
use crate::store::Store;
use kiln_kv::RangeOptions;
use kiln_types::{InodeId, Result, Timestamp, TruncateEpoch};

/// Records in one page.
const PAGE: usize = 256;

/// Chunks to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) inode: InodeId,
    pub(crate) epoch: TruncateEpoch,
    garbage: Garbage,
}

impl Task {
    /// Whether nobody can write such chunks any more.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        now >= self.garbage.not_before
    }
}

impl Store {
    /// A page of the garbage behind `after`.
    pub(crate) async fn garbage(
        &self,
        after: Option<(InodeId, TruncateEpoch)>,
    ) -> Result<Vec<Task>> {
        self.transact("garbage", &|tx| {
            Box::pin(async move {
                let mut range = tx.keys.garbage_all();
                if let Some((inode, epoch)) = after {
                    range = range.after(&tx.keys.garbage(inode, epoch));
                }
                let page = tx.kv.range(range, RangeOptions::limit(PAGE).snapshot()).await?;
                let task = |(key, value): &(Vec<u8>, Vec<u8>)| {
                    let (inode, epoch) = garbage_name(key)?;
                    Ok(Task { inode, epoch, garbage: Garbage::decode(value)? })
                };
                page.iter().map(task).collect()
            })
        })
        .await
    }

    /// Lets storage remove the chunks, then ends the record. What is removed twice is removed.
    ///
    /// # Errors
    /// What storage or kv report; the record stays.
    pub(crate) async fn collect(&self, task: &Task) -> Result<()> {
        let Garbage { layout, first, end, .. } = task.garbage;
        let file = ChunkFile { tree: self.settings.tree, inode: task.inode, layout };
        self.chunks.remove_chunks(&file, first..end, task.epoch).await?;
        let (id, epoch) = (task.inode, task.epoch);
        self.transact("end of garbage", &|tx| {
            Box::pin(async move {
                tx.kv.clear(&tx.keys.garbage(id, epoch));
                if epoch == REMOVED {
                    return Ok(());
                }
                let Some(mut inode) = tx.find_inode(id).await? else { return Ok(()) };
                let file = inode.file_mut()?;
                let count = file.floors.len();
                file.floors.retain(|(_, floor)| *floor != epoch);
                if file.floors.len() < count {
                    tx.put_inode(&inode);
                }
                Ok(())
            })
        })
        .await
    }
}
