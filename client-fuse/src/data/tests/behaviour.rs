//! Single promises, each by itself.

use super::disk::{Disk, DiskOptions};
use crate::data::ahead::Ahead;
use crate::data::overlay::Overlay;
use crate::data::{Content, DataOptions, DataPool, Stream};
use kiln_client::SeekTo;
use kiln_env::{Env, Executor};
use kiln_memory::Bytes;
use kiln_types::{Code, Error};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;

struct World {
    env: Env,
    disk: Arc<Disk>,
    pool: Arc<DataPool>,
    content: Arc<Content>,
}

impl World {
    /// An open file whose bytes are those of `old`, on a disk that answers after 4 ms.
    fn new(env: Env, old: &[u8], options: DataOptions) -> Self {
        let delay = Duration::from_millis(4);
        let disk = DiskOptions { chunk_bytes: MIB, delay, steady: true };
        let disk = Disk::new(env.clone(), disk);
        disk.put(0, old);
        let pool = DataPool::new(env.clone(), options);
        let length = old.len() as u64;
        let content = Content::new(Arc::clone(&pool), MIB as u32, length, disk.clone());
        Self { env, disk, pool, content }
    }

    async fn write(&self, offset: u64, length: u64, byte: u8) -> Result<(), Error> {
        self.content.write(offset, Bytes::copy_of(&vec![byte; length as usize])).await
    }

    async fn read(&self, stream: &Stream, offset: u64, length: u64) -> Vec<u8> {
        self.content.read(stream, offset, length as usize).await.unwrap().to_vec()
    }

    /// Reads so much from the start in sequence that reading ahead begins; it is still on its way.
    async fn read_in_sequence(&self, stream: &Stream) {
        for at in 0..4 {
            self.read(stream, at * 64 * KIB, 64 * KIB).await;
        }
    }

    async fn millis(&self, millis: u64) {
        self.env.sleep(Duration::from_millis(millis)).await;
    }

    fn writes(&self) -> Vec<(u64, u64)> {
        let state = self.disk.state.lock();
        state.writes.iter().map(|range| (range.start, range.end - range.start)).collect()
    }

    fn reads(&self) -> usize {
        self.disk.state.lock().reads.len()
    }
}

fn options() -> DataOptions {
    DataOptions::new(8 * MIB, 4 * MIB, Some(Duration::from_secs(5)))
}

/// Runs `test` over a file that has `old` in simulated time.
fn run<F: Future<Output = ()> + Send + 'static>(old: &[u8], test: impl FnOnce(World) -> F) {
    let executor = Executor::new(7);
    executor.run(test(World::new(executor.env(), old, options())));
}

#[test]
fn small_neighbours_are_sent_as_one_and_gaps_are_left_alone() {
    run(&[], |world| async move {
        for at in 0..16 {
            world.write(at * 4096, 4096, 1).await.unwrap();
        }
        world.write(200 * KIB, 10, 2).await.unwrap();
        assert!(world.writes().is_empty(), "{:?}", world.writes());
        world.content.flush().await.unwrap();
        assert_eq!(world.writes(), [(0, 64 * KIB), (200 * KIB, 10)]);
    });
}

#[test]
fn pieces_go_when_they_are_whole_and_the_rest_after_a_while() {
    run(&[], |world| async move {
        for at in 0..20 {
            world.write(at * 128 * KIB, 128 * KIB, 1).await.unwrap();
        }
        world.millis(10).await;
        // Pieces are on their way at the same time.
        let mut whole = world.writes();
        whole.sort_unstable();
        assert_eq!(whole, [(0, MIB), (MIB, MIB)]);
        world.millis(1500).await;
        assert_eq!(world.writes()[2..], [(2 * MIB, MIB / 2)]);
        assert_eq!(world.pool.used().0, 0);
    });
}

