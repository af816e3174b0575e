//! The simulated disk keeps what was synced, loses or tears the rest, and repeats with its seed.

use kiln_disk::{Disk, Fault, SimulatedDisk};
use kiln_env::{Env, Executor};
use kiln_memory::{Buffer, Bytes};
use kiln_types::{Code, Result};
use std::sync::Arc;

const BLOCK: u64 = 4096;
const SECTOR: usize = 512;

fn filled(blocks: u64, byte: u8) -> Bytes {
    let mut buffer = Buffer::zeroed((blocks * BLOCK) as usize);
    buffer.fill(byte);
    buffer.freeze()
}

async fn read(disk: &dyn Disk, block: u64, blocks: u64) -> Vec<u8> {
    let buffer = Buffer::zeroed((blocks * BLOCK) as usize);
    disk.read(block * BLOCK, buffer).await.expect("a read").to_vec()
}

/// Runs `body` once for each seed, on a fresh disk of 64 blocks.
fn seeds<F: Future<Output = ()> + Send + 'static>(body: impl Fn(Env, Arc<SimulatedDisk>) -> F) {
    for seed in 0..60 {
        let executor = Executor::new(seed);
        let env = executor.env();
        println!("seed {seed}");
        executor.run(body(env.clone(), SimulatedDisk::new(env, 64 * BLOCK)));
    }
}

#[test]
fn synced_data_survives_and_unsynced_sectors_are_old_or_new() {
    let (torn, lost, kept) = (counter(), counter(), counter());
    let seen = (Arc::clone(&torn), Arc::clone(&lost), Arc::clone(&kept));
    seeds(move |_, disk| {
        let (torn, lost, kept) = seen.clone();
        async move {
            disk.write(0, filled(16, 1)).await.expect("a write");
            disk.sync().await.expect("a sync");
            disk.write(8 * BLOCK, filled(16, 2)).await.expect("a write");
            let after = disk.power_loss();
            assert_eq!(read(&*after, 0, 8).await, vec![1; 8 * 4096]);
            let unsynced = read(&*after, 8, 16).await;
            let mut new = 0;
            for (number, sector) in unsynced.chunks(SECTOR).enumerate() {
                let old = u8::from(number < 64);
                assert!(sector == [old; SECTOR] || sector == [2; SECTOR], "sector {number}");
                new += usize::from(sector[0] == 2);
            }
            add(if new == 0 {
                &lost
            } else if new == 128 {
                &kept
            } else {
                &torn
            });
            let error = disk.sync().await.expect_err("the old handle is dead");
            assert_eq!(error.code(), Code::DiskFailed);
        }
    });
    assert!([torn, lost, kept].iter().all(|count| get(count) > 2), "every fate is seen");
}

#[test]
fn a_killed_process_loses_nothing_written_and_tears_what_is_in_flight() {
    let torn = counter();
    let seen = Arc::clone(&torn);
    seeds(move |env, disk| {
        let torn = Arc::clone(&seen);
        async move {
            disk.write(0, filled(4, 1)).await.expect("a write");
            let writer = Arc::clone(&disk);
            let write = env.spawn("writer", async move { writer.write(0, filled(8, 2)).await });
            env.sleep(std::time::Duration::from_micros(env.random_below(200))).await;
            let after = disk.kill();
            let returned = write.join().await.expect("the writer ends").is_ok();
            let found = read(&*after, 0, 8).await;
            let new = found.iter().filter(|byte| **byte == 2).count();
            assert!(!returned || new == found.len(), "a returned write is whole");
            for (number, byte) in found.iter().enumerate() {
                let old = u8::from(number < 4 * 4096);
                assert!(*byte == old || *byte == 2);
            }
            if new > 0 && new < found.len() {
                add(&torn);
            }
        }
    });
    assert!(get(&torn) > 2, "some writes are torn");
}

#[test]
fn a_write_goes_on_when_nobody_waits_for_it() {
    seeds(|env, disk| async move {
        let write = disk.write(0, filled(1, 9));
        let late = env.timeout(std::time::Duration::from_nanos(1), "write", write).await;
        assert!(late.is_err());
        env.sleep(std::time::Duration::from_millis(1)).await;
        assert_eq!(read(&*disk, 0, 1).await, vec![9; 4096]);
    });
}

#[test]
fn faults_strike_once_and_a_failed_sync_poisons() {
    seeds(|_, disk| async move {
        disk.fail_next(Fault::Write, 1);
        disk.fail_next(Fault::Read, 0);
        assert!(disk.write(0, filled(1, 1)).await.is_ok());
        assert_eq!(code(disk.write(0, filled(1, 2)).await), Some(Code::DiskFailed));
        assert!(disk.write(0, filled(1, 3)).await.is_ok());
        let failed = disk.read(0, Buffer::zeroed(4096)).await.map(drop);
        assert_eq!(code(failed), Some(Code::DiskFailed));
        disk.sync().await.expect("a sync");
        disk.write(BLOCK, filled(1, 4)).await.expect("a write");
        disk.fail_next(Fault::Sync, 0);
        assert_eq!(code(disk.sync().await), Some(Code::DiskFailed));
        assert_eq!(code(disk.sync().await), Some(Code::DiskFailed));
        assert_eq!(code(disk.write(0, filled(1, 5)).await), Some(Code::DiskFailed));
        assert_eq!(read(&*disk, 0, 1).await, vec![3; 4096]);
        let after = disk.kill();
        after.sync().await.expect("the next process is not told");
        assert_eq!((after.writes(), after.syncs()), (4, 3));
    });
}

