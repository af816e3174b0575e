//! Goal: whatever is written, read, cut, flushed and read ahead at the same time, programs see what a
//! plain array of bytes would show. Method: several tasks, each with a part of the file to itself (parts
//! meet in the middle of pieces), over a disk that is slow, disorderly and, in half of the seeds,
//! failing. A failing seed is printed; `KILN_SEED=n cargo test -p kiln-client-fuse model` reruns it
//! alone, `KILN_SEEDS=n` sets how many are run.

use super::disk::{Disk, DiskOptions};
use crate::data::{Content, DataOptions, DataPool, Stream};
use fastrand::Rng;
use kiln_client::SeekTo;
use kiln_env::{Env, Executor};
use kiln_memory::Bytes;
use kiln_types::Code;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

const PART: u64 = 150_000;
const PARTS: u64 = 4;
const STEPS: usize = 60;

#[test]
fn content_is_what_a_model_says() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("KILN_SEED");
    let count = number("KILN_SEEDS").unwrap_or(if first.is_some() { 1 } else { 100 });
    let first = first.unwrap_or(0);
    for seed in first..first + count {
        let outcome = std::panic::catch_unwind(|| run(seed));
        assert!(outcome.is_ok(), "KILN_SEED={seed}");
    }
}

fn run(seed: u64) {
    let executor = Executor::new(seed);
    let env = executor.env();
    let mut random = Rng::with_seed(seed);
    let chunk_bytes = 1 << random.u64(16..19);
    let delay = Duration::from_micros(random.u64(0..5000));
    let disk = Disk::new(env.clone(), DiskOptions { chunk_bytes, delay, steady: false });
    disk.state.lock().bytes = bytes(&mut random, ((PARTS - 1) * PART) as usize);
    let read_ahead = [0, 1 << 16, 1 << 18][random.usize(..3)];
    let dirty = [0, 1 << 17, 1 << 18, 1 << 20][random.usize(..4)];
    let options = DataOptions {
        write_back_after: Duration::from_millis(random.u64(1..200)),
        read_ahead_bytes_max: read_ahead * random.u64(1..4),
        ..DataOptions::new(dirty, read_ahead, None)
    };
    let pool = DataPool::new(env.clone(), options);
    let length = disk.state.lock().bytes.len() as u64;
    let content = Content::new(Arc::clone(&pool), chunk_bytes as u32, length, disk.clone());
    let world = World { env, disk, pool, content, failing: seed % 2 * random.u64(1..50) };
    executor.run(async move { world.run(random).await });
}

