//! What is committed, in versions. Pure.

use crate::codes::{self, Code};
use kiln_kv::KeyRange;
use kiln_kv::history::History;
use kiln_types::Monotonic;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How long what was there before a commit can be read and validated against.
const WINDOW: Duration = Duration::from_secs(5);

/// What is committed of one key, oldest first; `None` = removed.
type Versions = Vec<(u64, Option<Vec<u8>>)>;

/// What one transaction does to keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    Set(Vec<u8>, Vec<u8>),
    Clear(KeyRange),
    /// Adds little-endian numbers of the operand's length.
    Add(Vec<u8>, Vec<u8>),
    /// Keeps the greater of little-endian numbers of the operand's length.
    Max(Vec<u8>, Vec<u8>),
}

/// What is committed at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Commit {
    pub(crate) read_version: u64,
    pub(crate) reads: Vec<KeyRange>,
    pub(crate) writes: Vec<KeyRange>,
    pub(crate) mutations: Vec<Mutation>,
}

pub(crate) struct Store {
    keys: BTreeMap<Vec<u8>, Versions>,
    history: History,
    version: u64,
    /// Removals, to be forgotten when nothing can read what was there before.
    removed: VecDeque<(u64, Vec<u8>)>,
}

impl Mutation {
    /// What is left of `stored` at `key`, if this is about it.
    pub(crate) fn apply(&self, key: &[u8], stored: Option<Vec<u8>>) -> Option<Vec<u8>> {
        match self {
            Self::Set(at, value) if at == key => Some(value.clone()),
            Self::Clear(range) if range.contains(key) => None,
            Self::Add(at, operand) if at == key => Some(add(stored, operand)),
            Self::Max(at, operand) if at == key => Some(max(stored, operand)),
            _ => stored,
        }
    }

    /// The keys that it may change.
    pub(crate) fn range(&self) -> KeyRange {
        match self {
            Self::Clear(range) => range.clone(),
            Self::Set(key, _) | Self::Add(key, _) | Self::Max(key, _) => KeyRange::key(key),
        }
    }
}

/// As long as the operand: a longer value is cut, a shorter one filled up with zeros.
fn fit(stored: Option<Vec<u8>>, operand: &[u8]) -> Vec<u8> {
    let mut value = stored.unwrap_or_default();
    value.resize(operand.len(), 0);
    value
}

fn add(stored: Option<Vec<u8>>, operand: &[u8]) -> Vec<u8> {
    let mut carry = 0;
    let sum = |(a, b): (&u8, &u8)| {
        let sum = u16::from(*a) + u16::from(*b) + carry;
        carry = sum >> 8;
        sum as u8
    };
    fit(stored, operand).iter().zip(operand).map(sum).collect()
}

fn max(stored: Option<Vec<u8>>, operand: &[u8]) -> Vec<u8> {
    let value = fit(stored, operand);
    match value.iter().rev().cmp(operand.iter().rev()) {
        std::cmp::Ordering::Less => operand.to_vec(),
        _ => value,
    }
}

impl Store {
    pub(crate) fn new() -> Self {
        let history = History::new(0, WINDOW);
        Self { keys: BTreeMap::new(), history, version: 1, removed: VecDeque::new() }
    }

    /// The version of the last commit.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    fn check(&self, at: u64) -> Result<(), Code> {
        match at {
            _ if at > self.version => Err(codes::FUTURE_VERSION),
            _ if at < self.history.oldest() => Err(codes::TRANSACTION_TOO_OLD),
            _ => Ok(()),
        }
    }

    /// A key's value as of a version.
    pub(crate) fn get(&self, key: &[u8], at: u64) -> Result<Option<Vec<u8>>, Code> {
        self.check(at)?;
        Ok(self.keys.get(key).and_then(|versions| newest(versions, at)).map(<[u8]>::to_vec))
    }

    /// The pairs of a range as of a version, in order, until `enough`.
    pub(crate) fn range(
        &self,
        range: &KeyRange,
        at: u64,
        reverse: bool,
        mut enough: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Code> {
        self.check(at)?;
        if range.is_empty() {
            return Ok(());
        }
        let mut show = |(key, versions): (&Vec<u8>, &Versions)| {
            newest(versions, at).is_some_and(|value| enough(key, value))
        };
        let mut all = self.keys.range(range.start.clone()..range.end.clone());
        match reverse {
            false => all.any(&mut show),
            true => all.rev().any(&mut show),
        };
        Ok(())
    }

    /// Commits; its version, and what it left at which keys.
    #[expect(clippy::type_complexity, reason = "a version and the changes")]
    pub(crate) fn commit(
        &mut self,
        commit: &Commit,
        now: Monotonic,
    ) -> Result<(u64, BTreeMap<Vec<u8>, Option<Vec<u8>>>), Code> {
        self.check(commit.read_version)?;
        let since = commit.read_version;
        if commit.reads.iter().any(|range| self.history.is_written(range, since)) {
            return Err(codes::NOT_COMMITTED);
        }
        let changes = self.changes(&commit.mutations);
        self.apply(&changes);
        for range in &commit.writes {
            self.history.record(range.clone(), self.version);
        }
        self.history.advance(self.version, now);
        self.forget();
        Ok((self.version, changes))
    }

    /// What a log says was committed next.
    pub(crate) fn replay(&mut self, changes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>) {
        self.apply(changes);
    }

    fn changes(&self, mutations: &[Mutation]) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
        let mut changes: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
        let stored = |key: &[u8]| {
            let versions = self.keys.get(key)?;
            newest(versions, self.version).map(<[u8]>::to_vec)
        };
        for mutation in mutations {
            if let Mutation::Clear(range) = mutation {
                if range.is_empty() {
                    continue;
                }
                let (start, end) = (range.start.clone(), range.end.clone());
                let there = self.keys.range(start.clone()..end.clone()).map(|(key, _)| key.clone());
                let own = changes.range(start..end).map(|(key, _)| key.clone());
                let all: Vec<_> = there.chain(own).collect();
                changes.extend(all.into_iter().map(|key| (key, None)));
                continue;
            }
            let key = mutation.range().start;
            let before = changes.remove(&key).unwrap_or_else(|| stored(&key));
            let after = mutation.apply(&key, before);
            changes.insert(key, after);
        }
        changes
    }

    fn apply(&mut self, changes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>) {
        self.version += 1;
        let oldest = self.history.oldest();
        for (key, value) in changes {
            if value.is_none() {
                self.removed.push_back((self.version, key.clone()));
            }
            let versions = self.keys.entry(key.clone()).or_default();
            drop_unseen(versions, oldest);
            versions.push((self.version, value.clone()));
        }
    }

    fn forget(&mut self) {
        let oldest = self.history.oldest();
        while self.removed.front().is_some_and(|(version, _)| *version <= oldest) {
            let Some((_, key)) = self.removed.pop_front() else { break };
            let Some(versions) = self.keys.get_mut(&key) else { continue };
            drop_unseen(versions, oldest);
            if matches!(versions.as_slice(), [(_, None)]) {
                self.keys.remove(&key);
            }
        }
    }
}

