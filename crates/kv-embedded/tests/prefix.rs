//! Power that is lost at any byte of the journal leaves a committed state: all that was acknowledged up to there.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use kiln_env::Env;
use kiln_kv::{KeyRange, Kv, RangeOptions};
use kiln_kv_embedded::{EmbeddedKv, Options};
use kiln_types::Code;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const COMMITS: usize = 60;

type State = BTreeMap<Vec<u8>, Vec<u8>>;

/// What was stored after a commit, and how long the journal was then.
struct Point {
    state: State,
    journal: u64,
}

/// The journals of a store.
fn journals(store: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![store.to_path_buf()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true => left.push(entry),
                false if entry.extension().is_some_and(|end| end == "jnl") => found.push(entry),
                false => {}
            }
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let there = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &there),
            // Space that is held back: it is made anew.
            false if entry.file_name() == "ballast" => {}
            false => drop(fs::copy(entry.path(), there).unwrap()),
        }
    }
}

async fn state(kv: &EmbeddedKv) -> State {
    let mut tx = kv.begin().await.unwrap();
    tx.range(KeyRange::all(), RangeOptions::default()).await.unwrap().into_iter().collect()
}

/// Random commits, each of several keys: what was there after each.
async fn commit_all(kv: &EmbeddedKv, journal: &Path, random: &mut fastrand::Rng) -> Vec<Point> {
    let length = || fs::metadata(journal).unwrap().len();
    let mut points = vec![Point { state: State::new(), journal: length() }];
    for _ in 0..COMMITS {
        let mut tx = kv.begin().await.unwrap();
        for _ in 0..random.usize(1..6) {
            let key = [b'k', random.u8(0..20)];
            match random.u8(0..4) {
                0 => tx.clear(&key),
                _ => tx.set(&key, &vec![random.u8(..); random.usize(0..1500)]),
            }
        }
        tx.commit().await.unwrap();
        points.push(Point { state: state(kv).await, journal: length() });
    }
    points
}

/// What the disk has of the journal: all that was synced, and of what came behind it any sectors, up to any length.
fn after_power_loss(
    whole: &[u8],
    synced: usize,
    written: usize,
    random: &mut fastrand::Rng,
) -> Vec<u8> {
    const SECTOR: usize = 512;
    let length = if random.bool() { written } else { random.usize(synced..=written) };
    let mut left = whole[..length].to_vec();
    let lost = random.f64();
    let mut at = synced;
    while at < length {
        let end = (at / SECTOR * SECTOR + SECTOR).min(length);
        if random.f64() < lost {
            left[at..end].fill(0);
        }
        at = end;
    }
    left
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_disk_got_is_a_committed_state() {
    let (env, directory) = (Env::real(), tempfile::tempdir().unwrap());
    let mut random = fastrand::Rng::with_seed(1);
    let (store, kept) = (directory.path().join("store"), directory.path().join("kept"));
    let kv = EmbeddedKv::open(&store, &env, Options::default()).await.unwrap();
    let journal = journals(&store);
    assert_eq!(journal.len(), 1);
    let name = journal[0].strip_prefix(&store).unwrap().to_path_buf();
    let points = commit_all(&kv, &journal[0], &mut random).await;
    copy(&store, &kept);
    kv.close().await.unwrap();

    let whole = fs::read(kept.join(&name)).unwrap();
    let at = |point: usize| points[point].journal as usize;
    for round in 0..300 {
        let before = random.usize(0..COMMITS);
        let left = after_power_loss(&whole, at(before), at(before + 1), &mut random);
        let lost = directory.path().join(format!("lost-{round}"));
        copy(&kept, &lost);
        fs::write(lost.join(&name), &left).unwrap();
        let kv = EmbeddedKv::open(&lost, &env, Options::default()).await.unwrap();
        let found = state(&kv).await;
        let is_one = points[before..=before + 1].iter().any(|point| point.state == found);
        assert!(is_one, "round {round}: neither commit {before} nor the next one");
        // It goes on from there.
        let mut tx = kv.begin().await.unwrap();
        tx.set(b"after", b"");
        tx.commit().await.unwrap();
        kv.close().await.unwrap();
        let kv = EmbeddedKv::open(&lost, &env, Options::default()).await.unwrap();
        assert_eq!(state(&kv).await.len(), found.len() + 1);
        drop(kv);
        fs::remove_dir_all(lost).unwrap();
    }
    // What was acknowledged and is damaged is no power loss.
    let mut damaged = whole.clone();
    damaged[(at(COMMITS - 1) + at(COMMITS)) / 2] ^= 8;
    fs::write(kept.join(&name), damaged).unwrap();
    let refused = EmbeddedKv::open(&kept, &env, Options::default()).await.err().unwrap();
    assert_eq!(refused.code(), Code::Corrupt, "{refused}");
}
