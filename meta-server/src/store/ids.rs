//! Inode ids: taken from kv in blocks, so that creates do not meet at one key.

use crate::records;
use crate::store::Store;
use kiln_types::{InodeId, Result};
use parking_lot::Mutex;
use std::ops::Range;

/// Ids that a server takes at once; what it does not use is never used.
const BLOCK: u64 = 1024;
/// Ids below are the tree's own: the root is 1.
const FIRST: u64 = 256;

/// The rest of this server's block.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    block: Mutex<Range<u64>>,
    /// Who holds it takes the next block; others wait for that instead of taking their own.
    taking: tokio::sync::Mutex<()>,
}

impl Store {
    /// An id that no inode of the tree ever had.
    ///
    /// # Errors
    /// What kv reports.
    pub(crate) async fn next_inode(&self) -> Result<InodeId> {
        if let Some(id) = self.ids.block.lock().next() {
            return Ok(InodeId(id));
        }
        let _taking = self.ids.taking.lock().await;
        if let Some(id) = self.ids.block.lock().next() {
            return Ok(InodeId(id));
        }
        let mut taken = self.take_block().await?;
        let id = taken.start;
        taken.start += 1;
        *self.ids.block.lock() = taken;
        Ok(InodeId(id))
    }

    async fn take_block(&self) -> Result<Range<u64>> {
        self.transact("inode ids", &|tx| {
            Box::pin(async move {
                let key = tx.keys.next_inode();
                let start = records::number(tx.kv.get(&key).await?.as_deref())?.max(FIRST);
                tx.kv.set(&key, &(start + BLOCK).to_le_bytes());
                Ok(start..start + BLOCK)
            })
        })
        .await
    }
}
