//! What every disk does, simulated or real, and what the real ones do besides.

use kiln_disk::{Disk, Engine, OpenOptions, SimulatedDisk, open};
use kiln_env::{Env, Executor};
use kiln_memory::{Buffer, Bytes};
use kiln_types::Code;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 256;

/// Opens the same disk again and again.
#[derive(Clone)]
enum Bed {
    Simulated(Option<Arc<SimulatedDisk>>),
    Real(PathBuf, OpenOptions),
}

impl Bed {
    /// The handle of the last call is dropped, or its process died.
    async fn open(&mut self, env: &Env) -> Arc<dyn Disk> {
        match self {
            Bed::Simulated(last) => {
                let fresh = || SimulatedDisk::new(env.clone(), BLOCKS * BLOCK);
                let disk = last.take().map_or_else(fresh, |disk| disk.kill());
                *last = Some(Arc::clone(&disk));
                disk
            }
            Bed::Real(path, options) => {
                open(path, options.clone(), env).await.expect("the disk opens")
            }
        }
    }
}

fn options(engine: Engine, direct: bool) -> OpenOptions {
    OpenOptions { capacity: Some(BLOCKS * BLOCK), create: true, engine, depth: 8, direct }
}

/// Runs `body` on every kind of disk.
fn everywhere<F: Future<Output = ()> + Send + 'static>(body: impl Fn(Env, Bed) -> F) {
    for seed in 0..10 {
        println!("simulated, seed {seed}");
        let executor = Executor::new(seed);
        executor.run(body(executor.env(), Bed::Simulated(None)));
    }
    let engines = [
        ("uring", Engine::Uring, true),
        ("plain", Engine::Plain, true),
        ("plain, buffered", Engine::Plain, false),
    ];
    for (name, engine, direct) in engines {
        println!("{name}");
        let folder = tempfile::tempdir().expect("a folder");
        let bed = Bed::Real(folder.path().join("disk"), options(engine, direct));
        match probe(engine) {
            Ok(()) => really(body(Env::real(), bed)),
            Err(why) => println!("skipped: {why}"),
        }
    }
}

/// Some machines forbid io_uring.
fn probe(engine: Engine) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("probe");
    really(async move { open(&path, options(engine, true), &Env::real()).await.map(drop) })
        .or_else(|error| if error.code() == Code::Unsupported { Err(error) } else { Ok(()) })
        .map_err(|error| error.to_string())
}

fn really<T>(body: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime").block_on(body)
}

fn random_bytes(env: &Env, blocks: u64) -> Bytes {
    let mut buffer = Buffer::zeroed((blocks * BLOCK) as usize);
    env.fill_random(&mut buffer);
    buffer.freeze()
}

/// A region of a disk and what it must contain.
struct Region {
    disk: Arc<dyn Disk>,
    env: Env,
    first: u64,
    model: Vec<u8>,
}

impl Region {
    fn new(disk: &Arc<dyn Disk>, env: &Env, first: u64, blocks: u64) -> Self {
        let model = vec![0; (blocks * BLOCK) as usize];
        Self { disk: Arc::clone(disk), env: env.clone(), first, model }
    }

    /// A random range: its offset on the disk, and its place in the model.
    fn range(&self) -> (u64, std::ops::Range<usize>) {
        let blocks = self.model.len() as u64 / BLOCK;
        let start = self.env.random_below(blocks);
        let count = self.env.random_below((blocks - start).min(16)) + 1;
        let place = (start * BLOCK) as usize..((start + count) * BLOCK) as usize;
        ((self.first + start) * BLOCK, place)
    }

    async fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut buffer = Buffer::zeroed(length);
        buffer.fill(0xee);
        self.disk.read(offset, buffer).await.expect("a read").to_vec()
    }

    async fn step(&mut self) {
        let (offset, place) = self.range();
        match self.env.random_below(11) {
            0..4 => {
                let found = self.read(offset, place.len()).await;
                assert!(found == self.model[place], "read at offset {offset}");
            }
            4..7 => {
                let bytes = random_bytes(&self.env, place.len() as u64 / BLOCK);
                self.model[place].copy_from_slice(&bytes);
                self.disk.write(offset, bytes).await.expect("a write");
            }
            7 => self.disk.sync().await.expect("a sync"),
            8 => {
                let length = place.len() as u64;
                self.disk.discard(offset, length).await.expect("a discard");
                let found = self.read(offset, place.len()).await;
                let old = self.model[place.clone()].chunks(4096);
                for (found, old) in found.chunks(4096).zip(old) {
                    assert!(found == [0; 4096] || found == old, "zeros or as before");
                }
                self.model[place].copy_from_slice(&found);
            }
            9 => {
                let length = place.len() as u64;
                self.disk.reserve(offset, length).await.expect("space");
                let found = self.read(offset, place.len()).await;
                assert!(found == self.model[place], "reserved at offset {offset}");
            }
            _ => {
                let moment = Duration::from_nanos(self.env.random_below(3));
                let read = self.disk.read(offset, Buffer::zeroed(place.len()));
                let _ = self.env.timeout(moment, "a read that nobody wants", read).await;
            }
        }
    }

    /// Gives the disk up, and what it must contain.
    fn close(self) -> Vec<u8> {
        self.model
    }

    async fn check(&self) {
        let found = self.read(self.first * BLOCK, self.model.len()).await;
        assert!(found == self.model, "the region at block {}", self.first);
    }
}

