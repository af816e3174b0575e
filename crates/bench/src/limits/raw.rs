//! The disk, without anything above it.

use crate::run::{Bench, RANDOM_BYTES, SEQUENTIAL_BYTES};
use crate::sample::Sample;
use crate::scratch;
use crate::workers::Turn;
use kiln_disk::{Disk, OpenOptions};
use kiln_memory::Pool;
use kiln_types::Result;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file in the raw directory, removed when it is dropped.
pub(crate) struct RawFile {
    pub(crate) disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl RawFile {
    pub(crate) async fn create(bench: &Bench, dir: &Path) -> Result<Self> {
        let path = dir.join(scratch::name(&bench.env));
        let capacity = Some(bench.options.size);
        let options = OpenOptions { capacity, create: true, ..OpenOptions::default() };
        let disk = kiln_disk::open(&path, options, &bench.env).await?;
        Ok(Self { disk, path })
    }

    /// Writes all of it, with a sync at the end.
    pub(crate) async fn write(&self, bench: &Bench) -> Result<Sample> {
        let (disk, blocks) = (Arc::clone(&self.disk), bench.blocks());
        let block = bench.random_block(SEQUENTIAL_BYTES);
        let write = move |turn: Turn| {
            let (disk, block) = (Arc::clone(&disk), block.clone());
            async move {
                if turn.shared >= blocks {
                    return Ok(0);
                }
                disk.write(turn.shared * SEQUENTIAL_BYTES as u64, block).await.map(|()| 1)
            }
        };
        let began = bench.env.now();
        let mut sample = bench.crew(bench.options.depth).tasks(write).await?;
        self.disk.sync().await?;
        sample.took = bench.env.now().since(began);
        Ok(sample.in_bytes(SEQUENTIAL_BYTES))
    }

    /// Reads all of it, some requests at a time.
    pub(crate) async fn read(&self, bench: &Bench) -> Result<Sample> {
        let (disk, blocks) = (Arc::clone(&self.disk), bench.blocks());
        let pool = Pool::new(bench.options.depth * SEQUENTIAL_BYTES);
        let read = move |turn: Turn| {
            let (disk, pool) = (Arc::clone(&disk), pool.clone());
            async move {
                if turn.shared >= blocks {
                    return Ok(0);
                }
                let offset = turn.shared * SEQUENTIAL_BYTES as u64;
                disk.read(offset, pool.take(SEQUENTIAL_BYTES)).await.map(|_| 1)
            }
        };
        let sample = bench.crew(bench.options.depth).tasks(read).await?;
        Ok(sample.in_bytes(SEQUENTIAL_BYTES))
    }

    /// Reads 4 KiB here and there, `depth` at a time.
    pub(crate) async fn read_random(&self, bench: &Bench, depth: usize) -> Result<Sample> {
        let (disk, offset) = (Arc::clone(&self.disk), bench.random_offsets());
        let pool = Pool::new(depth * RANDOM_BYTES);
        let read = move |turn: Turn| {
            let (disk, pool, offset) = (Arc::clone(&disk), pool.clone(), offset(turn.shared));
            async move { disk.read(offset, pool.take(RANDOM_BYTES)).await.map(|_| 1) }
        };
        bench.timed(depth).tasks(read).await
    }
}

impl Drop for RawFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a test file stays");
        }
    }
}