#[test]
fn dirty_data_outlives_whoever_lets_go_of_it() {
    run(&[], |World { env, disk, pool, content }| async move {
        content.write(5, Bytes::copy_of(b"kept")).await.unwrap();
        drop(content);
        env.sleep(Duration::from_secs(2)).await;
        assert_eq!(disk.content(5, 4), b"kept");
        assert_eq!(pool.used().0, 0);
    });
}

#[test]
fn a_stuck_file_leaves_room_to_others_and_its_writer_hears_of_it() {
    run(&[], |world| async move {
        world.disk.state.lock().stuck = true;
        let start = world.env.now();
        let mut offset = 0;
        let error = loop {
            match world.write(offset, 100 * KIB, 1).await {
                Ok(()) => offset += 100 * KIB,
                Err(error) => break error,
            }
            assert!(offset < 8 * MIB);
        };
        assert_eq!(error.code(), Code::DeadlineExceeded);
        assert!(offset > 3 * MIB && world.pool.used().0 <= 4 * MIB);
        assert_eq!(world.env.now().since(start), Duration::from_secs(5));

        let pool = Arc::clone(&world.pool);
        let other = World::new(world.env.clone(), &[], options());
        let content = Content::new(pool, MIB as u32, 0, other.disk.clone());
        let before = world.env.now();
        content.write(0, Bytes::copy_of(&[2; 1 << 20])).await.unwrap();
        assert_eq!(world.env.now(), before, "it did not wait");
        world.disk.state.lock().stuck = false;
        world.content.flush().await.unwrap();
        assert_eq!(world.disk.content(0, offset as usize), vec![1; offset as usize]);
    });
}

#[test]
fn a_write_beyond_the_quota_is_refused_at_once_and_none_that_was_taken() {
    run(&[], |world| async move {
        world.disk.state.lock().quota = Some(6000);
        world.write(0, 4096, 1).await.unwrap();
        assert_eq!(world.write(4096, 4096, 2).await.unwrap_err().code(), Code::QuotaExceeded);
        let zeroed = world.content.zero(0..6001, false).await;
        assert_eq!(zeroed.unwrap_err().code(), Code::QuotaExceeded);
        world.write(4096, 1904, 3).await.unwrap();
        world.disk.state.lock().quota = Some(0);
        world.write(100, 5900, 4).await.unwrap();
        world.content.flush().await.unwrap();
        assert_eq!(world.content.length(), 6000);
        assert_eq!(world.disk.content(0, 6001), [&[1; 100][..], &[4; 5900], &[0]].concat());
    });
}

#[test]
fn an_error_is_told_once_to_each_and_then_by_write_itself() {
    run(&[], |world| async move {
        let content = &world.content;
        let mut marks = [content.errors(), content.errors()];
        world.disk.state.lock().failing = 100;
        world.write(0, 4096, 1).await.unwrap();
        let error = content.flush().await.unwrap_err();
        assert_eq!(error.code(), Code::NoSpace);
        assert!(content.flush().await.is_ok());
        for mark in &mut marks {
            assert_eq!(content.error_since(mark).map(|error| error.code()), Some(Code::NoSpace));
            assert!(content.error_since(mark).is_none());
        }
        assert_eq!(world.pool.used().0, 0, "the budget is given back");

        let error = world.write(0, 4096, 2).await.unwrap_err();
        assert_eq!(error.code(), Code::NoSpace);
        assert!(content.error_since(&mut marks[0]).is_none(), "its writer has heard of it");
        world.disk.state.lock().failing = 0;
        world.write(0, 4096, 3).await.unwrap();
        assert_eq!(world.disk.content(0, 4096), [3; 4096], "written through");
        let writes = world.writes().len();
        world.write(0, 4096, 4).await.unwrap();
        assert_eq!(world.writes().len(), writes, "and now kept again");
    });
}