#[test]
fn random_operations_match_a_model_across_reopenings() {
    everywhere(|env, mut bed| async move {
        let disk = bed.open(&env).await;
        assert_eq!(disk.capacity(), BLOCKS * BLOCK);
        let mut region = Region::new(&disk, &env, 0, BLOCKS);
        drop(disk);
        for _ in 0..6 {
            for _ in 0..30 {
                region.step().await;
            }
            let model = region.close();
            region = Region::new(&reopened(&mut bed, &env).await, &env, 0, 0);
            region.model = model;
            region.check().await;
        }
    });
}

#[test]
fn concurrent_operations_do_not_meet() {
    everywhere(|env, mut bed| async move {
        let disk = bed.open(&env).await;
        let tasks: Vec<_> = (0..16)
            .map(|number| {
                let mut region = Region::new(&disk, &env, number * 16, 16);
                env.spawn("worker", async move {
                    for _ in 0..40 {
                        region.step().await;
                    }
                    region.check().await;
                })
            })
            .collect();
        for task in tasks {
            task.join().await.expect("a worker ends well");
        }
        println!("{}", disk.describe());
    });
}

#[test]
fn ranges_beyond_the_end_or_off_the_grid_are_refused() {
    everywhere(|env, mut bed| async move {
        let disk = bed.open(&env).await;
        let cases = [
            (BLOCKS * BLOCK, 4096),
            ((BLOCKS - 1) * BLOCK, 8192),
            (512, 4096),
            (0, 512),
            (u64::MAX - 4095, 4096),
        ];
        for (offset, length) in cases {
            let results = [
                disk.read(offset, Buffer::zeroed(length)).await.map(drop),
                disk.write(offset, Buffer::zeroed(length).freeze()).await,
                disk.discard(offset, length as u64).await,
                disk.reserve(offset, length as u64).await,
            ];
            for result in results {
                assert_eq!(result.map_err(|error| error.code()), Err(Code::Invalid));
            }
        }
        let odd = Buffer::zeroed(8192).split_off(512).freeze().slice(0..4096);
        assert_eq!(disk.write(0, odd).await.map_err(|error| error.code()), Err(Code::Invalid));
        disk.read((BLOCKS - 1) * BLOCK, Buffer::zeroed(4096)).await.expect("the last block");
        disk.write(BLOCKS * BLOCK, Bytes::empty()).await.expect("nothing, at the end");
        disk.discard(0, 0).await.expect("nothing");
    });
}

#[test]
fn what_nobody_waits_for_is_still_written() {
    everywhere(|env, mut bed| async move {
        let disk = bed.open(&env).await;
        let bytes = random_bytes(&env, BLOCKS);
        for block in 0..8 {
            let at = (block * BLOCK) as usize;
            let write = disk.write(block * BLOCK, bytes.slice(at..at + 4096));
            let _ = env.timeout(Duration::ZERO, "write", write).await;
        }
        if matches!(bed, Bed::Simulated(_)) {
            env.sleep(Duration::from_millis(1)).await;
        }
        // A real disk drains when its last handle goes: only then does it open again.
        drop(disk);
        let disk = reopened(&mut bed, &env).await;
        let found = disk.read(0, Buffer::zeroed(8 * 4096)).await.expect("a read");
        assert!(*found == bytes[..8 * 4096]);
    });
}

/// Opens again as soon as the lock is free: the plain engine's threads hold it while they work.
async fn reopened(bed: &mut Bed, env: &Env) -> Arc<dyn Disk> {
    if let Bed::Real(path, options) = bed {
        for _ in 0..1000 {
            match open(path, options.clone(), env).await {
                Err(error) if error.code() == Code::Busy => {
                    env.sleep(Duration::from_millis(1)).await;
                }
                opened => return opened.expect("the disk opens"),
            }
        }
    }
    bed.open(env).await
}

async fn refusal(path: &Path, options: OpenOptions) -> (Code, String) {
    let refused = open(path, options, &Env::real()).await;
    let error = refused.err().expect("it is refused");
    println!("{error}");
    (error.code(), error.to_string())
}

