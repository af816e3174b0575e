//! Reads and writes.

use super::{Directory, new_file};
use crate::limits::{self, Pipeline, RawFile, Traffic};
use crate::report::{KILN, Tally, Unit, Workload};
use crate::run::{Bench, Group, RANDOM_BYTES, SEQUENTIAL_BYTES};
use crate::sample::Sample;
use crate::workers::Turn;
use kiln_client::File;
use kiln_memory::Pool;
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
        bench.client.remove(&bench.caller, directory.inode(), NAME, false).await?;
        self.file.close().await.map(drop)
    }

    async fn write(&self, bench: &Bench) -> Result<Sample> {
        let (file, blocks) = (Arc::clone(&self.file), bench.blocks());
        let block = bench.random_block(SEQUENTIAL_BYTES);
        let write = move |turn: Turn| {
            let (file, block) = (Arc::clone(&file), block.clone());
            async move {
                if turn.shared >= blocks {
                    return Ok(0);
                }
                file.write_at(turn.shared * SEQUENTIAL_BYTES as u64, block).await.map(|()| 1)
            }
        };
        let began = bench.env.now();
        let mut sample = bench.crew(bench.options.depth).tasks(write).await?;
        self.file.sync().await?;
        sample.took = bench.env.now().since(began);
        Ok(sample.in_bytes(SEQUENTIAL_BYTES))
    }

    async fn read(&self, bench: &Bench) -> Result<Sample> {
        let (file, blocks) = (Arc::clone(&self.file), bench.blocks());
        let pool = Pool::new(bench.options.depth * SEQUENTIAL_BYTES);
        let read = move |turn: Turn| {
            let (file, pool) = (Arc::clone(&file), pool.clone());
            async move {
                if turn.shared >= blocks {
                    return Ok(0);
                }
                let offset = turn.shared * SEQUENTIAL_BYTES as u64;
                file.read_at(offset, pool.take(SEQUENTIAL_BYTES)).await.map(|_| 1)
            }
        };
        let sample = bench.crew(bench.options.depth).tasks(read).await?;
        Ok(sample.in_bytes(SEQUENTIAL_BYTES))
    }

    async fn read_random(&self, bench: &Bench) -> Result<Sample> {
        let (file, offset) = (Arc::clone(&self.file), bench.random_offsets());
        let pool = Pool::new(bench.options.random_depth * RANDOM_BYTES);
        let read = move |turn: Turn| {
            let (file, pool, offset) = (Arc::clone(&file), pool.clone(), offset(turn.shared));
            async move { file.read_at(offset, pool.take(RANDOM_BYTES)).await.map(|_| 1) }
        };
        bench.timed(bench.options.random_depth).tasks(read).await
    }

    /// Each is durable on every replica when it returns.
    async fn write_random(&self, bench: &Bench) -> Result<Sample> {
        let (file, offset) = (Arc::clone(&self.file), bench.random_offsets());
        let block = bench.random_block(RANDOM_BYTES);
        let write = move |turn: Turn| {
            let (file, block, offset) = (Arc::clone(&file), block.clone(), offset(turn.shared));
            async move { file.write_at(offset, block).await.map(|()| 1) }
        };
        bench.timed(bench.options.random_depth).tasks(write).await
    }
}
