//! Decay, failing disks, full disks, callers that go away.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{
    EPOCH, TARGET, checksums, chunk, content, find_block, open, scenario, update, version, write_at,
};
use kiln_chunk_store::{Change, ChunkCopy, Held, Install, Options, Store, Update, Which};
use kiln_disk::{Disk, Fault, SimulatedDisk};
use kiln_memory::{Buffer, Bytes, Pool};
use kiln_types::{Code, Result};
use std::sync::Arc;
use std::time::Duration;

fn code<T>(result: Result<T>) -> std::result::Result<(), Code> {
    result.map(|_| ()).map_err(|error| error.code())
}

#[test]
fn decay_is_told_and_never_signed_anew() {
    scenario(1, 16, |_, disk, store| async move {
        let bytes = [vec![1; 4096], vec![77; 4096]].concat();
        store.prepare(TARGET, update(0, 1, 0, write_at(0, &bytes))).await.unwrap();
        let place = find_block(&disk, 77).await;
        disk.flip_bit(place + 100, 3);
        let read =
            |offset, length| store.read(TARGET, chunk(0), Which::Committed, offset, length, EPOCH);
        assert_eq!(code(read(0, 4096).await), Ok(()));
        let error = read(8000, 10).await.unwrap_err();
        assert_eq!(error.code(), Code::ChecksumMismatch);
        assert!(error.message().contains("offset 4096"), "{error}");
        let merge = update(0, 2, 1, write_at(5000, &[2; 10]));
        assert_eq!(code(store.prepare(TARGET, merge).await), Err(Code::ChecksumMismatch));
        let cut = update(0, 2, 1, Change::Truncate { length: 8000 });
        assert_eq!(code(store.prepare(TARGET, cut).await), Err(Code::ChecksumMismatch));
        store.prepare(TARGET, update(0, 2, 1, write_at(4096, &[3; 4096]))).await.unwrap();
        assert_eq!(content(&store, 0).await[4096..], [3; 4096]);
    });
}

#[test]
fn a_descriptor_that_decays_damages_one_chunk() {
    scenario(7, 16, |env, disk, store| async move {
        for index in 0..40 {
            let put = update(index, 50 + index, 0, write_at(0, &[index as u8; 9000]));
            store.prepare(TARGET, put).await.unwrap();
        }
        let pending = update(3, 99, 53, write_at(0, &[99; 10]));
        store.prepare(TARGET, Update { commit: false, ..pending }).await.unwrap();
        store.close().await.unwrap();
        let disk = disk.kill();
        let device: Arc<dyn Disk> = Arc::clone(&disk) as _;
        let options = Options { cache_bytes: 0, ..Options::default() };
        let store = Store::open(device, env, Pool::new(8 << 20), options).await.unwrap();
        disk.flip_bit(find_bytes(&disk, chunk(3).as_bytes()).await, 0);
        let stat = store.stat(TARGET, chunk(3)).await.unwrap();
        assert_eq!((stat.committed, stat.damaged), (None, Some(version(53))));
        let list = store.list(TARGET, chunk(0), chunk(100), 100).await.unwrap();
        let damaged: Vec<_> = list.iter().filter(|(_, stat)| stat.damaged.is_some()).collect();
        assert_eq!(damaged, [&(chunk(3), stat)]);
        let versions = store.versions(TARGET, chunk(3), chunk(4), 9).await.unwrap();
        assert_eq!(versions, [(chunk(3), stat.held())]);
        let read = store.read(TARGET, chunk(3), Which::Committed, 0, 10, EPOCH).await;
        assert_eq!(code(read), Err(Code::Corrupt));
        let bytes = Bytes::copy_of(&[3; 9000]);
        let whole = Some((bytes.clone(), checksums(0, &bytes)));
        let copy = ChunkCopy { version: version(53), epoch: EPOCH, content: whole };
        let install = |expected| {
            let install = Install { chunk: chunk(3), expected, copy: Some(copy.clone()) };
            store.install(TARGET, install)
        };
        assert_eq!(code(install(Held::default()).await), Err(Code::VersionMismatch));
        install(stat.held()).await.unwrap();
        assert_eq!(content(&store, 3).await, [3; 9000]);
        store.close().await.unwrap();
    });
}

