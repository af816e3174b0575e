//! The store on a real file, with the real engines.
#![allow(clippy::unwrap_used, reason = "tests")]

use kiln_chunk_store::{Change, Identity, Options, Store, Update, Which};
use kiln_disk::{Engine, OpenOptions};
use kiln_env::Env;
use kiln_memory::{Bytes, Pool};
use kiln_types::{
    ChainId, ChainVersion, ChunkId, ChunkVersion, ClusterId, DiskId, InodeId, TargetId, TreeId,
    TruncateEpoch, block_checksums,
};
use std::path::Path;
use std::sync::Arc;

const TARGET: TargetId = TargetId(1);

fn chunk(index: u64) -> ChunkId {
    ChunkId::file(TreeId(0), InodeId(2), index)
}

fn content(index: u64) -> Bytes {
    let length = 1000 * (index as usize * 7 % 300 + 1);
    let bytes: Vec<u8> = (0..length).map(|at| (at as u64 * (index + 3) / 5) as u8).collect();
    Bytes::copy_of(&bytes)
}

async fn open(path: &Path, engine: Engine, env: &Env) -> Arc<Store> {
    let options =
        OpenOptions { capacity: Some(64 << 20), create: true, engine, ..OpenOptions::default() };
    let disk = kiln_disk::open(path, options, env).await.unwrap();
    if Store::identify(&disk).await.unwrap().is_none() {
        let identity = Identity { disk: DiskId(env.random_u128()), cluster: ClusterId(1) };
        Store::format(&disk, identity).await.unwrap();
    }
    Store::open(disk, env.clone(), Pool::new(8 << 20), Options::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_at_once_is_there_after_opening_again() {
    for engine in [Engine::Auto, Engine::Plain] {
        let env = Env::real();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let store = open(&path, engine, &env).await;
        store.create_target(TARGET, ChainId(1), Vec::new()).await.unwrap();
        let mut tasks = Vec::new();
        for index in 0..60 {
            let store = Arc::clone(&store);
            tasks.push(env.spawn("writer", async move {
                let bytes = content(index);
                let update = Update {
                    chunk: chunk(index),
                    version: ChunkVersion { chain: ChainVersion(1), counter: index + 1 },
                    previous: ChunkVersion::NONE,
                    epoch: TruncateEpoch(0),
                    floor: TruncateEpoch(0),
                    chunk_bytes: 1 << 20,
                    change: Change::Write { offset: 0, checksums: block_checksums(&bytes), bytes },
                    retry: None,
                    commit: true,
                };
                store.prepare(TARGET, update).await
            }));
        }
        for task in tasks {
            task.join().await.unwrap().unwrap();
        }
        store.close().await.unwrap();
        drop(store);
        let store = open(&path, engine, &env).await;
        for index in 0..60 {
            let floor = TruncateEpoch(0);
            let read = store.read(TARGET, chunk(index), Which::Committed, 0, u32::MAX, floor);
            assert_eq!(*read.await.unwrap().bytes, *content(index), "chunk {index}");
        }
        assert!(store.verify().await.unwrap().is_clean());
    }
}
