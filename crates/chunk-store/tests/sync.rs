//! Filling a replica from another one.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{TARGET, checksums, chunk, content, open, scenario, update, version, write_at};
use kiln_chunk_store::{ChunkCopy, Held, Install, RetryRecord, Store, Update};
use kiln_memory::Bytes;
use kiln_types::{
    ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, Code, RetryKey, Sequence,
    TruncateEpoch,
};
use std::sync::Arc;
use std::time::Duration;

fn copy(number: u64, bytes: &[u8]) -> ChunkCopy {
    let content = Some((Bytes::copy_of(bytes), checksums(0, bytes)));
    ChunkCopy { version: version(number), epoch: TruncateEpoch(3), content }
}

fn held(committed: u64, pending: Option<u64>) -> Held {
    let committed = if committed == 0 { ChunkVersion::NONE } else { version(committed) };
    Held { committed, pending: pending.map(version) }
}

async fn install(
    store: &Arc<Store>,
    index: u64,
    expected: Held,
    copy: Option<ChunkCopy>,
) -> Result<(), Code> {
    let install = Install { chunk: chunk(index), expected, copy };
    store.install(TARGET, install).await.map_err(|error| error.code())
}

fn retry(client: u128, sequence: u64) -> RetryKey {
    let (client, channel) = (ClientId(client), ChannelId(5));
    RetryKey { client, channel, sequence: Sequence(sequence) }
}

#[test]
fn an_install_replaces_whatever_is_here() {
    scenario(1, 16, |env, disk, store| async move {
        store.prepare(TARGET, update(0, 8, 0, write_at(0, &[1; 9000]))).await.unwrap();
        let pending = update(0, 9, 8, write_at(5000, &[2; 9000]));
        let pending = Update { commit: false, retry: Some(retry(1, 4)), ..pending };
        store.prepare(TARGET, pending).await.unwrap();
        let here = held(8, Some(9));
        assert_eq!(store.stat(TARGET, chunk(0)).await.unwrap().held(), here);
        let mut bad = copy(7, &[3; 5000]);
        bad.content.iter_mut().for_each(|(_, checksums)| checksums[1] ^= 1);
        assert_eq!(install(&store, 0, here, Some(bad)).await, Err(Code::ChecksumMismatch));
        let late = install(&store, 0, held(8, None), Some(copy(7, &[3; 5000]))).await;
        assert_eq!(late, Err(Code::VersionMismatch));
        assert_eq!(install(&store, 0, here, Some(copy(7, &[3; 5000]))).await, Ok(()));
        assert_eq!(install(&store, 0, here, Some(copy(7, &[3; 5000]))).await, Ok(()), "again");
        let over = RetryRecord { key: retry(1, 3), chunk: chunk(0), version: ChunkVersion::NONE };
        assert_eq!(store.retry_record(TARGET, ClientId(1), ChannelId(5)), Some(over));
        assert_eq!(store.usage().targets, vec![(TARGET, 2 * 4096)]);
        let disk = disk.power_loss();
        let store = open(&disk, &env).await;
        assert_eq!(content(&store, 0).await, [3; 5000]);
        assert_eq!(store.retry_records(TARGET, None, 10), [over]);
        assert_eq!(store.version_max(TARGET), version(9), "it never goes back");
        assert_eq!(install(&store, 0, held(7, None), None).await, Ok(()));
        assert_eq!(store.list(TARGET, ChunkId::MIN, ChunkId::MAX, 9).await.unwrap(), []);
        let disk = disk.power_loss();
        let store = open(&disk, &env).await;
        assert_eq!(store.list(TARGET, ChunkId::MIN, ChunkId::MAX, 9).await.unwrap(), []);
        assert_eq!(store.usage().targets, vec![(TARGET, 0)]);
        assert!(store.verify().await.unwrap().is_clean());
    });
}

#[test]
fn an_install_and_a_commit_at_once_agree_on_who_was_first() {
    let mut first = [0, 0];
    for seed in 0..60 {
        let (sender, receiver) = std::sync::mpsc::channel();
        scenario(seed, 16, move |env, disk, store| async move {
            store.prepare(TARGET, update(0, 8, 0, write_at(0, &[1; 20_000]))).await.unwrap();
            let pending = update(0, 9, 8, write_at(5000, &[2; 9000]));
            store.prepare(TARGET, Update { commit: false, ..pending }).await.unwrap();
            let (other, pause) = (Arc::clone(&store), env.random_below(300));
            let env2 = env.clone();
            let commit = env.spawn("commit", async move {
                env2.sleep(Duration::from_micros(pause)).await;
                other.commit(TARGET, chunk(0), version(9)).await.is_ok()
            });
            let installed = install(&store, 0, held(8, Some(9)), Some(copy(7, &[3; 9000]))).await;
            let committed = commit.join().await.unwrap();
            assert_eq!(installed.is_ok(), !committed, "seed {seed}: {installed:?}");
            env.sleep(Duration::from_secs(1)).await;
            let expected = if committed { 9 } else { 7 };
            let check = async |store: Arc<Store>| {
                let stat = store.stat(TARGET, chunk(0)).await.unwrap();
                assert_eq!(stat.held(), held(expected, None), "seed {seed}");
                assert!(store.verify().await.unwrap().is_clean(), "seed {seed}");
            };
            check(store).await;
            check(open(&disk.power_loss(), &env).await).await;
            sender.send(usize::from(committed)).unwrap();
        });
        first[receiver.recv().unwrap()] += 1;
    }
    assert!(first.iter().all(|count| *count > 5), "{first:?}");
}