/// Where a chunk's record names it.
async fn find_bytes(disk: &Arc<SimulatedDisk>, bytes: &[u8]) -> u64 {
    for offset in (0..disk.capacity()).step_by(4096) {
        let block = disk.read(offset, Buffer::zeroed(4096)).await.unwrap();
        let mut found = block.windows(bytes.len()).enumerate();
        if let Some((at, _)) = found.find(|(_, window)| *window == bytes) {
            return offset + at as u64;
        }
    }
    panic!("no such record");
}

#[test]
fn data_that_changed_on_its_way_is_refused() {
    scenario(2, 16, |_, _, store| async move {
        let Change::Write { offset, bytes, mut checksums } = write_at(100, &[5; 9000]) else {
            return;
        };
        checksums[1] ^= 1;
        let change = Change::Write { offset, bytes, checksums };
        let refused = store.prepare(TARGET, update(0, 1, 0, change)).await;
        assert_eq!(code(refused), Err(Code::ChecksumMismatch));
        assert_eq!(store.stat(TARGET, chunk(0)).await.unwrap().committed, None);
    });
}

#[test]
fn after_a_failed_sync_nothing_works() {
    scenario(3, 16, |env, disk, store| async move {
        store.prepare(TARGET, update(0, 1, 0, write_at(0, &[1; 100]))).await.unwrap();
        env.sleep(Duration::from_secs(1)).await;
        disk.fail_next(Fault::Sync, 0);
        let put = |number, previous| update(0, number, previous, write_at(0, &[2; 100]));
        assert_eq!(code(store.prepare(TARGET, put(2, 1)).await), Err(Code::DiskFailed));
        assert_eq!(code(store.prepare(TARGET, put(3, 1)).await), Err(Code::DiskFailed));
        assert_eq!(code(store.stat(TARGET, chunk(0)).await), Err(Code::DiskFailed));
        assert_eq!(code(store.commit(TARGET, chunk(0), version(2)).await), Err(Code::DiskFailed));
        assert_eq!(code(store.close().await), Err(Code::DiskFailed));
    });
}

#[test]
fn a_failed_data_write_fails_only_its_caller() {
    scenario(4, 16, |env, disk, store| async move {
        env.sleep(Duration::from_secs(1)).await;
        disk.fail_next(Fault::Write, 0);
        let put = || update(0, 1, 0, write_at(0, &[1; 100]));
        assert_eq!(code(store.prepare(TARGET, put()).await), Err(Code::DiskFailed));
        store.prepare(TARGET, put()).await.unwrap();
        assert_eq!(content(&store, 0).await, [1; 100]);
        assert!(store.verify().await.unwrap().is_clean());
    });
}

#[test]
fn a_caller_that_goes_away_leaves_nothing_half_done() {
    for seed in 0..40 {
        scenario(seed, 16, move |env, disk, store| async move {
            let limit = Duration::from_micros(env.random_below(1500));
            let put = update(0, 1, 0, write_at(10, &[1; 50_000]));
            let _ = env.timeout(limit, "prepare", store.prepare(TARGET, put)).await;
            // What was given up may still be under way: the next change of the chunk waits for it.
            let next = update(0, 2, 1, write_at(0, &[2; 10]));
            let next = store.prepare(TARGET, next).await.map_err(|error| error.code());
            let stat = store.stat(TARGET, chunk(0)).await.unwrap().committed;
            match next {
                Ok(()) => {
                    assert_eq!(content(&store, 0).await[..11], [[2; 10].as_slice(), &[1]].concat())
                }
                Err(code) => assert_eq!((code, stat), (Code::VersionMismatch, None), "seed {seed}"),
            }
            env.sleep(Duration::from_millis(20)).await;
            assert!(store.verify().await.unwrap().is_clean(), "seed {seed}");
            let store = open(&disk.power_loss(), &env).await;
            let found = store.stat(TARGET, chunk(0)).await.unwrap().committed;
            assert!(found.is_some() || stat.is_none(), "seed {seed}");
        });
    }
}

