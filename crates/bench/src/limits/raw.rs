//! The disk, without anything above it.

use crate::requests::Work;
use crate::run::Bench;
use crate::sample::Sample;
use crate::scratch;
use kiln_disk::{Disk, OpenOptions};
use kiln_memory::Buffer;
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

    pub(crate) async fn write(&self, bench: &Bench) -> Result<Sample> {
        let disk = Arc::clone(&self.disk);
        let write = move |offset, block| -> Work<()> {
            let disk = Arc::clone(&disk);
            Box::pin(async move { disk.write(offset, block).await })
        };
        bench.write_all(write, self.disk.sync()).await
    }

    pub(crate) async fn read(&self, bench: &Bench) -> Result<Sample> {
        bench.read_all(self.reader()).await
    }

    pub(crate) async fn read_random(&self, bench: &Bench, depth: usize) -> Result<Sample> {
        bench.read_random(depth, self.reader()).await
    }

    fn reader(&self) -> impl Fn(u64, Buffer) -> Work<Buffer> + Clone + Send + Sync + 'static {
        let disk = Arc::clone(&self.disk);
        move |offset, buffer| {
            let disk = Arc::clone(&disk);
            Box::pin(async move { disk.read(offset, buffer).await })
        }
    }
}

impl Drop for RawFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a test file stays");
        }
    }
}
