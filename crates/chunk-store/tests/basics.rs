//! Single scenarios, each said in one test.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{
    EPOCH, MIB, TARGET, checksums, chunk, content, identity, open, scenario, update, version,
    write_at,
};
use kiln_chunk_store::{Change, Options, Store, Update, Which};
use kiln_disk::{Disk, SimulatedDisk};
use kiln_env::Executor;
use kiln_memory::{Bytes, Pool};
use kiln_types::{
    ChainId, ChannelId, ChunkVersion, ClientId, Code, RetryKey, Sequence, TruncateEpoch,
};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn writes_merge_grow_and_leave_holes() {
    scenario(1, 16, |env, disk, store| async move {
        store.prepare(TARGET, update(0, 1, 0, write_at(100, &[1; 5000]))).await.unwrap();
        store.prepare(TARGET, update(0, 2, 1, write_at(4000, &[2; 200]))).await.unwrap();
        store.prepare(TARGET, update(0, 3, 2, write_at(20_000, &[3; 10]))).await.unwrap();
        let mut expected = vec![0; 20_010];
        expected[100..5100].fill(1);
        expected[4000..4200].fill(2);
        expected[20_000..].fill(3);
        assert_eq!(content(&store, 0).await, expected);
        let part = store.read(TARGET, chunk(0), Which::Committed, 4090, 100, EPOCH).await.unwrap();
        assert_eq!(&*part.bytes, &expected[4090..4190]);
        assert_eq!(part.checksums, checksums(4090, &part.bytes));
        assert_eq!(store.usage().targets, vec![(TARGET, 3 * 4096)], "holes take no space");
        let disk = disk.power_loss();
        let store = open(&disk, &env).await;
        assert_eq!(content(&store, 0).await, expected);
        assert_eq!(store.verify().await.unwrap().problems, Vec::<String>::new());
    });
}

#[test]
fn chunks_of_many_parts_share_what_a_small_write_leaves() {
    scenario(2, 64, |env, disk, store| async move {
        let large = |number, previous, change| Update {
            chunk_bytes: 64 * MIB,
            ..update(0, number, previous, change)
        };
        let bytes: Vec<u8> = (0..5 * MIB / 2).map(|i| (i / 7) as u8).collect();
        store.prepare(TARGET, large(1, 0, write_at(MIB / 2, &bytes))).await.unwrap();
        store.prepare(TARGET, large(2, 1, write_at(2 * MIB - 10, &[9; 20]))).await.unwrap();
        store.prepare(TARGET, large(3, 2, write_at(60 * MIB, &[8; 1]))).await.unwrap();
        let mut expected = vec![0; 60 * MIB as usize + 1];
        expected[(MIB / 2) as usize..][..bytes.len()].copy_from_slice(&bytes);
        expected[2 * MIB as usize - 10..][..20].fill(9);
        expected[60 * MIB as usize] = 8;
        assert!(content(&store, 0).await == expected);
        let disk = disk.power_loss();
        let store = open(&disk, &env).await;
        assert!(content(&store, 0).await == expected);
        let cut = large(4, 3, Change::Truncate { length: MIB - 5 });
        store.prepare(TARGET, cut).await.unwrap();
        expected.truncate(MIB as usize - 5);
        assert!(content(&store, 0).await == expected);
        assert_eq!(store.usage().targets, vec![(TARGET, u64::from(MIB) / 2)]);
        store.close().await.unwrap();
        let store = open(&disk, &env).await;
        assert!(content(&store, 0).await == expected);
        assert!(store.verify().await.unwrap().is_clean());
        store.prepare(TARGET, large(5, 4, Change::Remove)).await.unwrap();
        assert_eq!(store.usage().targets, vec![(TARGET, 0)]);
        assert!(store.verify().await.unwrap().is_clean());
    });
}

