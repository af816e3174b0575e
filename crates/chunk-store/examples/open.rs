//! How long a store with many chunks takes to open, and what its index takes of memory.
//!
//! `cargo run --release -p kiln-chunk-store --example open -- DIRECTORY [chunks]` makes the store;
//! the same command again opens it, in a process that has used no memory before.
#![allow(clippy::unwrap_used, reason = "an example that cannot go on fails")]

use kiln_chunk_store::{Change, Identity, Options, Store, Update};
use kiln_disk::{Disk, OpenOptions};
use kiln_env::Env;
use kiln_memory::{Buffer, Bytes, Pool};
use kiln_types::{
    ChainId, ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, ClusterId, DiskId, InodeId,
    RetryKey, Sequence, TargetId, TreeId, TruncateEpoch, block_checksums,
};
use std::path::Path;
use std::sync::Arc;

const TARGET: TargetId = TargetId(1);
const WORKERS: u64 = 512;
const FILE_CHUNKS: u64 = 8;
/// Chunks that are asked for at once.
const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

fn chunk(index: u64) -> ChunkId {
    ChunkId::file(TreeId(1), InodeId(index / FILE_CHUNKS), index % FILE_CHUNKS)
}

/// Chunks of one block, as small files have them, written by many clients at once.
async fn make(env: &Env, store: &Arc<Store>, chunks: u64) {
    let start = env.now();
    store.create_target(TARGET, ChainId(1), Vec::new()).await.unwrap();
    let data = Bytes::copy_of(&[7; 4096]);
    let tasks: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let (store, bytes) = (Arc::clone(store), data.clone());
            let checksums = block_checksums(&bytes);
            env.spawn("worker", async move {
                let channel = ChannelId(0);
                for index in (worker..chunks).step_by(WORKERS as usize) {
                    let change = Change::Write {
                        offset: 0,
                        bytes: bytes.clone(),
                        checksums: checksums.clone(),
                    };
                    let sequence = Sequence(index);
                    let update = Update {
                        chunk: chunk(index),
                        version: ChunkVersion { chain: ChainVersion(1), counter: index + 1 },
                        previous: ChunkVersion::NONE,
                        epoch: TruncateEpoch(0),
                        floor: TruncateEpoch(0),
                        chunk_bytes: MIB as u32,
                        change,
                        retry: Some(RetryKey {
                            client: ClientId(worker.into()),
                            channel,
                            sequence,
                        }),
                        commit: true,
                    };
                    store.prepare(TARGET, update).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.join().await.unwrap();
    }
    store.close().await.unwrap();
    let seconds = env.now().since(start).as_secs_f64();
    println!("made {chunks} chunks in {seconds:.1} s; run it again to open the store");
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Reads as many bytes from the beginning of the disk as the log has; seconds.
async fn read_raw(env: &Env, disk: &Arc<dyn Disk>, bytes: u64) -> f64 {
    let start = env.now();
    let mut buffer = Buffer::zeroed(MIB);
    for offset in (0..bytes.min(disk.capacity())).step_by(MIB) {
        buffer = disk.read(offset, buffer).await.unwrap();
    }
    env.now().since(start).as_secs_f64()
}

async fn open(env: &Env, disk: &Arc<dyn Disk>) -> Arc<Store> {
    // No cache of descriptors: what is measured is the index.
    let options = Options { cache_bytes: 0, ..Options::default() };
    Store::open(Arc::clone(disk), env.clone(), Pool::new(8 << 20), options).await.unwrap()
}

async fn measure(env: &Env, disk: &Arc<dyn Disk>) {
    let (before, start) = (resident(), env.now());
    let store = open(env, disk).await;
    let seconds = env.now().since(start).as_secs_f64();
    let grown = resident() - before;
    let usage = store.usage();
    let raw = read_raw(env, disk, usage.metadata_bytes).await;
    println!(
        "open: {seconds:.2} s for {} chunks, {} MiB of log; reading as much: {raw:.2} s, ratio {:.1}",
        usage.chunks,
        usage.metadata_bytes >> 20,
        seconds / raw
    );
    println!(
        "index: {:.1} bytes a chunk; the process grew by {:.1} bytes a chunk",
        usage.index_bytes as f64 / usage.chunks as f64,
        grown as f64 / usage.chunks as f64
    );
    let start = env.now();
    let (mut from, mut listed) = (ChunkId::MIN, 0);
    loop {
        let mut page = store.versions(TARGET, from, ChunkId::MAX, PAGE + 1).await.unwrap();
        let next = page.split_off(PAGE.min(page.len()));
        listed += page.len();
        let Some((next, _)) = next.first() else { break };
        from = *next;
    }
    let seconds = env.now().since(start).as_secs_f64();
    println!("versions of {listed} chunks: {seconds:.2} s");
}

async fn run(directory: &Path, chunks: u64) {
    let env = Env::real();
    let capacity = Some((chunks * 8192 + (1 << 30)) & !0xfff);
    let options = OpenOptions { capacity, create: true, ..OpenOptions::default() };
    let disk = kiln_disk::open(&directory.join("store"), options, &env).await.unwrap();
    println!("{}", disk.describe());
    if Store::identify(&disk).await.unwrap().is_some() {
        return measure(&env, &disk).await;
    }
    let identity = Identity { disk: DiskId(env.random_u128()), cluster: ClusterId(1) };
    Store::format(&disk, identity).await.unwrap();
    make(&env, &open(&env, &disk).await, chunks).await;
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().expect("usage: open DIRECTORY [chunks]");
    let chunks = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run(Path::new(&directory), chunks));
}