/// Drops what nothing can read any more.
fn drop_unseen(versions: &mut Versions, oldest: u64) {
    let visible = versions.iter().rposition(|(version, _)| *version <= oldest);
    versions.drain(..visible.unwrap_or(0));
}

fn newest(versions: &Versions, at: u64) -> Option<&[u8]> {
    let seen = versions.iter().rev().find(|(version, _)| *version <= at);
    seen.and_then(|(_, value)| value.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(at: u64, mutations: Vec<Mutation>) -> Commit {
        let writes = mutations.iter().map(Mutation::range).collect();
        Commit { read_version: at, reads: Vec::new(), writes, mutations }
    }

    #[test]
    fn numbers_are_as_long_as_what_is_added() {
        assert_eq!(add(Some(vec![255, 1, 9]), &[1, 0]), [0, 2]);
        assert_eq!(add(None, &[7, 0]), [7, 0]);
        assert_eq!(add(Some(vec![255]), &[255, 255]), [254, 0], "it wraps");
        assert_eq!(max(Some(vec![1, 2]), &[2, 1]), [1, 2]);
        assert_eq!(max(Some(vec![9]), &[0, 1]), [0, 1]);
        assert_eq!(max(None, &[3]), [3]);
    }

    #[test]
    fn mutations_happen_in_order_and_snapshots_stay() {
        let mut store = Store::new();
        let set = |key: &[u8], value: &[u8]| Mutation::Set(key.into(), value.into());
        let all = KeyRange::new([], [255]);
        let first = commit(1, vec![set(b"a", &[1]), set(b"b", &[1])]);
        let (first, _) = store.commit(&first, Monotonic(0)).unwrap();
        let second = [
            Mutation::Clear(all.clone()),
            Mutation::Add(b"a".into(), vec![2]),
            set(b"c", &[3]),
            Mutation::Add(b"c".into(), vec![4]),
        ];
        let (second, _) = store.commit(&commit(first, second.into()), Monotonic(0)).unwrap();
        let seen = |store: &Store, at| {
            let mut seen = Vec::new();
            let outcome = store.range(&all, at, false, |key, value| {
                seen.push((key.to_vec(), value.to_vec()));
                false
            });
            outcome.map(|()| seen)
        };
        let pairs = |pairs: &[(&[u8], u8)]| -> Vec<(Vec<u8>, Vec<u8>)> {
            pairs.iter().map(|(key, value)| (key.to_vec(), vec![*value])).collect()
        };
        assert_eq!(seen(&store, first), Ok(pairs(&[(b"a", 1), (b"b", 1)])));
        assert_eq!(seen(&store, second), Ok(pairs(&[(b"a", 2), (b"c", 7)])));
        assert_eq!(seen(&store, second + 1), Err(codes::FUTURE_VERSION));
        // Who read what was written since is refused, and so is who read too long ago.
        let mut late = commit(first, vec![set(b"d", &[1])]);
        late.reads = vec![KeyRange::key(b"b")];
        assert_eq!(store.commit(&late, Monotonic(0)).err(), Some(codes::NOT_COMMITTED));
        let hour = Monotonic(3600 * 1_000_000_000);
        store.commit(&commit(second, vec![set(b"e", &[1])]), hour).unwrap();
        store.commit(&commit(second + 1, vec![set(b"f", &[1])]), Monotonic(hour.0 * 2)).unwrap();
        assert_eq!(seen(&store, first), Err(codes::TRANSACTION_TOO_OLD));
        assert!(!store.keys.contains_key(b"b".as_slice()), "nobody can see it any more");
    }
}