#[test]
fn zeros_take_no_space_and_keep_the_length() {
    scenario(12, 16, |env, disk, store| async move {
        let zero = |offset, length| Change::Zero { offset, length };
        let large = |number, change| Update {
            chunk_bytes: 4 * MIB,
            ..update(0, number, number - 1, change)
        };
        let mut expected = vec![7; 2 * MIB as usize + 100];
        store.prepare(TARGET, large(1, write_at(0, &expected))).await.unwrap();
        let blocks = |store: &Store| store.usage().targets[0].1 / 4096;
        let full = blocks(&store);
        store.prepare(TARGET, large(2, zero(4000, 8500))).await.unwrap();
        expected[4000..12_500].fill(0);
        assert!(content(&store, 0).await == expected);
        assert_eq!(blocks(&store), full - 2, "two whole blocks are free");
        store.prepare(TARGET, large(3, zero(MIB - 4096, MIB))).await.unwrap();
        expected[MIB as usize - 4096..2 * MIB as usize - 4096].fill(0);
        store.prepare(TARGET, large(4, zero(2 * MIB + 50, 2 * MIB - 50))).await.unwrap();
        expected[2 * MIB as usize + 50..].fill(0);
        assert!(content(&store, 0).await == expected);
        assert_eq!(blocks(&store), full - 2 - 256);
        let extents = async |store: &Store, range| {
            store.extents(TARGET, chunk(0), Which::Committed, range, EPOCH).await.unwrap().data
        };
        let tail = 2 * MIB - 4096..2 * MIB + 100;
        let data = vec![0..4096, 12_288..MIB - 4096, tail.clone()];
        assert_eq!(extents(&store, (0, u32::MAX)).await, data);
        assert_eq!(extents(&store, (5000, 8000)).await, vec![12_288..13_000]);
        let disk = disk.power_loss();
        let store = open(&disk, &env).await;
        assert!(content(&store, 0).await == expected);
        assert_eq!(extents(&store, (MIB, 2 * MIB)).await, vec![tail]);
        store.prepare(TARGET, large(5, zero(0, 2 * MIB + 100))).await.unwrap();
        assert!(content(&store, 0).await == vec![0; 2 * MIB as usize + 100], "the length stays");
        assert_eq!((blocks(&store), extents(&store, (0, u32::MAX)).await), (0, vec![]));
        assert!(store.verify().await.unwrap().is_clean());
        let beyond = Update { chunk_bytes: MIB, ..large(6, zero(MIB, 1)) };
        assert_eq!(store.prepare(TARGET, beyond).await.unwrap_err().code(), Code::Invalid);
        store.prepare(TARGET, update(1, 6, 0, zero(0, 5000))).await.unwrap();
        let stat = store.stat(TARGET, chunk(1)).await.unwrap().committed.unwrap();
        assert_eq!((stat.length, stat.removed, stat.version), (0, false, version(6)));
    });
}

#[test]
fn versions_are_checked() {
    scenario(3, 16, |_, _, store| async move {
        let code = |result: kiln_types::Result<()>| result.map_err(|e| e.code());
        let pending = |update: Update| Update { commit: false, ..update };
        let put = |number, previous| update(0, number, previous, write_at(0, &[number as u8; 10]));
        assert_eq!(code(store.prepare(TARGET, put(5, 1)).await), Err(Code::VersionMismatch));
        store.prepare(TARGET, pending(put(5, 0))).await.unwrap();
        assert_eq!(store.pending(TARGET), vec![(chunk(0), version(5))]);
        store.prepare(TARGET, pending(put(5, 0))).await.unwrap();
        assert_eq!(code(store.prepare(TARGET, put(6, 0)).await), Err(Code::VersionMismatch));
        let read = |which| store.read(TARGET, chunk(0), which, 0, 99, EPOCH);
        assert_eq!(read(Which::Committed).await.unwrap_err().code(), Code::ChunkNotFound);
        assert_eq!(&*read(Which::Version(version(5))).await.unwrap().bytes, &[5; 10]);
        store.commit(TARGET, chunk(0), version(5)).await.unwrap();
        store.commit(TARGET, chunk(0), version(5)).await.unwrap();
        assert_eq!(&*read(Which::Committed).await.unwrap().bytes, &[5; 10]);
        assert_eq!(code(store.prepare(TARGET, put(6, 4)).await), Err(Code::VersionMismatch));
        assert_eq!(code(store.prepare(TARGET, put(4, 5)).await), Err(Code::VersionMismatch));
        store.prepare(TARGET, pending(put(6, 5))).await.unwrap();
        store.discard(TARGET, chunk(0), version(6)).await.unwrap();
        store.discard(TARGET, chunk(0), version(6)).await.unwrap();
        let committed = code(store.discard(TARGET, chunk(0), version(5)).await);
        assert_eq!(committed, Err(Code::VersionMismatch));
        assert_eq!(store.version_max(TARGET), version(6));
        store.prepare(TARGET, update(0, 7, 5, Change::Remove)).await.unwrap();
        assert_eq!(read(Which::Committed).await.unwrap_err().code(), Code::ChunkNotFound);
        assert_eq!(code(store.prepare(TARGET, put(7, 7)).await), Ok(()), "it is there already");
        assert_eq!(code(store.prepare(TARGET, put(6, 0)).await), Err(Code::VersionMismatch));
        let stat = store.stat(TARGET, chunk(0)).await.unwrap().committed.unwrap();
        assert!(stat.removed && stat.version == version(7));
        let newer = Update { epoch: TruncateEpoch(3), ..put(8, 0) };
        store.prepare(TARGET, newer).await.unwrap();
        assert_eq!(code(store.prepare(TARGET, put(9, 8)).await), Err(Code::StaleEpoch));
        let above = TruncateEpoch(4);
        let floored =
            Update { epoch: above, floor: above, ..update(0, 9, 8, write_at(5, &[9; 2])) };
        store.prepare(TARGET, floored).await.unwrap();
        assert_eq!(content(&store, 0).await, [0, 0, 0, 0, 0, 9, 9]);
    });
}

