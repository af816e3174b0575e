//! Members of one group, against the same transactions one after the other.

use super::*;
use kiln_kv::range_set::RangeSet;
use kiln_kv::writes::{Merge, Writes};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// A store in memory, with the log of its commits.
#[derive(Default)]
struct Store {
    pairs: Model,
    log: Vec<Vec<KeyRange>>,
}

impl Store {
    fn head(&self) -> u64 {
        self.log.len() as u64
    }

    fn find(&self, need: &Need) -> Found {
        let since = need.since.unwrap_or(u64::MAX);
        let logged = (1..).zip(&self.log).filter(|(version, _)| *version > since);
        let logged = logged.map(|(version, ranges)| Logged {
            version,
            starts: ranges.iter().map(|range| range.start.clone()).collect(),
            ends: ranges.iter().map(|range| range.end.clone()).collect(),
        });
        let values = need.merged.iter().filter_map(|key| self.pairs.get_key_value(key));
        let is_cleared = |key: &Vec<u8>| {
            need.cleared.0.iter().zip(&need.cleared.1).any(|(start, end)| start <= key && key < end)
        };
        Found {
            head: self.head(),
            log: logged.collect(),
            values: values.map(|(key, value)| (key.clone(), value.clone())).collect(),
            cleared: self.pairs.keys().filter(|key| is_cleared(key)).cloned().collect(),
        }
    }

    fn apply(&mut self, decided: Decided) {
        for (key, value) in decided.changes {
            match value {
                Some(value) => self.pairs.insert(key, value),
                None => self.pairs.remove(&key),
            };
        }
        let ranges = decided.starts.into_iter().zip(decided.ends);
        self.log.push(ranges.map(|(start, end)| KeyRange::new(start, end)).collect());
    }
}

/// A random transaction on few keys, on the view of `version`.
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

/// What one commit alone does to the pairs.
fn apply(pairs: &mut Model, commit: &Commit) {
    for range in commit.writes.cleared().iter() {
        pairs.retain(|key, _| !range.contains(key));
    }
    for (key, write) in commit.writes.keys() {
        match write.apply(pairs.get(key).map(Vec::as_slice)).unwrap() {
            Some(value) => pairs.insert(key.clone(), value),
            None => pairs.remove(key),
        };
    }
}

#[test]
fn a_group_is_its_members_one_after_the_other() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut store, mut model) = (Store::default(), Model::new());
        let mut written: Vec<(u64, KeyRange)> = Vec::new();
        for _ in 0..40 {
            let head = store.head();
            let members: Vec<_> = (0..random.usize(1..6))
                .map(|_| {
                    let version = head - random.u64(..=head.min(5));
                    random_commit(&mut random, version)
                })
                .collect();
            let decided = decide(store.find(&Need::of(members.iter())), members.iter());
            for (member, outcome) in members.iter().zip(&decided.outcomes) {
                let mut since = written.iter().filter(|(version, _)| *version > member.snapshot);
                let conflicts =
                    since.any(|(_, write)| member.reads.iter().any(|read| read.intersects(write)));
                let expected = if conflicts { Err(Code::Conflict) } else { Ok(()) };
                let outcome = outcome.clone().map_err(|error| error.code());
                assert_eq!(outcome, expected, "seed {seed}");
                if !conflicts {
                    apply(&mut model, member);
                    written.extend(member.writes.conflict_ranges().map(|one| (head + 1, one)));
                }
            }
            assert_eq!(decided.version, head + 1);
            if decided.any() {
                store.apply(decided);
            }
            assert_eq!(store.pairs, model, "seed {seed}");
        }
    }
}

#[test]
fn what_the_log_does_not_tell_is_too_old() {
    let mut store = Store::default();
    for _ in 0..4 {
        let mut writes = Writes::default();
        writes.set(b"a", b"");
        let commit = Commit { snapshot: 0, reads: RangeSet::default(), writes };
        store.apply(decide(store.find(&Need::of([&commit].into_iter())), [&commit].into_iter()));
    }
    let outcome = |snapshot, cut: &dyn Fn(&mut Vec<Logged>)| {
        let (mut reads, mut writes) = (RangeSet::default(), Writes::default());
        reads.insert(KeyRange::key(b"b"));
        writes.set(b"c", b"");
        let commit = Commit { snapshot, reads, writes };
        let mut found = store.find(&Need::of([&commit].into_iter()));
        cut(&mut found.log);
        let mut outcomes = decide(found, [&commit].into_iter()).outcomes;
        outcomes.remove(0).map_err(|error| error.code())
    };
    assert_eq!(outcome(1, &|_| {}), Ok(()));
    assert_eq!(outcome(1, &|log| drop(log.remove(0))), Err(Code::TransactionTooOld));
    assert_eq!(outcome(2, &|log| drop(log.remove(0))), Err(Code::TransactionTooOld));
    assert_eq!(outcome(1, &|log| drop(log.remove(1))), Err(Code::TransactionTooOld));
    assert_eq!(outcome(4, &|_| {}), Ok(()));
    assert_eq!(outcome(5, &|_| {}), Err(Code::TransactionTooOld), "PostgreSQL went back");
}
