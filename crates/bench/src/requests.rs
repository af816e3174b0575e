//! Asynchronous reads and writes of a whole file, the same for the disk and for the client library.

use crate::run::{Bench, RANDOM_BYTES, SEQUENTIAL_BYTES};
use crate::sample::Sample;
use crate::workers::Turn;
use kiln_memory::{Buffer, Bytes, Pool};
use kiln_types::Result;
use std::pin::Pin;

/// A request under way.
pub(crate) type Work<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

impl Bench {
    /// Writes all blocks, some at a time, then syncs.
    pub(crate) async fn write_all(
        &self,
        write: impl Fn(u64, Bytes) -> Work<()> + Clone + Send + Sync + 'static,
        sync: impl Future<Output = Result<()>>,
    ) -> Result<Sample> {
        let (blocks, block) = (self.blocks(), self.random_block(SEQUENTIAL_BYTES));
        let one = move |turn: Turn| {
            let left = turn.shared < blocks;
            let write = left.then(|| write(turn.shared * SEQUENTIAL_BYTES as u64, block.clone()));
            async move {
                match write {
                    Some(write) => write.await.map(|()| 1),
                    None => Ok(0),
                }
            }
        };
        let began = self.env.now();
        let mut sample = self.crew(self.options.depth).tasks(one).await?;
        sync.await?;
        sample.took = self.env.now().since(began);
        Ok(sample.in_bytes(SEQUENTIAL_BYTES))
    }

    /// Reads all blocks, some at a time.
    pub(crate) async fn read_all(
        &self,
        read: impl Fn(u64, Buffer) -> Work<Buffer> + Clone + Send + Sync + 'static,
    ) -> Result<Sample> {
        let (blocks, pool) = (self.blocks(), Pool::new(self.options.depth * SEQUENTIAL_BYTES));
        let one = move |turn: Turn| {
            let left = turn.shared < blocks;
            let offset = turn.shared * SEQUENTIAL_BYTES as u64;
            let read = left.then(|| read(offset, pool.take(SEQUENTIAL_BYTES)));
            async move {
                match read {
                    Some(read) => read.await.map(|_| 1),
                    None => Ok(0),
                }
            }
        };
        let sample = self.crew(self.options.depth).tasks(one).await?;
        Ok(sample.in_bytes(SEQUENTIAL_BYTES))
    }

    /// Reads 4 KiB here and there, `depth` at a time.
    pub(crate) async fn read_random(
        &self,
        depth: usize,
        read: impl Fn(u64, Buffer) -> Work<Buffer> + Clone + Send + Sync + 'static,
    ) -> Result<Sample> {
        let (offset, pool) = (self.random_offsets(), Pool::new(depth * RANDOM_BYTES));
        let one = move |turn: Turn| {
            let read = read(offset(turn.shared), pool.take(RANDOM_BYTES));
            async move { read.await.map(|_| 1) }
        };
        self.timed(depth).tasks(one).await
    }

    /// Writes 4 KiB here and there, `depth` at a time.
    pub(crate) async fn write_random(
        &self,
        depth: usize,
        write: impl Fn(u64, Bytes) -> Work<()> + Clone + Send + Sync + 'static,
    ) -> Result<Sample> {
        let (offset, block) = (self.random_offsets(), self.random_block(RANDOM_BYTES));
        let one = move |turn: Turn| {
            let write = write(offset(turn.shared), block.clone());
            async move { write.await.map(|()| 1) }
        };
        self.timed(depth).tasks(one).await
    }
}