#[test]
fn retry_records_live_with_their_write() {
    scenario(4, 16, |env, disk, store| async move {
        let key = |client, sequence| RetryKey {
            client: ClientId(client),
            channel: ChannelId(1),
            sequence: Sequence(sequence),
        };
        let put = |number, previous, retry| Update {
            retry: Some(retry),
            commit: false,
            ..update(0, number, previous, write_at(0, &[1]))
        };
        store.prepare(TARGET, put(1, 0, key(1, 1))).await.unwrap();
        store.commit(TARGET, chunk(0), version(1)).await.unwrap();
        store.prepare(TARGET, put(2, 1, key(2, 1))).await.unwrap();
        let disk = disk.power_loss();
        let store = open(&disk, &env).await;
        let record = |store: &Store, client| {
            store.retry_record(TARGET, ClientId(client), ChannelId(1)).map(|r| (r.key, r.version))
        };
        assert_eq!(record(&store, 1), Some((key(1, 1), version(1))));
        assert_eq!(record(&store, 2), Some((key(2, 1), version(2))));
        store.discard(TARGET, chunk(0), version(2)).await.unwrap();
        let over = Some((key(2, 0), ChunkVersion::NONE));
        assert_eq!(record(&store, 2), over, "it may be tried again, and none before it");
        store.forget_client(ClientId(1)).await.unwrap();
        let disk = disk.power_loss();
        let store = open(&disk, &env).await;
        assert_eq!((record(&store, 1), record(&store, 2)), (None, over));
    });
}

#[test]
fn a_removed_target_gives_its_space_back() {
    scenario(5, 16, |env, disk, store| async move {
        env.sleep(Duration::from_secs(2)).await;
        let before = store.usage();
        for index in 0..5 {
            let change = write_at(0, &[index as u8; 100_000]);
            store.prepare(TARGET, update(index, index + 1, 0, change)).await.unwrap();
        }
        store.remove_target(TARGET).await.unwrap();
        assert_eq!(store.targets(), Vec::new());
        assert!(store.verify().await.unwrap().is_clean());
        env.sleep(Duration::from_secs(2)).await;
        assert_eq!(store.usage().free_bytes, before.free_bytes);
        store.create_target(TARGET, ChainId(9), Vec::new()).await.unwrap();
        store.set_target_state(TARGET, vec![4, 5]).await.unwrap();
        let disk = disk.power_loss();
        let store = open(&disk, &env).await;
        let targets = store.targets();
        assert_eq!((targets[0].chain, targets[0].state.as_slice()), (ChainId(9), &[4, 5][..]));
        assert_eq!(store.usage().chunks, 0);
    });
}

#[test]
fn lists_are_ordered_and_complete() {
    scenario(6, 16, |_, _, store| async move {
        for index in [3, 1, 4, 15, 9, 2, 6] {
            let put = update(index, index, 0, write_at(0, &[7]));
            store.prepare(TARGET, Update { commit: index != 9, ..put }).await.unwrap();
        }
        store.prepare(TARGET, update(15, 16, 15, Change::Remove)).await.unwrap();
        let list = store.list(TARGET, chunk(2), chunk(100), 5).await.unwrap();
        let ids: Vec<_> = list.iter().map(|(id, _)| id.as_file().unwrap().2).collect();
        assert_eq!(ids, [2, 3, 4, 6, 9]);
        assert!(list[4].1.committed.is_none() && list[4].1.pending.is_some());
    });
}

#[test]
fn what_is_not_a_store_is_told_from_one() {
    let executor = Executor::new(7);
    let env = executor.env();
    executor.run(async move {
        let disk: Arc<dyn Disk> = SimulatedDisk::new(env.clone(), 16 << 20);
        let opened = Store::open(Arc::clone(&disk), env, Pool::new(0), Options::default()).await;
        assert_eq!(opened.map(|_| ()).unwrap_err().code(), Code::NotFound);
        disk.write(0, Bytes::copy_of(&[7; 4096])).await.unwrap();
        assert_eq!(Store::identify(&disk).await.unwrap_err().code(), Code::Corrupt);
        assert_eq!(Store::format(&disk, identity()).await.unwrap_err().code(), Code::Corrupt);
    });
}
