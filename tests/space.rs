//! A cluster that is full: writers are told, all else goes on, and what is removed makes room again.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use cluster::mount::{possible, wait_for};
use cluster::{TestCluster, tree};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const CAPACITY: u64 = 1 << 30;
const FILE: usize = 20 << 20;
const MINUTE: Duration = Duration::from_secs(60);

/// What a program may write, by `df`.
fn free(mount: &Path) -> u64 {
    let space = rustix::fs::statvfs(mount).unwrap();
    space.f_bavail * space.f_frsize
}

fn content(number: usize, length: usize) -> Vec<u8> {
    tree::bytes(&mut fastrand::Rng::with_seed(number as u64), length)
}

/// Writes a file and brings it to the disks.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Writes files until there is no room for another one: those that are complete, and the errors of those
/// that are not.
fn fill(dir: &Path) -> (Vec<PathBuf>, Errno) {
    for number in 0.. {
        let path = |number: usize| dir.join(format!("file-{number}"));
        if let Err(error) = write(&path(number), &content(number, FILE)) {
            let code = Errno::from_io_error(&error).unwrap();
            return ((0..number).map(path).collect(), code);
        }
    }
    unreachable!("there is no end")
}

fn assert_whole(files: &[PathBuf]) {
    for (number, path) in files.iter().enumerate() {
        assert!(fs::read(path).unwrap() == content(number, FILE), "{}", path.display());
    }
}

#[test]
fn a_full_cluster_refuses_writers_and_has_room_again_when_files_are_removed() {
    if !possible() {
        return;
    }
    let cluster = TestCluster::start_small(2, 2, None, CAPACITY);
    let mut mount = cluster.mount();
    let dir = mount.make_dir("work");
    let kept = content(1000, 3_000_000);
    write(&mount.path().join("kept"), &kept).unwrap();
    let before = free(&dir);
    assert!(before > CAPACITY / 2 && before < CAPACITY, "{before} bytes are free");

    let mut first = 0;
    for round in 1..=2 {
        let (files, refused) = fill(&dir);
        assert_eq!(refused, Errno::NOSPC, "round {round}");
        let written = (files.len() * FILE) as u64;
        println!("round {round}: {} MiB of {} were written", written / MIB, before / MIB);
        // df told the truth, and no round has less than the one before.
        assert!(written + 2 * FILE as u64 > before / 10 * 9, "{written} of {before} bytes");
        first = written.max(first);
        assert!(written + 2 * FILE as u64 > first, "{written} bytes after {first} bytes");
        assert!(free(&dir) < before / 20, "{} bytes are free", free(&dir));

        // Who needs no room goes on.
        assert_whole(&files);
        fs::create_dir(dir.join("new")).unwrap();
        fs::rename(&files[0], dir.join("new/name")).unwrap();
        fs::rename(dir.join("new/name"), &files[0]).unwrap();
        fs::remove_dir(dir.join("new")).unwrap();

        // A little room is made and found again.
        fs::remove_file(files.last().unwrap()).unwrap();
        let small = dir.join("small");
        let written = wait_for(MINUTE, || write(&small, &content(7, MIB as usize)).ok());
        assert!(written.is_some(), "nothing can be written after a file has been removed");
        assert!(fs::read(&small).unwrap() == content(7, MIB as usize));

        fs::remove_dir_all(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        let back = || (free(&dir) + 8 * MIB > before).then_some(());
        let tell = || format!("{} of {before} bytes are free\n{}", free(&dir), cluster.check());
        assert!(wait_for(MINUTE, back).is_some(), "{}", tell());
    }
    cluster.check();
    mount.unmount();
    mount.mount_again();
    assert!(fs::read(mount.path().join("kept")).unwrap() == kept);
    fs::remove_file(mount.path().join("kept")).unwrap();
    let empty = || cluster.check().contains(" 0 chunks").then_some(());
    assert!(wait_for(MINUTE, empty).is_some(), "chunks stay: {}", cluster.check());
}

#[test]
fn an_open_file_keeps_its_room_and_a_cut_gives_it_back() {
    if !possible() {
        return;
    }
    // What is cut off goes when the last right to write it has ended, with the lease.
    let cluster = TestCluster::start_small(1, 1, Some(Duration::from_secs(10)), CAPACITY);
    let mount = cluster.mount();
    let dir = mount.make_dir("work");
    let before = free(&dir);
    let has_less_by = |bytes: u64| {
        let near = |free: u64| (free + bytes).abs_diff(before) < 8 * MIB;
        let found = wait_for(MINUTE, || near(free(&dir)).then_some(()));
        assert!(found.is_some(), "{} bytes are free, not {bytes} less than {before}", free(&dir));
    };
    let path = dir.join("large");
    write(&path, &content(1, 200 << 20)).unwrap();
    has_less_by(200 * MIB);
    File::options().write(true).open(&path).unwrap().set_len(150 * MIB).unwrap();
    has_less_by(150 * MIB);
    let open = File::options().write(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    cluster.sleep(Duration::from_secs(3));
    has_less_by(150 * MIB);
    open.set_len(100 * MIB).unwrap();
    has_less_by(100 * MIB);
    drop(open);
    has_less_by(0);
    cluster.check();
}