fn bytes(random: &mut Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

#[derive(Clone)]
struct World {
    env: Env,
    disk: Arc<Disk>,
    pool: Arc<DataPool>,
    content: Arc<Content>,
    /// Of 100 writes, how many fail.
    failing: u64,
}

/// One task, and its part of the file.
struct Part {
    world: World,
    random: Rng,
    stream: Stream,
    start: u64,
    /// Whether the end of the file is here.
    last: bool,
    bytes: Vec<u8>,
    /// What else bytes may be, after failures: earlier content, each with its place.
    doubts: Vec<(usize, Vec<u8>)>,
}

impl World {
    async fn run(self, mut random: Rng) {
        let (mut fsync, mut close) = (self.content.errors(), self.content.errors());
        self.disk.state.lock().failing = self.failing;
        let tasks: Vec<_> = (0..PARTS)
            .map(|part| {
                let part = Part::new(&self, random.fork(), part);
                self.env.spawn("part", part.run())
            })
            .collect();
        let mut parts = Vec::new();
        for task in tasks {
            parts.push(task.join().await.unwrap());
        }
        self.disk.state.lock().failing = 0;
        let failed = self.content.flush().await.is_err();
        assert!(self.content.flush().await.is_ok(), "an error is told once");
        let told = self.content.error_since(&mut fsync).is_some();
        assert!(told || !failed, "fsync hears of what failed");
        assert_eq!(self.content.error_since(&mut close).is_some(), told);
        assert!(self.content.error_since(&mut fsync).is_none());
        assert!(self.content.error_since(&mut close).is_none());
        assert!(self.failing > 0 || !told, "nothing failed");
        for part in &mut parts {
            part.settle().await;
        }
        drop(parts);
        self.env.sleep(Duration::from_secs(1)).await;
        assert_eq!(self.pool.used(), (0, 0), "memory that nothing holds");
    }
}

impl Part {
    fn new(world: &World, random: Rng, part: u64) -> Self {
        let start = part * PART;
        let last = part == PARTS - 1;
        let bytes = if last { Vec::new() } else { world.disk.content(start, PART as usize) };
        let (world, stream, doubts) = (world.clone(), Stream::default(), Vec::new());
        Self { world, random, stream, start, last, bytes, doubts }
    }

    async fn run(mut self) -> Self {
        for _ in 0..STEPS {
            self.step().await;
            self.check_budget();
        }
        self
    }

    async fn step(&mut self) {
        match self.random.u8(..22) {
            0..6 => self.write_once().await,
            6..8 => self.write_run().await,
            8..9 => self.write_through().await,
            9..14 => self.read_once().await,
            14..16 => self.read_run().await,
            16 => self.flush().await,
            17 => self.change_elsewhere().await,
            19 => self.zero().await,
            20 => self.seek().await,
            18 if self.last => self.truncate().await,
            _ => {
                let pause = Duration::from_millis(self.random.u64(..100));
                self.world.env.sleep(pause).await;
            }
        }
    }

    fn check_budget(&self) {
        let (dirty, ahead) = self.world.pool.used();
        let options = self.world.pool.options;
        assert!(dirty <= options.dirty_bytes_max, "{dirty} dirty bytes");
        assert!(ahead <= options.read_ahead_bytes_max, "{ahead} bytes read ahead");
    }

    /// A place in the part, of a size that is more often small.
    fn place(&mut self) -> Range<usize> {
        let most = [100, 5000, 40_000, 150_000][self.random.usize(..4)];
        let start = self.random.usize(..PART as usize);
        let start = if self.random.bool() { start & !4095 } else { start };
        start..(start + self.random.usize(1..=most)).min(PART as usize)
    }

    /// The model takes a write that is about to be made.
    fn note(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        self.bytes.resize(self.bytes.len().max(end), 0);
        if self.world.failing > 0 {
            self.doubts.push((at, self.bytes[at..end].to_vec()));
        }
        self.bytes[at..end].copy_from_slice(bytes);
    }

    async fn write(&mut self, place: Range<usize>, through: bool) {
        let bytes = bytes(&mut self.random, place.len());
        let at = self.start + place.start as u64;
        self.note(place.start, &bytes);
        let given = Bytes::copy_of(&bytes);
        let content = &self.world.content;
        let written = match through {
            true => content.write_through(at, given).await,
            false => content.write(at, given).await,
        };
        assert!(written.is_ok() || self.world.failing > 0, "{written:?}");
        if written.is_err() && self.last {
            // It may have ended before it came to the file's end.
            self.bytes.truncate((content.length() - self.start) as usize);
        }
        assert!(content.length() >= self.start + self.bytes.len() as u64);
        if through && written.is_ok() {
            assert_eq!(self.world.disk.content(at, bytes.len()), bytes, "through is durable");
        }
    }

    async fn write_once(&mut self) {
        let place = self.place();
        self.write(place, false).await;
    }

    async fn write_through(&mut self) {
        let place = self.place();
        self.write(place, true).await;
    }

    async fn write_run(&mut self) {
        let (mut at, size) = (self.place().start, self.random.usize(1..20_000));
        for _ in 0..self.random.usize(1..20) {
            let end = (at + size).min(PART as usize);
            if at == end {
                break;
            }
            self.write(at..end, false).await;
            at = end;
        }
    }

    async fn read(&self, place: Range<usize>) {
        let content = &self.world.content;
        let at = self.start + place.start as u64;
        let read = content.read(&self.stream, at, place.len()).await.unwrap();
        let there = if self.last { self.bytes.len() } else { PART as usize };
        assert_eq!(read.len(), place.end.min(there).saturating_sub(place.start), "{place:?}");
        for (index, byte) in read.iter().enumerate() {
            self.check(place.start + index, *byte);
        }
    }

    fn check(&self, at: usize, byte: u8) {
        let was = |(start, bytes): &(usize, Vec<u8>)| {
            at.checked_sub(*start).and_then(|index| bytes.get(index)) == Some(&byte)
        };
        let right = self.bytes[at] == byte || self.doubts.iter().any(was);
        assert!(right, "byte {} is {byte}, not {}", self.start + at as u64, self.bytes[at]);
    }

    async fn read_once(&mut self) {
        let place = self.place();
        self.read(place).await;
    }

    async fn read_run(&mut self) {
        let size = self.random.usize(1000..20_000);
        let end = self.random.usize(1..=PART as usize);
        for start in (0..end).step_by(size) {
            self.read(start..(start + size).min(PART as usize)).await;
        }
    }

    async fn flush(&mut self) {
        let flushed = self.world.content.flush().await;
        assert!(flushed.is_ok() || self.world.failing > 0, "{flushed:?}");
        for (at, byte) in self.world.disk.content(self.start, self.bytes.len()).iter().enumerate() {
            self.check(at, *byte);
        }
    }

    /// Another client writes, and this one is told.
    async fn change_elsewhere(&mut self) {
        self.flush().await;
        let place = self.place();
        let place = place.start.min(self.bytes.len())..place.end.min(self.bytes.len());
        let bytes = bytes(&mut self.random, place.len());
        self.note(place.start, &bytes);
        self.world.disk.put(self.start + place.start as u64, &bytes);
        self.world.content.invalidate();
    }

    async fn zero(&mut self) {
        let (place, keep_length) = (self.place(), self.random.bool());
        let end = if self.last && keep_length { self.bytes.len() } else { PART as usize };
        let zeros = place.start.min(end)..place.end.min(end);
        if !zeros.is_empty() {
            self.note(zeros.start, &vec![0; zeros.len()]);
        }
        let range = self.start + place.start as u64..self.start + place.end as u64;
        let content = &self.world.content;
        let zeroed = content.zero(range.clone(), keep_length).await;
        assert!(zeroed.is_ok() || self.world.failing > 0, "{zeroed:?}");
        if zeroed.is_err() && self.last {
            self.bytes.truncate((content.length() - self.start) as usize);
        }
        if zeroed.is_ok() && !zeros.is_empty() {
            let on_disk = self.world.disk.content(range.start, zeros.len());
            assert!(on_disk.iter().all(|byte| *byte == 0), "zeros are durable");
        }
    }

    /// Data is found where data is: what is passed over, and what is called a hole, is zeros.
    async fn seek(&mut self) {
        let (at, content) = (self.place().start, &self.world.content);
        let from = self.start + at as u64;
        let inside = |found: u64| (found - self.start).min(self.bytes.len() as u64) as usize;
        let end = self.start + self.bytes.len() as u64;
        match content.seek(from, SeekTo::Data).await {
            Ok(data) => (at..inside(data)).for_each(|at| self.check(at, 0)),
            Err(error) => {
                assert_eq!(error.code(), Code::BeyondEnd);
                (at..inside(end)).for_each(|at| self.check(at, 0));
            }
        }
        match content.seek(from, SeekTo::Hole).await {
            Ok(hole) if hole < end => self.check(inside(hole), 0),
            Ok(hole) => assert!(!self.last || hole == end, "{hole} behind {end}"),
            Err(error) => assert!(self.last && from >= end, "{error}"),
        }
    }

    /// Shorter, or longer; sometimes one after the other: what was cut away must not come back.
    async fn truncate(&mut self) {
        for _ in 0..self.random.usize(1..3) {
            let length = self.random.usize(..PART as usize);
            self.truncate_to(length).await;
        }
    }

    async fn truncate_to(&mut self, length: usize) {
        if self.world.failing > 0 {
            self.doubts.push((0, self.bytes.clone()));
            self.doubts.push((0, vec![0; PART as usize]));
        }
        self.bytes.truncate(length);
        self.bytes.resize(length, 0);
        let (disk, to) = (Arc::clone(&self.world.disk), self.start + length as u64);
        let cut = async move { disk.cut(to).await };
        self.world.content.truncate(to, cut).await.unwrap();
        assert_eq!(self.world.content.length(), to);
    }

    /// Everything is on the disk, and read from there.
    async fn settle(&mut self) {
        let on_disk = self.world.disk.content(self.start, self.bytes.len());
        let content = &self.world.content;
        let read = content.read(&self.stream, self.start, self.bytes.len()).await.unwrap();
        assert!(read[..] == on_disk[..], "the disk has what is read");
        for (at, byte) in on_disk.iter().enumerate() {
            self.check(at, *byte);
        }
        assert!(self.world.failing > 0 || on_disk == self.bytes);
        if self.last {
            assert_eq!(content.length(), self.start + self.bytes.len() as u64);
        }
    }
}