#[test]
fn a_sequential_reader_waits_less_and_reads_no_byte_twice() {
    let old: Vec<u8> = (0..16 * MIB).map(|at| (at / 4096 % 251) as u8).collect();
    let expected = old.clone();
    run(&old, move |world| async move {
        let (stream, start) = (Stream::default(), world.env.now());
        for at in (0..16 * MIB).step_by(64 << 10) {
            let read = world.read(&stream, at, 64 * KIB).await;
            assert!(read == expected[at as usize..][..64 << 10]);
        }
        let took = world.env.now().since(start);
        assert!(took < Duration::from_millis(4 * 256 / 4), "{took:?}");
        let mut reads = world.disk.state.lock().reads.clone();
        reads.sort_unstable_by_key(|range| range.start);
        assert!(reads.windows(2).all(|pair| pair[0].end == pair[1].start), "{reads:?}");
        assert_eq!(world.pool.used().1, 0);
    });
}

#[test]
fn a_random_reader_costs_one_read_each() {
    run(&vec![1; 16 << 20], |world| async move {
        let stream = Stream::default();
        for at in [9, 2, 13, 12, 0, 7] {
            world.read(&stream, at * MIB, 4096).await;
        }
        assert_eq!(world.reads(), 6);
    });
}

#[test]
fn what_was_read_ahead_goes_with_its_reader_and_makes_way_for_others() {
    run(&vec![1; 16 << 20], |world| async move {
        let stream = Stream::default();
        world.read_in_sequence(&stream).await;
        world.millis(100).await;
        assert!(world.pool.used().1 > 0);
        world.read(&stream, 12 * MIB, 4096).await;
        assert_eq!(world.pool.used().1, 0, "the reader went elsewhere");
        let mut idle = Vec::new();
        for _ in 0..40 {
            let (disk, pool) = (world.disk.clone(), Arc::clone(&world.pool));
            let content = Content::new(pool, MIB as u32, 16 * MIB, disk);
            let stream = Stream::default();
            for at in 0..8 {
                content.read(&stream, at * 64 * KIB, 64 << 10).await.unwrap();
            }
            world.millis(2000).await;
            assert!(content.state.lock().ahead.bytes() > 0, "each reader gets its part");
            idle.push((content, stream));
        }
        drop(idle);
        assert_eq!(world.pool.used().1, 0);
    });
}

#[test]
fn what_was_cut_away_does_not_come_back_from_reading_ahead() {
    for wait in [0, 100] {
        run(&vec![1; 2 << 20], move |world| async move {
            let stream = Stream::default();
            world.read_in_sequence(&stream).await;
            world.millis(wait).await;
            for length in [300 * KIB, 2 * MIB] {
                let cut = world.disk.cut(length);
                world.content.truncate(length, cut).await.unwrap();
            }
            let read = world.read(&Stream::default(), 200 * KIB, MIB).await;
            assert!(read[..100 << 10].iter().all(|byte| *byte == 1));
            assert!(read[100 << 10..].iter().all(|byte| *byte == 0));
        });
    }
}

#[test]
fn zeros_take_the_place_of_what_waits_and_what_was_read_ahead() {
    run(&vec![1; 2 << 20], |world| async move {
        let (stream, content) = (Stream::default(), &world.content);
        world.read_in_sequence(&stream).await;
        world.write(MIB, 64 * KIB, 2).await.unwrap();
        content.zero(300 * KIB..MIB + 32 * KIB, true).await.unwrap();
        let read = world.read(&Stream::default(), 0, 2 * MIB).await;
        let ends = [0, 300, 1056, 1088, 2048].map(|kib| kib * KIB as usize);
        for (place, byte) in ends.windows(2).zip([1, 0, 2, 1]) {
            assert!(read[place[0]..place[1]].iter().all(|found| *found == byte), "{place:?}");
        }
        assert_eq!(content.seek(0, SeekTo::Hole).await, Ok(300 * KIB));
        let data = content.seek(400 * KIB, SeekTo::Data).await;
        assert_eq!(data, Ok(MIB + 32 * KIB), "what waits counts as stored");
        content.zero(0..3 * MIB, true).await.unwrap();
        assert_eq!(content.length(), 2 * MIB, "nothing is made longer");
        assert_eq!(content.seek(5, SeekTo::Data).await.unwrap_err().code(), Code::BeyondEnd);
        assert_eq!(content.seek(5, SeekTo::Hole).await, Ok(5));
        content.zero(0..3 * MIB, false).await.unwrap();
        assert_eq!(content.length(), 3 * MIB);
        let beyond = content.seek(3 * MIB, SeekTo::Hole).await;
        assert_eq!(beyond.unwrap_err().code(), Code::BeyondEnd);
        assert!(content.unreported());
    });
}