#[test]
fn of_many_writers_of_one_version_one_wins() {
    for seed in 0..20 {
        scenario(seed, 16, move |env, _, store| async move {
            let tasks: Vec<_> = (1..=8_u8)
                .map(|number| {
                    let store = Arc::clone(&store);
                    env.spawn("writer", async move {
                        let change = write_at(0, &[number; 10_000]);
                        let put = update(0, u64::from(number), 0, change);
                        store.prepare(TARGET, put).await.map_err(|error| error.code())
                    })
                })
                .collect();
            let mut winner = None;
            for (number, task) in (1..).zip(tasks) {
                match task.join().await.unwrap() {
                    Ok(()) => assert_eq!(winner.replace(number), None, "seed {seed}: one"),
                    Err(code) => assert_eq!(code, Code::VersionMismatch),
                }
            }
            assert_eq!(content(&store, 0).await, vec![winner.unwrap(); 10_000]);
        });
    }
}

/// Writes chunks of 256 KiB until the disk is full; how many there are.
async fn fill(store: &Arc<Store>, from: u64) -> u64 {
    for index in from.. {
        let put = update(index, index + 1, 0, write_at(0, &[index as u8; 256 << 10]));
        match store.prepare(TARGET, put).await {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.code(), Code::NoSpace);
                return index;
            }
        }
    }
    0
}

#[test]
fn a_full_disk_goes_on_and_recovers() {
    for room in [None, Some(10 << 20)] {
        scenario(5, 16, move |env, disk, store| async move {
            if let Some(room) = room {
                disk.set_physical_capacity(room);
            }
            let full = fill(&store, 0).await;
            assert!(full > 20, "only {full} chunks fit");
            for index in 0..full {
                assert_eq!(content(&store, index).await, vec![index as u8; 256 << 10]);
            }
            let cut = Change::Truncate { length: 1000 };
            let cut = store.prepare(TARGET, update(0, 1000, 1, cut)).await;
            assert!(cut.is_ok() || room.is_some(), "{cut:?}");
            for index in 1..full {
                let remove = update(index, 1000 + index, index + 1, Change::Remove);
                store.prepare(TARGET, remove).await.unwrap();
            }
            // The disk gets its space back a little later.
            env.sleep(Duration::from_secs(10)).await;
            let again = fill(&store, 2000).await - 2000;
            assert!(again + 8 > full, "{again} chunks fit where {full} did");
            assert!(store.verify().await.unwrap().is_clean());
            let store = open(&disk.power_loss(), &env).await;
            for index in 2000..2000 + again {
                assert_eq!(content(&store, index).await, vec![index as u8; 256 << 10]);
            }
        });
    }
}

#[test]
fn a_reader_keeps_what_it_reads() {
    scenario(6, 16, |env, _, store| async move {
        for round in 1..60_u64 {
            let change = write_at(0, &vec![round as u8; 200_000]);
            store.prepare(TARGET, update(0, round, round - 1, change)).await.unwrap();
            let readers: Vec<_> = (0..3)
                .map(|_| {
                    let store = Arc::clone(&store);
                    env.spawn("reader", async move { content(&store, 0).await })
                })
                .collect();
            let change = write_at(1, &vec![round as u8; 199_999]);
            let same = Update { commit: false, ..update(0, 1000 + round, round, change) };
            store.prepare(TARGET, same).await.unwrap();
            store.discard(TARGET, chunk(0), version(1000 + round)).await.unwrap();
            let next = round as u8 + 1;
            let change = write_at(0, &vec![next; 200_000]);
            let next_version = update(1, round, round - 1, change);
            store.prepare(TARGET, next_version).await.unwrap();
            for reader in readers {
                assert_eq!(reader.join().await.unwrap(), vec![round as u8; 200_000]);
            }
        }
    });
}