#[test]
fn a_copy_has_holes_where_the_chunk_has_them() {
    scenario(5, 16, |env, disk, store| async move {
        let mut bytes = vec![0; 1_000_000];
        bytes[5000..5003].fill(1);
        bytes[900_000..].fill(2);
        install(&store, 0, held(0, None), Some(copy(7, &bytes))).await.unwrap();
        let blocks = 1 + (900_000_u64..1_000_000).map(|at| at / 4096).max().unwrap() - 219 + 1;
        assert_eq!(store.usage().targets, vec![(TARGET, blocks * 4096)]);
        install(&store, 1, held(0, None), Some(copy(7, &[0; 9000]))).await.unwrap();
        assert_eq!(store.usage().targets, vec![(TARGET, blocks * 4096)]);
        let disk = disk.power_loss();
        let store = open(&disk, &env).await;
        assert_eq!(content(&store, 0).await, bytes);
        assert_eq!(content(&store, 1).await, [0; 9000]);
        assert!(store.verify().await.unwrap().is_clean());
    });
}

#[test]
fn versions_are_told_as_they_are() {
    scenario(2, 16, |_, _, store| async move {
        let far = ChunkVersion { chain: ChainVersion(1 << 40), counter: 3 };
        let last = ChunkVersion { chain: ChainVersion(7), counter: 1 << 50 };
        for (index, version) in [(1, far), (2, version(5)), (3, last)] {
            let copy = ChunkCopy { version, ..copy(1, &[1; 100]) };
            install(&store, index, held(0, None), Some(copy)).await.unwrap();
        }
        let pending = Update { commit: false, ..update(4, 6, 0, write_at(0, &[1])) };
        store.prepare(TARGET, pending).await.unwrap();
        let versions = store.versions(TARGET, chunk(1), ChunkId::MAX, 9).await.unwrap();
        let committed = |committed| Held { committed, pending: None };
        let expected = [
            (chunk(1), committed(far)),
            (chunk(2), held(5, None)),
            (chunk(3), committed(last)),
            (chunk(4), held(0, Some(6))),
        ];
        assert_eq!(versions, expected);
        let page = store.versions(TARGET, chunk(2), ChunkId::MAX, 2).await.unwrap();
        assert_eq!(page, expected[1..3]);
    });
}

#[test]
fn retry_records_are_taken_and_forgotten() {
    scenario(3, 16, |env, disk, store| async move {
        let record = |client, sequence| RetryRecord {
            key: retry(client, sequence),
            chunk: chunk(0),
            version: version(sequence),
        };
        let many: Vec<_> = (0..300).map(|client| record(client, 7)).collect();
        store.remember_retries(TARGET, many.clone()).await.unwrap();
        store.remember_retries(TARGET, vec![record(3, 6), record(4, 8)]).await.unwrap();
        let disk = disk.power_loss();
        let store = open(&disk, &env).await;
        let mut expected = many;
        expected[4] = record(4, 8);
        let first = store.retry_records(TARGET, None, 200);
        let after = first.last().map(|last| (last.key.client, last.key.channel));
        let rest = store.retry_records(TARGET, after, 200);
        assert_eq!([first, rest].concat(), expected);
        store.forget_retries(TARGET).await.unwrap();
        let disk = disk.power_loss();
        let store = open(&disk, &env).await;
        assert_eq!(store.retry_records(TARGET, None, 10), []);
    });
}

#[test]
fn a_decayed_block_is_repaired_from_a_copy_of_the_same_version() {
    scenario(4, 16, |_, disk, store| async move {
        store.prepare(TARGET, update(0, 5, 0, write_at(0, &[77; 8192]))).await.unwrap();
        let place = common::find_block(&disk, 77).await;
        disk.flip_bit(place, 0);
        let repair = |number, bytes| store.repair(TARGET, chunk(0), copy(number, bytes));
        let wrong = repair(6, &[77; 8192]).await.map_err(|error| error.code());
        assert_eq!(wrong, Err(Code::VersionMismatch));
        repair(5, &[77; 8192]).await.unwrap();
        assert_eq!(content(&store, 0).await, [77; 8192]);
        assert!(store.verify().await.unwrap().is_clean());
    });
}