#[test]
fn a_piece_that_was_dropped_on_its_way_is_not_taken_for_its_successor() {
    run(&vec![1; 1 << 20], |world| async move {
        let charge = || world.pool.charge(&world.content, 0, MIB).unwrap();
        let (first, second, range) = (charge(), charge(), 0..MIB);
        let mut ahead = Ahead::default();
        assert!(ahead.begin(first.number(), 1, &range));
        assert!(!ahead.begin(second.number(), 1, &range), "it is on its way");
        ahead.forget(&(5..6));
        assert!(ahead.begin(second.number(), 2, &range));
        ahead.arrived(0, first, Some(Bytes::copy_of(&[1; 1 << 20])));
        assert!(!ahead.overlay(&range, &mut Overlay::default()), "the second one has not come");
        ahead.arrived(0, second, Some(Bytes::copy_of(&[2; 1 << 20])));
        let mut overlay = Overlay::default();
        assert!(ahead.overlay(&(9..10), &mut overlay));
        assert_eq!(overlay.whole(&(9..10)).as_deref(), Some(&[2][..]));
    });
}

#[test]
fn a_cut_that_nobody_waits_for_any_more_holds_nothing_up() {
    run(&[], |world| async move {
        world.write(0, 100, 1).await.unwrap();
        let never = std::future::pending::<kiln_types::Result<()>>();
        let cut = world.content.truncate(0, never);
        let late = world.env.timeout(Duration::from_secs(1), "cut", cut).await;
        assert!(late.is_err());
        world.content.flush().await.unwrap();
        assert_eq!(world.disk.content(0, 100), [1; 100]);
    });
}

#[test]
fn a_write_through_goes_on_without_its_writer() {
    run(&[], |world| async move {
        let bytes = Bytes::copy_of(&[1; 100]);
        let write = world.content.write_through(0, bytes);
        let late = world.env.timeout(Duration::from_millis(1), "write", write).await;
        assert!(late.is_err());
        world.write(50, 100, 2).await.unwrap();
        world.content.flush().await.unwrap();
        assert_eq!(world.disk.content(0, 150), [[1; 50], [2; 50], [2; 50]].concat());
    });
}

#[test]
fn the_service_is_believed_as_far_as_it_knows() {
    run(&[], |world| async move {
        let content = &world.content;
        assert!(!content.unreported());
        world.write(0, 100, 1).await.unwrap();
        content.learn_length(50);
        assert_eq!(content.length(), 100);
        content.flush().await.unwrap();
        let report = content.report();
        world.write(100, 10, 1).await.unwrap();
        content.reported(report);
        content.learn_length(100);
        assert!(content.unreported());
        assert_eq!(content.length(), 110);
        content.flush().await.unwrap();
        content.reported(content.report());
        content.learn_length(50);
        assert_eq!((content.length(), content.unreported()), (50, false));
        content.learn_length(70);
        assert_eq!(content.length(), 70);
    });
}

#[test]
fn what_waits_in_memory_is_not_told_by_a_report() {
    run(&[0; 100], |world| async move {
        let content = &world.content;
        world.write(0, 60, 1).await.unwrap();
        let cut = async {
            content.reported(content.report());
            Ok::<_, Error>(())
        };
        content.truncate(80, cut).await.unwrap();
        assert!(content.unreported(), "its time would come after one that is set now");
        content.flush().await.unwrap();
        content.reported(content.report());
        assert!(!content.unreported());
    });
}
