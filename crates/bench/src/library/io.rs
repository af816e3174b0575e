//! Reads and writes.

use super::{Directory, new_file};
use crate::limits::{self, Pipeline, RawFile, Traffic};
use crate::report::{KILN, Tally, Unit, Workload};
use crate::requests::Work;
use crate::run::{Bench, Group};
use crate::sample::Sample;
use kiln_client::File;
use kiln_memory::{Buffer, Bytes};
use kiln_types::Result;
use std::path::Path;
use std::sync::Arc;

/// One round of everything.
pub(crate) async fn io(
    bench: &Bench,
    tally: &mut Tally,
    directory: &Directory,
    raw_dir: &Path,
) -> Result<()> {
    let (depth, random) = (bench.options.depth, bench.options.random_depth);
    let in_bytes = |name| {
        let name = format!("{name} 1 MiB, {depth} at a time");
        Workload::new(Group::Library, name, Unit::BytesPerSecond)
    };
    let requests = |name| {
        let name = format!("{name} 4 KiB, random, {random} at a time");
        Workload::new(Group::Library, name, Unit::PerSecond)
    };
    let (write, read) = (in_bytes("write"), in_bytes("read"));
    let (read_random, write_random) = (requests("read"), requests("write"));

    let pipeline = Pipeline::create(bench, raw_dir).await?;
    let traffic = pipeline.run(bench, Traffic::Sequential);
    bench.measure(tally, &write, limits::PIPELINE, traffic).await?;
    let file = TestFile::create(bench, directory).await?;
    bench.measure(tally, &write, KILN, file.write(bench)).await?;
    let raw = RawFile::create(bench, raw_dir).await?;
    bench.measure(tally, &write, limits::RAW, raw.write(bench)).await?;
    bench.measure(tally, &read, limits::RAW, raw.read(bench)).await?;
    bench.measure(tally, &read, KILN, file.read(bench)).await?;
    bench.measure(tally, &read_random, limits::RAW, raw.read_random(bench, random)).await?;
    bench.measure(tally, &read_random, KILN, file.read_random(bench)).await?;
    let traffic = pipeline.run(bench, Traffic::Random);
    bench.measure(tally, &write_random, limits::PIPELINE, traffic).await?;
    bench.measure(tally, &write_random, KILN, file.write_random(bench)).await?;
    file.remove(bench, directory).await
}

/// An open file in the cluster.
struct TestFile {
    file: Arc<File>,
}

const NAME: &[u8] = b"data";

impl TestFile {
    async fn create(bench: &Bench, directory: &Directory) -> Result<Self> {
        let new = new_file(directory.inode(), NAME);
        let file = Arc::new(bench.client.create(&bench.caller, &new).await?);
        Ok(Self { file })
    }

    async fn remove(self, bench: &Bench, directory: &Directory) -> Result<()> {
        let (client, parent) = (&bench.client, directory.inode());
        client.remove_past_trash(&bench.caller, parent, NAME, false).await?;
        self.file.close().await.map(drop)
    }

    async fn write(&self, bench: &Bench) -> Result<Sample> {
        let sync = async { self.file.sync().await.map(drop) };
        bench.write_all(self.writer(), sync).await
    }

    async fn read(&self, bench: &Bench) -> Result<Sample> {
        bench.read_all(self.reader()).await
    }

    async fn read_random(&self, bench: &Bench) -> Result<Sample> {
        bench.read_random(bench.options.random_depth, self.reader()).await
    }

    /// Each is durable on every replica when it returns.
    async fn write_random(&self, bench: &Bench) -> Result<Sample> {
        bench.write_random(bench.options.random_depth, self.writer()).await
    }

    fn writer(&self) -> impl Fn(u64, Bytes) -> Work<()> + Clone + Send + Sync + 'static {
        let file = Arc::clone(&self.file);
        move |offset, block| {
            let file = Arc::clone(&file);
            Box::pin(async move { file.write_at(offset, block).await })
        }
    }

    fn reader(&self) -> impl Fn(u64, Buffer) -> Work<Buffer> + Clone + Send + Sync + 'static {
        let file = Arc::clone(&self.file);
        move |offset, buffer| {
            let file = Arc::clone(&file);
            Box::pin(async move { file.read_at(offset, buffer).await })
        }
    }
}
