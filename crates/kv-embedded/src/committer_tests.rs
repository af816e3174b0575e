//! Members of one group, against the same transactions one after the other.

use super::*;
use crate::Options;
use crate::directory::Directory;
use kiln_env::Env;
use kiln_kv::range_set::RangeSet;
use kiln_kv::writes::{Merge, Writes};
use std::collections::BTreeMap;
use tokio::sync::Semaphore;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// A random transaction on few keys, on the snapshot of `version`.
fn random_commit(random: &mut fastrand::Rng, version: u64) -> Commit {
    let (mut reads, mut writes) = (RangeSet::default(), Writes::default());
    let range = |random: &mut fastrand::Rng| {
        let start = random.u8(1..30);
        KeyRange::new([start], [start + random.u8(..6)])
    };
    for _ in 0..random.usize(..3) {
        reads.insert(range(random));
    }
    for _ in 0..random.usize(1..5) {
        let key = [random.u8(1..30)];
        match random.u8(..6) {
            0 => writes.set(&key, &random.u64(..).to_le_bytes()),
            1 => writes.clear(&key),
            2 => writes.clear_range(range(random)),
            3 => writes.merge(&key, Merge::Max(random.u64(..))),
            4 => writes.merge(&key, Merge::Add(random.i64(..))),
            _ => writes.add_conflict(range(random)),
        }
    }
    Commit { snapshot: version, reads, writes }
}

/// Applies a commit to the model, unless it read what earlier members of the group wrote.
fn apply(model: &mut Model, written: &mut Vec<KeyRange>, commit: &Commit) -> bool {
    let reads: Vec<_> = commit.reads.iter().collect();
    if written.iter().any(|write| reads.iter().any(|read| read.intersects(write))) {
        return false;
    }
    for range in commit.writes.cleared().iter() {
        model.retain(|key, _| !range.contains(key));
    }
    for (key, write) in commit.writes.keys() {
        match write.apply(model.get(key).map(Vec::as_slice)).unwrap() {
            Some(value) => model.insert(key.clone(), value),
            None => model.remove(key),
        };
    }
    written.extend(commit.writes.conflict_ranges());
    true
}

#[test]
fn a_group_is_its_members_one_after_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let opened = Directory::lock(directory.path()).unwrap().open(Options::default()).unwrap();
    let (sender, queue) = mpsc::channel(1);
    let shared = Arc::new(Shared::new(&Env::real(), &opened, sender));
    let mut committer = Committer::new(opened, queue, Arc::clone(&shared));
    let mut random = fastrand::Rng::with_seed(5);
    let mut model = Model::new();
    for round in 0..150 {
        let version = committer.published.version;
        let (mut written, mut expected) = (Vec::new(), Vec::new());
        let (mut requests, mut outcomes) = (Vec::new(), Vec::new());
        for _ in 0..random.usize(1..12) {
            let commit = random_commit(&mut random, version);
            expected.push(apply(&mut model, &mut written, &commit));
            let (answer, outcome) = oneshot::channel();
            let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
            requests.push(Request { commit, answer, _room: room });
            outcomes.push(outcome);
        }
        committer.commit(requests);
        for (mut outcome, expected) in outcomes.into_iter().zip(expected) {
            let code = outcome.try_recv().unwrap().map_err(|error| error.code());
            let wanted = if expected { Ok(()) } else { Err(Code::Conflict) };
            assert_eq!(code, wanted, "round {round}");
        }
        let published = shared.published().unwrap();
        let mut stored = Model::new();
        published
            .show(&KeyRange::all(), round % 2 == 0, &mut |key, value| {
                stored.insert(key.to_vec(), value.to_vec());
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(stored, model, "round {round}");
    }
    // A transaction on an old snapshot meets the history.
    let mut old = random_commit(&mut random, 0);
    old.reads.insert(KeyRange::all());
    let mut group = Group { before: Arc::clone(&committer.published), changes: Changes::new() };
    let outcome = committer.admit(&old, u64::MAX, &mut group).map_err(|error| error.code());
    assert_eq!(outcome, Err(Code::Conflict));
}

#[test]
fn a_group_lists_the_keys_that_its_members_left() {
    let directory = tempfile::tempdir().unwrap();
    let opened = Directory::lock(directory.path()).unwrap().open(Options::default()).unwrap();
    for key in 1..=20u8 {
        opened.keyspace.insert([key], b"").unwrap();
    }
    let before = Arc::new(opened.publish(0));
    let removed = (1..=15u8).map(|key| (vec![key], None));
    let changes = removed.chain([(vec![30], Some(Vec::new()))]).collect();
    let group = Group { before, changes };
    let keys = |most| group.keys(&KeyRange::all(), most).unwrap();
    assert_eq!(keys(100), [[16], [17], [18], [19], [20], [30]]);
    assert_eq!(keys(3), [[16], [17], [18]]);
    assert_eq!(keys(5).len(), 5);
}
