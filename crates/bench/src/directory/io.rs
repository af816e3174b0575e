//! Reads and writes.

use super::Place;
use crate::limits::{self, Pipeline, RawFile, Traffic};
use crate::machine;
use crate::report::{Tally, Unit, Workload};
use crate::run::{Bench, Group, RANDOM_BYTES, SEQUENTIAL_BYTES};
use crate::sample::Sample;
use crate::workers::Turn;
use kiln_memory::{Buffer, Pool};
use kiln_types::{Context, Result};
use rustix::fs::{Advice, OFlags, fadvise};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Through the page cache, by one thread, as `cp` does.
    Buffered,
    /// Past it, by several.
    Direct,
}

/// Threads that read 4 KiB here and there.
const RANDOM_THREADS: [usize; 2] = [1, 8];
const NAME: &str = "data";

/// One round of everything.
pub(crate) async fn io(
    bench: &Bench,
    tally: &mut Tally,
    places: &[Place],
    raw_dir: &Path,
) -> Result<()> {
    let pipeline = Pipeline::create(bench, raw_dir).await?;
    (bench.progress)("limit of replicated writes");
    let replicated = pipeline.run(bench, Traffic::Sequential).await?;
    drop(pipeline);
    for how in [How::Buffered, How::Direct] {
        let workload = sequential(bench, "write", how);
        tally.add(&workload, limits::PIPELINE, replicated.clone());
        for place in places {
            let writing = write(bench, place, how);
            bench.measure(tally, &workload, &place.name, writing).await?;
        }
    }
    let raw = RawFile::create(bench, raw_dir).await?;
    raw.write(bench).await?;
    (bench.progress)("sequential read of the raw disk");
    let unhindered = raw.read(bench).await?;
    for how in [How::Buffered, How::Direct] {
        let workload = sequential(bench, "read", how);
        tally.add(&workload, limits::RAW, unhindered.clone());
        for place in places {
            bench.measure(tally, &workload, &place.name, read(bench, place, how)).await?;
        }
    }
    for threads in RANDOM_THREADS {
        let name = format!("read 4 KiB, random, O_DIRECT, {threads} at a time");
        let workload = Workload::new(Group::Mount, name, Unit::PerSecond);
        let unhindered = raw.read_random(bench, threads);
        bench.measure(tally, &workload, limits::RAW, unhindered).await?;
        for place in places {
            let reading = read_random(bench, place, threads);
            bench.measure(tally, &workload, &place.name, reading).await?;
        }
    }
    for place in places {
        std::fs::remove_file(place.path(NAME)).context("removing a test file")?;
    }
    Ok(())
}

fn sequential(bench: &Bench, what: &str, how: How) -> Workload {
    let how = match how {
        How::Buffered => "1 MiB".to_string(),
        How::Direct => format!("1 MiB, O_DIRECT, {} at a time", bench.options.depth),
    };
    let sync = if what == "write" { ", fsync" } else { "" };
    Workload::new(Group::Mount, format!("{what} {how}{sync}"), Unit::BytesPerSecond)
}

impl How {
    fn open(self, options: &mut OpenOptions, path: &Path) -> Result<Arc<File>> {
        if self == Self::Direct {
            options.custom_flags(OFlags::DIRECT.bits() as i32);
        }
        let opened = options.open(path);
        opened.map(Arc::new).context(format_args!("opening {}", path.display()))
    }

    fn threads(self, bench: &Bench) -> usize {
        match self {
            Self::Buffered => 1,
            Self::Direct => bench.options.depth,
        }
    }
}

/// Writes a new file, with a sync at the end.
async fn write(bench: &Bench, place: &Place, how: How) -> Result<Sample> {
    let path = place.path(NAME);
    if path.exists() {
        std::fs::remove_file(&path).context("removing a test file")?;
    }
    let file = how.open(OpenOptions::new().write(true).create_new(true), &path)?;
    let (target, blocks) = (Arc::clone(&file), bench.blocks());
    let block = bench.random_block(SEQUENTIAL_BYTES);
    let one = move |_: &mut (), turn: Turn| {
        if turn.shared >= blocks {
            return Ok(0);
        }
        let offset = turn.shared * SEQUENTIAL_BYTES as u64;
        target.write_all_at(&block, offset).context("writing a test file").map(|()| 1)
    };
    let began = bench.env.now();
    let mut sample = bench.crew(how.threads(bench)).threads(|_| Ok(()), one).await?;
    bench.env.blocking(move || file.sync_all()).await?.context("syncing a test file")?;
    sample.took = bench.env.now().since(began);
    Ok(sample.in_bytes(SEQUENTIAL_BYTES))
}

/// Reads all of it, with nothing of it in a page cache.
async fn read(bench: &Bench, place: &Place, how: How) -> Result<Sample> {
    drop_pages(place)?;
    let file = how.open(OpenOptions::new().read(true), &place.path(NAME))?;
    let (blocks, pool) = (bench.blocks(), Pool::new(0));
    let one = move |buffer: &mut Buffer, turn: Turn| {
        if turn.shared >= blocks {
            return Ok(0);
        }
        let offset = turn.shared * SEQUENTIAL_BYTES as u64;
        file.read_exact_at(buffer, offset).context("reading a test file").map(|()| 1)
    };
    let buffer = move |_| Ok(pool.take(SEQUENTIAL_BYTES));
    let sample = bench.crew(how.threads(bench)).threads(buffer, one).await?;
    Ok(sample.in_bytes(SEQUENTIAL_BYTES))
}

async fn read_random(bench: &Bench, place: &Place, threads: usize) -> Result<Sample> {
    drop_pages(place)?;
    let file = How::Direct.open(OpenOptions::new().read(true), &place.path(NAME))?;
    let (offset, pool) = (bench.random_offsets(), Pool::new(0));
    let one = move |buffer: &mut Buffer, turn: Turn| {
        let read = file.read_exact_at(buffer, offset(turn.shared));
        read.context("reading a test file").map(|()| 1)
    };
    bench.timed(threads).threads(move |_| Ok(pool.take(RANDOM_BYTES)), one).await
}

fn drop_pages(place: &Place) -> Result<()> {
    for path in place.cached(NAME) {
        let file = File::open(&path).context(format_args!("opening {}", path.display()))?;
        fadvise(&file, 0, None, Advice::DontNeed)
            .map_err(std::io::Error::from)
            .context("dropping a test file's pages")?;
    }
    // A peer's servers may have cached them too; only root may drop those.
    machine::drop_caches();
    Ok(())
}
