//! A fresh store on a simulated disk, and short ways to say what happens to it.
#![allow(dead_code, reason = "each test uses its part")]

use kiln_chunk_store::{Change, Identity, Options, Store, Update, Which};
use kiln_disk::{Disk, SimulatedDisk};
use kiln_env::{Env, Executor};
use kiln_memory::{Buffer, Bytes, Pool};
use kiln_types::{
    ChainId, ChainVersion, ChunkId, ChunkVersion, ClusterId, Code, DiskId, InodeId, TargetId,
    TreeId, TruncateEpoch, crc32c,
};
use std::sync::Arc;

pub(crate) const TARGET: TargetId = TargetId(7);
pub(crate) const MIB: u32 = 1 << 20;
pub(crate) const EPOCH: TruncateEpoch = TruncateEpoch(0);

pub(crate) fn identity() -> Identity {
    Identity { disk: DiskId(11), cluster: ClusterId(22) }
}

pub(crate) fn version(counter: u64) -> ChunkVersion {
    ChunkVersion { chain: ChainVersion(1), counter }
}

pub(crate) fn chunk(index: u64) -> ChunkId {
    ChunkId::file(TreeId(1), InodeId(5), index)
}

pub(crate) fn checksums(offset: u32, bytes: &[u8]) -> Vec<u32> {
    let first = (4096 - offset as usize % 4096).min(bytes.len());
    let (head, rest) = bytes.split_at(first);
    [head].into_iter().filter(|h| !h.is_empty()).chain(rest.chunks(4096)).map(crc32c).collect()
}

pub(crate) fn write_at(offset: u32, bytes: &[u8]) -> Change {
    let checksums = checksums(offset, bytes);
    Change::Write { offset, bytes: Bytes::copy_of(bytes), checksums }
}

pub(crate) fn update(index: u64, number: u64, previous: u64, change: Change) -> Update {
    let previous = if previous == 0 { ChunkVersion::NONE } else { version(previous) };
    Update {
        chunk: chunk(index),
        version: version(number),
        previous,
        epoch: EPOCH,
        floor: EPOCH,
        chunk_bytes: MIB,
        change,
        retry: None,
        commit: true,
    }
}

pub(crate) async fn open(disk: &Arc<SimulatedDisk>, env: &Env) -> Arc<Store> {
    let disk: Arc<dyn Disk> = Arc::clone(disk) as _;
    Store::open(disk, env.clone(), Pool::new(8 << 20), Options::default()).await.unwrap()
}

/// Runs a scenario on a fresh store with one target.
pub(crate) fn scenario<F: Future<Output = ()> + Send + 'static>(
    seed: u64,
    mib: u64,
    body: impl FnOnce(Env, Arc<SimulatedDisk>, Arc<Store>) -> F + Send + 'static,
) {
    let executor = Executor::new(seed);
    let env = executor.env();
    executor.run(async move {
        let disk = SimulatedDisk::new(env.clone(), mib << 20);
        let device: Arc<dyn Disk> = Arc::clone(&disk) as _;
        assert_eq!(Store::identify(&device).await.unwrap(), None);
        Store::format(&device, identity()).await.unwrap();
        assert_eq!(Store::identify(&device).await.unwrap(), Some(identity()));
        let again = Store::format(&device, identity()).await.map_err(|e| e.code());
        assert_eq!(again, Err(Code::Exists));
        let store = open(&disk, &env).await;
        store.create_target(TARGET, ChainId(3), vec![1]).await.unwrap();
        body(env, disk, store).await;
    });
}

pub(crate) async fn content(store: &Store, index: u64) -> Vec<u8> {
    let read =
        store.read(TARGET, chunk(index), Which::Committed, 0, u32::MAX, EPOCH).await.unwrap();
    assert_eq!(read.checksums, checksums(0, &read.bytes));
    read.bytes.to_vec()
}

/// Where a block that is filled with `byte` lies.
pub(crate) async fn find_block(disk: &Arc<SimulatedDisk>, byte: u8) -> u64 {
    for offset in (0..disk.capacity()).step_by(4096) {
        let block = disk.read(offset, Buffer::zeroed(4096)).await.unwrap();
        if block.iter().all(|found| *found == byte) {
            return offset;
        }
    }
    panic!("no block is filled with {byte}");
}