#[test]
fn a_full_file_system_refuses_new_blocks_until_a_discard() {
    seeds(|_, disk| async move {
        disk.set_physical_capacity(4 * BLOCK);
        disk.write(0, filled(4, 1)).await.expect("it fits");
        assert_eq!(code(disk.write(2 * BLOCK, filled(4, 2)).await), Some(Code::NoSpace));
        disk.write(0, filled(4, 3)).await.expect("blocks that have space");
        disk.discard(0, 2 * BLOCK).await.expect("a discard");
        for block in read(&*disk, 0, 2).await.chunks(4096) {
            assert!(block == [0; 4096] || block == [3; 4096], "zeros or as before");
        }
        disk.write(10 * BLOCK, filled(2, 4)).await.expect("space came back");
        assert_eq!(read(&*disk, 2, 2).await, vec![3; 2 * 4096]);
    });
}

#[test]
fn what_is_reserved_finds_its_space() {
    seeds(|_, disk| async move {
        disk.set_physical_capacity(4 * BLOCK);
        let free = async || disk.beneath().await.expect("an answer").expect("one").free_bytes;
        disk.reserve(8 * BLOCK, 3 * BLOCK).await.expect("it fits");
        assert_eq!(free().await, BLOCK);
        assert_eq!(code(disk.write(0, filled(2, 1)).await), Some(Code::NoSpace));
        disk.write(8 * BLOCK, filled(3, 2)).await.expect("its space was kept");
        assert_eq!(code(disk.reserve(20 * BLOCK, BLOCK).await), Some(Code::NoSpace));
        assert_eq!(free().await, 0);
    });
}

#[test]
fn bits_flip_and_ignored_syncs_lose_data() {
    let lost = counter();
    let seen = Arc::clone(&lost);
    seeds(move |_, disk| {
        let lost = Arc::clone(&seen);
        async move {
            disk.flip_bit(5 * BLOCK + 7, 3);
            assert_eq!(read(&*disk, 5, 1).await[7], 8);
            disk.ignore_syncs(true);
            disk.write(0, filled(1, 1)).await.expect("a write");
            disk.sync().await.expect("a sync that lies");
            if read(&*disk.power_loss(), 0, 1).await != vec![1; 4096] {
                add(&lost);
            }
        }
    });
    assert!(get(&lost) > 5);
}

#[test]
fn a_sync_covers_what_returned_before_it_and_nothing_that_came_later_is_promised() {
    let lost = counter();
    let seen = Arc::clone(&lost);
    seeds(move |env, disk| {
        let lost = Arc::clone(&seen);
        async move {
            disk.write(0, filled(1, 1)).await.expect("a write");
            let other = Arc::clone(&disk);
            let sync = env.spawn("sync", async move { other.sync().await });
            env.sleep(std::time::Duration::from_nanos(1)).await;
            disk.write(BLOCK, filled(1, 2)).await.expect("a write");
            sync.join().await.expect("the task ends").expect("a sync");
            let after = disk.power_loss();
            assert_eq!(read(&*after, 0, 1).await, vec![1; 4096]);
            if read(&*after, 1, 1).await != vec![2; 4096] {
                add(&lost);
            }
        }
    });
    assert!(get(&lost) > 5);
}

#[test]
fn a_seed_repeats_exactly() {
    let run = |seed| {
        let executor = Executor::new(seed);
        let env = executor.env();
        let disk = SimulatedDisk::new(env.clone(), 64 * BLOCK);
        let found = executor.run(async move {
            let writers: Vec<_> = (0..16)
                .map(|number| {
                    let disk = Arc::clone(&disk);
                    let at = env.random_below(60);
                    env.spawn(
                        "writer",
                        async move { disk.write(at * BLOCK, filled(4, number)).await },
                    )
                })
                .collect();
            env.sleep(std::time::Duration::from_micros(100)).await;
            let after = disk.power_loss();
            drop(writers);
            read(&*after, 0, 64).await
        });
        (found, executor.trace())
    };
    let runs: Vec<_> = (0..10).map(run).collect();
    assert_eq!(runs, (0..10).map(run).collect::<Vec<_>>());
    assert!(runs.iter().any(|run| run.0 != runs[0].0));
}

fn code(result: Result<()>) -> Option<Code> {
    result.err().map(|error| error.code())
}

type Count = Arc<std::sync::atomic::AtomicU32>;

fn counter() -> Count {
    Count::default()
}

fn add(count: &Count) {
    count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
}

fn get(count: &Count) -> u32 {
    count.load(std::sync::atomic::Ordering::Relaxed)
}