#[test]
fn a_second_opener_is_refused_until_the_first_is_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    really(async move {
        for engine in [Engine::Auto, Engine::Plain] {
            let disk = open(&path, options(engine, true), &Env::real()).await.expect("opens");
            let (code, message) = refusal(&path, options(engine, true)).await;
            assert_eq!(code, Code::Busy);
            assert!(message.contains(&*path.to_string_lossy()) && message.contains("fuser"));
            disk.write(0, random_bytes(&Env::real(), 1)).await.expect("the first goes on");
            drop(disk);
            open(&path, options(engine, true), &Env::real()).await.expect("it is free at once");
        }
    });
}

#[test]
fn a_file_grows_but_never_shrinks() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    really(async move {
        let sized = |blocks: u64| OpenOptions {
            capacity: Some(blocks * BLOCK),
            create: true,
            ..OpenOptions::default()
        };
        let env = Env::real();
        let (code, _) = refusal(&path, OpenOptions::default()).await;
        assert_eq!(code, Code::NotFound);
        let nameless = OpenOptions { create: true, ..OpenOptions::default() };
        assert_eq!(refusal(&path, nameless).await.0, Code::Invalid);
        let bytes = random_bytes(&env, 8);
        let disk = open(&path, sized(8), &env).await.expect("it is created");
        disk.write(0, bytes.clone()).await.expect("a write");
        drop(disk);
        let disk = open(&path, sized(16), &env).await.expect("it grows");
        assert_eq!(disk.capacity(), 16 * BLOCK);
        let found = disk.read(0, Buffer::zeroed(16 * 4096)).await.expect("a read");
        assert!(found[..8 * 4096] == *bytes && found[8 * 4096..].iter().all(|byte| *byte == 0));
        drop(disk);
        let (code, message) = refusal(&path, sized(15)).await;
        assert!(code == Code::Invalid && message.contains("at least 65536 bytes"));
        let disk = open(&path, OpenOptions::default(), &env).await.expect("as large as it is");
        assert_eq!(disk.capacity(), 16 * BLOCK);
        drop(disk);
        let odd = OpenOptions { capacity: Some(70_000), ..OpenOptions::default() };
        assert_eq!(refusal(&path, odd).await.0, Code::Invalid);
        assert_eq!(refusal(folder.path(), sized(1)).await.0, Code::Invalid);
        let deep = OpenOptions { depth: 0, ..sized(16) };
        assert_eq!(refusal(&path, deep).await.0, Code::Invalid);
    });
}

#[test]
fn a_discard_gives_space_back() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    really(async move {
        let env = Env::real();
        let disk = open(&path, options(Engine::Auto, true), &env).await.expect("it opens");
        let space = || std::fs::metadata(&path).expect("it is there").blocks() * 512;
        assert!(space() < BLOCKS * BLOCK / 2, "a new file is sparse");
        disk.write(0, random_bytes(&env, BLOCKS)).await.expect("a write");
        disk.sync().await.expect("a sync");
        let full = space();
        disk.discard(0, BLOCKS * BLOCK / 2).await.expect("a discard");
        println!("{full} bytes before, {} after", space());
        assert!(full >= BLOCKS * BLOCK && space() <= full - BLOCKS * BLOCK / 4);
    });
}

#[test]
fn a_file_that_was_cut_is_a_failed_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    really(async move {
        for (name, engine) in [("auto", Engine::Auto), ("plain", Engine::Plain)] {
            let path = folder.path().join(name);
            let env = Env::real();
            let disk = open(&path, options(engine, true), &env).await.expect("it opens");
            disk.write(0, random_bytes(&env, BLOCKS)).await.expect("a write");
            let file = std::fs::File::options().write(true).open(&path).expect("the file");
            file.set_len(8 * BLOCK + 100).expect("someone cuts it");
            disk.read(0, Buffer::zeroed(8 * 4096)).await.expect("what is still there");
            for (block, blocks) in [(4, 8), (8, 1), (100, 2)] {
                let buffer = Buffer::zeroed(blocks * 4096);
                let error = disk.read(block * BLOCK, buffer).await.expect_err("it is gone");
                assert_eq!(error.code(), Code::DiskFailed);
                assert!(error.message().contains("shorter"), "{error}");
            }
        }
    });
}

#[test]
fn without_threads_auto_is_plain() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    let executor = Executor::new(1);
    let env = executor.env();
    executor.run(async move {
        let refused = open(&path, options(Engine::Uring, true), &env).await.map(drop);
        assert_eq!(refused.map_err(|error| error.code()), Err(Code::Unsupported));
        let disk = open(&path, options(Engine::Auto, true), &env).await.expect("it opens");
        assert!(disk.describe().contains("plain"), "{}", disk.describe());
        let mut region = Region::new(&disk, &env, 0, BLOCKS);
        for _ in 0..50 {
            region.step().await;
        }
    });
}
