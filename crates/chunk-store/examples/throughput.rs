//! The store beside the raw disk: the same I/O on the same file, one after the other.
//!
//! `cargo run --release -p kiln-chunk-store --example throughput -- DIRECTORY [GiB [seconds]]`
#![allow(clippy::unwrap_used, reason = "an example that cannot go on fails")]

use kiln_chunk_store::{Change, Identity, Options, Store, Update, Which};
use kiln_disk::{Disk, OpenOptions};
use kiln_env::Env;
use kiln_memory::{Buffer, Bytes, Pool};
use kiln_types::{
    ChainId, ChainVersion, ChunkId, ChunkVersion, ClusterId, DiskId, InodeId, TargetId, TreeId,
    TruncateEpoch, block_checksums,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const TARGET: TargetId = TargetId(1);
const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
const SMALL_CHUNKS: u64 = 200_000;

struct Bench {
    env: Env,
    pool: Pool,
    time: Duration,
    /// Versions are numbered through.
    counter: Arc<AtomicU64>,
}

fn chunk(index: u64) -> ChunkId {
    ChunkId::file(TreeId(0), InodeId(9), index)
}

fn version(counter: u64) -> ChunkVersion {
    if counter == 0 {
        return ChunkVersion::NONE;
    }
    ChunkVersion { chain: ChainVersion(1), counter }
}

impl Bench {
    /// Runs `depth` workers for the set time; returns operations in a second.
    async fn rate<F>(&self, depth: u64, work: impl Fn(u64) -> F) -> f64
    where
        F: Future<Output = u64> + Send + 'static,
    {
        let start = self.env.now();
        let tasks: Vec<_> =
            (0..depth).map(|worker| self.env.spawn("worker", work(worker))).collect();
        let mut operations = 0;
        for task in tasks {
            operations += task.join().await.unwrap();
        }
        operations as f64 / self.env.now().since(start).as_secs_f64()
    }

    /// Repeats `step` until the time is over.
    async fn repeat<F: Future<Output = ()>>(
        env: Env,
        time: Duration,
        step: impl Fn(u64) -> F,
    ) -> u64 {
        let start = env.now();
        let mut number = 0;
        while env.now().since(start) < time {
            step(number).await;
            number += 1;
        }
        number
    }

    async fn compare<R, S>(&self, name: &str, bytes: usize, depth: u64, raw: R, store: S)
    where
        R: AsyncFn(u64) -> f64,
        S: AsyncFn(u64) -> f64,
    {
        let raw = raw(depth).await;
        let store = store(depth).await;
        let mib = |rate: f64| rate * bytes as f64 / MIB as f64;
        println!(
            "{name:<28} depth {depth:>2}: store {store:>9.0}/s {:>7.0} MiB/s, raw {raw:>9.0}/s \
             {:>7.0} MiB/s, ratio {:.2}",
            mib(store),
            mib(raw),
            store / raw
        );
    }
}

async fn raw_writes(bench: &Bench, disk: &Arc<dyn Disk>, bytes: usize, depth: u64) -> f64 {
    let places = (disk.capacity() / 2 / bytes as u64).max(1);
    bench
        .rate(depth, |worker| {
            let (disk, env, time) = (Arc::clone(disk), bench.env.clone(), bench.time);
            let data = random(&env, bytes);
            Bench::repeat(env.clone(), time, move |number| {
                let place = if bytes == MIB { worker * 64 + number % 64 } else { env.random_u64() };
                let (disk, data) = (Arc::clone(&disk), data.clone());
                async move {
                    disk.write(place % places * bytes as u64, data).await.unwrap();
                    disk.sync().await.unwrap();
                }
            })
        })
        .await
}

async fn raw_reads(bench: &Bench, disk: &Arc<dyn Disk>, span: u64, depth: u64) -> f64 {
    bench
        .rate(depth, |_| {
            let (disk, env, time) = (Arc::clone(disk), bench.env.clone(), bench.time);
            let pool = bench.pool.clone();
            Bench::repeat(env.clone(), time, move |_| {
                let place = env.random_below(span / BLOCK as u64) * BLOCK as u64;
                let (disk, pool) = (Arc::clone(&disk), pool.clone());
                async move {
                    let buffer = pool.take(BLOCK);
                    disk.read(place, buffer).await.unwrap();
                }
            })
        })
        .await
}

fn random(env: &Env, bytes: usize) -> Bytes {
    let mut buffer = Buffer::zeroed(bytes);
    env.fill_random(&mut buffer);
    buffer.freeze()
}

fn update(
    index: u64,
    number: u64,
    previous: u64,
    offset: u32,
    bytes: Bytes,
    crcs: Vec<u32>,
) -> Update {
    Update {
        chunk: chunk(index),
        version: version(number),
        previous: version(previous),
        epoch: TruncateEpoch(0),
        floor: TruncateEpoch(0),
        chunk_bytes: MIB as u32,
        change: Change::Write { offset, bytes, checksums: crcs },
        retry: None,
        commit: true,
    }
}

/// New chunks of 1 MiB, each worker in its own range; whole overwrites when the range is through.
async fn store_chunks(bench: &Bench, store: &Arc<Store>, chunks: u64, depth: u64) -> f64 {
    bench
        .rate(depth, |worker| {
            let (store, env, time) = (Arc::clone(store), bench.env.clone(), bench.time);
            let data = random(&env, MIB);
            let crcs = block_checksums(&data);
            let counter = Arc::clone(&bench.counter);
            let each = chunks / depth;
            Bench::repeat(env, time, move |number| {
                let index = worker * each + number % each;
                let (store, data, crcs) = (Arc::clone(&store), data.clone(), crcs.clone());
                let new = counter.fetch_add(1, Ordering::Relaxed) + 1;
                async move {
                    let stat = store.stat(TARGET, chunk(index)).await.unwrap();
                    let previous = stat.committed.map_or(0, |committed| committed.version.counter);
                    let update = update(index, new, previous, 0, data, crcs);
                    store.prepare(TARGET, update).await.unwrap();
                }
            })
        })
        .await
}

async fn store_overwrites(bench: &Bench, store: &Arc<Store>, chunks: u64, depth: u64) -> f64 {
    bench
        .rate(depth, |worker| {
            let (store, env, time) = (Arc::clone(store), bench.env.clone(), bench.time);
            let data = random(&env, BLOCK);
            let crcs = block_checksums(&data);
            let counter = Arc::clone(&bench.counter);
            Bench::repeat(env.clone(), time, move |_| {
                // Each worker has chunks of its own, so that versions follow each other.
                let index = env.random_below(chunks / depth) * depth + worker;
                let offset = env.random_below(256) as u32 * BLOCK as u32;
                let (store, data, crcs) = (Arc::clone(&store), data.clone(), crcs.clone());
                let new = counter.fetch_add(1, Ordering::Relaxed) + 1;
                async move {
                    let stat = store.stat(TARGET, chunk(index)).await.unwrap();
                    let previous = stat.committed.map_or(0, |committed| committed.version.counter);
                    let update = update(index, new, previous, offset, data, crcs);
                    store.prepare(TARGET, update).await.unwrap();
                }
            })
        })
        .await
}

async fn store_reads(bench: &Bench, store: &Arc<Store>, chunks: u64, depth: u64) -> f64 {
    bench
        .rate(depth, |_| {
            let (store, env, time) = (Arc::clone(store), bench.env.clone(), bench.time);
            Bench::repeat(env.clone(), time, move |_| {
                let index = env.random_below(chunks);
                let offset = env.random_below(256) as u32 * BLOCK as u32;
                let store = Arc::clone(&store);
                async move {
                    let floor = TruncateEpoch(0);
                    let length = BLOCK as u32;
                    let read =
                        store.read(TARGET, chunk(index), Which::Committed, offset, length, floor);
                    read.await.unwrap();
                }
            })
        })
        .await
}

async fn open(disk: &Arc<dyn Disk>, bench: &Bench) -> Arc<Store> {
    let (env, pool) = (bench.env.clone(), bench.pool.clone());
    Store::open(Arc::clone(disk), env, pool, Options::default()).await.unwrap()
}

async fn many_small_chunks(bench: &Bench, store: &Arc<Store>) {
    let start = bench.env.now();
    let depth = 256;
    let tasks: Vec<_> = (0..depth)
        .map(|worker| {
            let (store, data) = (Arc::clone(store), random(&bench.env, BLOCK));
            let crcs = block_checksums(&data);
            let counter = Arc::clone(&bench.counter);
            bench.env.spawn("worker", async move {
                for index in (worker..SMALL_CHUNKS).step_by(depth as usize) {
                    let new = counter.fetch_add(1, Ordering::Relaxed) + 1;
                    let small = update(1 << 32 | index, new, 0, 0, data.clone(), crcs.clone());
                    store.prepare(TARGET, small).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.join().await.unwrap();
    }
    let seconds = bench.env.now().since(start).as_secs_f64();
    println!(
        "{SMALL_CHUNKS} new chunks of 4 KiB, depth {depth}: {:.0}/s",
        SMALL_CHUNKS as f64 / seconds
    );
}

async fn run(directory: &Path, gib: u64, time: Duration) {
    let env = Env::real();
    let bench = Bench {
        env: env.clone(),
        pool: Pool::new(256 << 20),
        time,
        counter: Arc::new(AtomicU64::new(0)),
    };
    let options =
        || OpenOptions { capacity: Some(gib << 30), create: true, ..OpenOptions::default() };
    let raw = kiln_disk::open(&directory.join("raw"), options(), &env).await.unwrap();
    let disk = kiln_disk::open(&directory.join("store"), options(), &env).await.unwrap();
    println!("{}", disk.describe());
    let identity = Identity { disk: DiskId(env.random_u128()), cluster: ClusterId(1) };
    Store::format(&disk, identity).await.unwrap();
    let store = open(&disk, &bench).await;
    store.create_target(TARGET, ChainId(1), Vec::new()).await.unwrap();
    let chunks = gib * 1024 / 4;
    // Both files have all their blocks before anything is measured.
    let data = random(&env, MIB);
    let crcs = block_checksums(&data);
    for index in 0..chunks {
        raw.write(index * MIB as u64, data.clone()).await.unwrap();
        let new = bench.counter.fetch_add(1, Ordering::Relaxed) + 1;
        let update = update(index, new, 0, 0, data.clone(), crcs.clone());
        store.prepare(TARGET, update).await.unwrap();
    }
    raw.sync().await.unwrap();
    let span = chunks * MIB as u64;
    let (bench, raw, store) = (&bench, &raw, &store);
    for depth in [1, 32] {
        let name = "random read 4 KiB";
        let plain = async |depth| raw_reads(bench, raw, span, depth).await;
        bench
            .compare(name, BLOCK, depth, plain, async |d| {
                store_reads(bench, store, chunks, d).await
            })
            .await;
    }
    let plain = async |depth| raw_writes(bench, raw, MIB, depth).await;
    let ours = async |depth| store_chunks(bench, store, chunks, depth).await;
    bench.compare("write 1 MiB, durable", MIB, 8, plain, ours).await;
    for depth in [1, 32] {
        let plain = async |depth| raw_writes(bench, raw, BLOCK, depth).await;
        let ours = async |depth| store_overwrites(bench, store, chunks, depth).await;
        bench.compare("overwrite 4 KiB, durable", BLOCK, depth, plain, ours).await;
    }
    many_small_chunks(bench, store).await;
    store.close().await.unwrap();
    let start = env.now();
    let store = open(&disk, bench).await;
    let usage = store.usage();
    println!(
        "open: {:.2} s for {} chunks, {} MiB of log",
        env.now().since(start).as_secs_f64(),
        usage.chunks,
        usage.metadata_bytes >> 20
    );
    let verified = store.verify().await.unwrap();
    assert!(verified.is_clean(), "{verified:?}");
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().expect("usage: throughput DIRECTORY [GiB [seconds]]");
    let gib = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(4);
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(5);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run(Path::new(&directory), gib, Duration::from_secs(seconds)));
}
