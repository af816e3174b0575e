//! Garbage records: how the keeper learns of them and how they end.

use crate::chunks::{ChunkFile, Removal};
use crate::keys::garbage_name;
use crate::records::{Garbage, REMOVED, Record};
use crate::store::Store;
use crate::tx::Tx;
use kiln_kv::RangeOptions;
use kiln_types::{InodeId, Result, TreeId, TruncateEpoch};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Records in one page.
const PAGE: usize = 256;
/// Records that end in one transaction.
const ENDS_MAX: usize = 128;
/// Tasks that may wait for the keeper; it finds others as it looks through the records.
const HANDED_MAX: usize = 65_536;

/// What a garbage record is of: the inode, and the epoch below which its chunks go.
pub(crate) type Name = (InodeId, TruncateEpoch);

/// Chunks to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) inode: InodeId,
    pub(crate) epoch: TruncateEpoch,
    pub(crate) garbage: Garbage,
}

impl Task {
    pub(crate) fn name(&self) -> Name {
        (self.inode, self.epoch)
    }

    pub(crate) fn removal(&self, tree: TreeId) -> Removal {
        let Garbage { layout, first, end, .. } = self.garbage;
        let file = ChunkFile { tree, inode: self.inode, layout };
        Removal { file, range: first..end, below: self.epoch }
    }
}

/// The way of new garbage to the keeper, without a look at the records: a scan steps over all that
/// was collected before.
#[derive(Default)]
pub(crate) struct Handover {
    handed: Mutex<Handed>,
    bell: Notify,
}

/// New garbage.
#[derive(Default)]
pub(crate) struct Handed {
    pub(crate) tasks: Vec<Task>,
    /// There was more than fits in here.
    pub(crate) is_short: bool,
}

impl Handover {
    /// Tells what a transaction left that is committed.
    pub(crate) fn give(&self, tasks: Vec<Task>) {
        if tasks.is_empty() {
            return;
        }
        let mut handed = self.handed.lock();
        if handed.tasks.len() + tasks.len() <= HANDED_MAX {
            handed.tasks.extend(tasks);
        } else {
            handed.is_short = true;
        }
        drop(handed);
        self.bell.notify_one();
    }

    /// What was given since the last time.
    pub(crate) fn take(&self) -> Handed {
        std::mem::take(&mut self.handed.lock())
    }

    /// Waits until something is given.
    pub(crate) async fn given(&self) {
        self.bell.notified().await;
    }
}

impl Store {
    /// A page of the garbage behind `after`.
    pub(crate) async fn garbage(&self, after: Option<Name>) -> Result<Vec<Task>> {
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

    /// Ends the records of garbage that is collected; what ends twice has ended.
    ///
    /// # Errors
    /// What kv reports.
    pub(crate) async fn end_garbage(&self, collected: &[Name]) -> Result<()> {
        for names in collected.chunks(ENDS_MAX) {
            self.transact("end of garbage", &|tx| Box::pin(end_garbage(tx, names))).await?;
        }
        Ok(())
    }
}

async fn end_garbage(tx: &mut Tx<'_, '_>, names: &[Name]) -> Result<()> {
    for (id, epoch) in names.iter().copied() {
        tx.kv.clear(&tx.keys.garbage(id, epoch));
        if epoch == REMOVED {
            continue;
        }
        let Some(mut inode) = tx.find_inode(id).await? else { continue };
        let file = inode.file_mut()?;
        let count = file.floors.len();
        file.floors.retain(|(_, floor)| *floor != epoch);
        if file.floors.len() < count {
            tx.put_inode(&inode);
        }
    }
    Ok(())
}
