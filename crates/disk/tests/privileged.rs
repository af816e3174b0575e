//! What needs root: a file system that fills up, a block device, one that loses writes. Elsewhere
//! they say that they are skipped.

use kiln_disk::{Engine, OpenOptions, open};
use kiln_env::Env;
use kiln_memory::{Buffer, Bytes};
use kiln_types::Code;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One test at a time: a program that another one starts holds copies of our open devices for a
/// moment, and a device that someone holds does not open again.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a program; its output when it succeeds.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let succeeded = output.status.success();
    succeeded.then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Undoes what a test set up.
struct Undo(&'static str, Vec<String>);

impl Drop for Undo {
    fn drop(&mut self) {
        let arguments: Vec<_> = self.1.iter().map(String::as_str).collect();
        run(self.0, &arguments);
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn really<T>(body: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime").block_on(body)
}

fn filled(bytes: usize, byte: u8) -> Bytes {
    let mut buffer = Buffer::zeroed(bytes);
    buffer.fill(byte);
    buffer.freeze()
}

#[test]
fn a_full_file_system_refuses_writes_and_goes_on() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let place = text(folder.path());
    if run("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", &place]).is_none() {
        println!("skipped: no right to mount");
        return;
    }
    let _unmount = Undo("umount", vec!["-l".into(), place]);
    for engine in [Engine::Auto, Engine::Plain] {
        really(full(folder.path().join("disk"), engine));
    }
}

async fn full(path: PathBuf, engine: Engine) {
    let options =
        OpenOptions { capacity: Some(8 << 20), create: true, engine, ..OpenOptions::default() };
    let disk = open(&path, options, &Env::real()).await.expect("sparse: it opens");
    let mut written = 0;
    let error = loop {
        match disk.write(written, filled(64 << 10, 7)).await {
            Ok(()) => written += 64 << 10,
            Err(error) => break error,
        }
    };
    println!("{}: {error}", disk.describe());
    assert_eq!(error.code(), Code::NoSpace);
    assert!(written >= 512 << 10);
    disk.write(0, filled(64 << 10, 8)).await.expect("blocks that have space");
    disk.sync().await.expect("a sync");
    disk.discard(0, 256 << 10).await.expect("a discard");
    disk.write(4 << 20, filled(128 << 10, 9)).await.expect("space came back");
    let found = disk.read(256 << 10, Buffer::zeroed(4096)).await.expect("a read");
    assert_eq!(*found, [7; 4096]);
    disk.discard(0, 8 << 20).await.expect("a discard");
    disk.reserve(0, 512 << 10).await.expect("space");
    let beneath = disk.beneath().await.expect("an answer").expect("a file system");
    assert!(beneath.free_bytes <= 512 << 10, "{beneath:?}");
    let code = disk.reserve(1 << 20, 1 << 20).await.map_err(|error| error.code());
    assert_eq!(code, Err(Code::NoSpace));
    disk.write(0, filled(512 << 10, 3)).await.expect("reserved blocks have space");
    disk.discard(0, 8 << 20).await.expect("a discard");
}

#[test]
fn a_block_device_is_a_disk() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let backing = folder.path().join("backing");
    let file = std::fs::File::create(&backing).expect("a file");
    file.set_len(4 << 20).expect("a size");
    let Some(device) = run("losetup", &["--find", "--show", &text(&backing)]) else {
        println!("skipped: no loop device");
        return;
    };
    let _detach = Undo("losetup", vec!["-d".into(), device.clone()]);
    for engine in [Engine::Auto, Engine::Plain] {
        really(on_device(Path::new(&device), engine));
    }
}

async fn on_device(path: &Path, engine: Engine) {
    let env = Env::real();
    let options = OpenOptions { engine, ..OpenOptions::default() };
    let disk = open(path, options.clone(), &env).await.expect("it opens");
    println!("{}", disk.describe());
    assert_eq!(disk.capacity(), 4 << 20);
    assert!(disk.describe().contains("block device"));
    let second = open(path, options.clone(), &env).await.map(drop);
    assert_eq!(second.map_err(|error| error.code()), Err(Code::Busy));
    disk.write(1 << 20, filled(1 << 20, 5)).await.expect("a write");
    disk.sync().await.expect("a sync");
    disk.discard(1 << 20, 512 << 10).await.expect("a discard");
    drop(disk);
    let larger = OpenOptions { capacity: Some(8 << 20), ..options.clone() };
    let refused = open(path, larger, &env).await.map(drop);
    assert_eq!(refused.map_err(|error| error.code()), Err(Code::Invalid));
    let disk = open(path, options, &env).await.expect("it opens again");
    let found = disk.read(1 << 20, Buffer::zeroed(1 << 20)).await.expect("a read");
    assert!(found[512 << 10..].iter().all(|byte| *byte == 5));
    let first = found[0];
    assert!(first == 0 || first == 5, "zeros or as before");
}

/// The page cache takes the writes, the device loses them: nobody hears of it before the sync.
#[test]
fn a_failed_sync_ends_writing_for_good() {
    let _alone = alone();
    for engine in [Engine::Auto, Engine::Plain] {
        let folder = tempfile::tempdir().expect("a folder");
        let place = text(folder.path());
        if run("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", &place]).is_none() {
            println!("skipped: no right to mount");
            return;
        }
        let _unmount = Undo("umount", vec!["-l".into(), place]);
        let backing = folder.path().join("backing");
        let file = std::fs::File::create(&backing).expect("a file");
        file.set_len(8 << 20).expect("a sparse file that is larger than its file system");
        let Some(device) = run("losetup", &["--find", "--show", &text(&backing)]) else {
            println!("skipped: no loop device");
            return;
        };
        let _detach = Undo("losetup", vec!["-d".into(), device.clone()]);
        really(lose_writes(Path::new(&device), engine));
    }
}

async fn lose_writes(path: &Path, engine: Engine) {
    let options = OpenOptions { engine, direct: false, ..OpenOptions::default() };
    let disk = open(path, options, &Env::real()).await.expect("it opens");
    println!("{}", disk.describe());
    disk.write(0, filled(4096, 1)).await.expect("a write");
    disk.sync().await.expect("a sync");
    disk.write(1 << 20, filled(4 << 20, 2)).await.expect("the page cache takes it");
    let (one, two) = tokio::join!(disk.sync(), disk.sync());
    for result in [one, two, disk.sync().await, disk.write(0, filled(4096, 3)).await] {
        let error = result.expect_err("refused");
        println!("{error}");
        assert_eq!(error.code(), Code::DiskFailed);
    }
    let found = disk.read(0, Buffer::zeroed(4096)).await.expect("reads go on");
    assert_eq!(*found, [1; 4096]);
}
