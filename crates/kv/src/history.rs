//! Which keys were written since which version: what optimistic validation asks.

use crate::KeyRange;
use crate::optimistic::Commit;
use kiln_types::{Code, Error, Monotonic, Result};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

/// The most boundaries that are kept (about 100 bytes each, with keys of usual lengths).
const BOUNDARIES_MAX: usize = 1 << 18;
const SWEEP_MIN: usize = 1024;

/// A step function from keys to the version of their last write, over a bounded time. Transactions
/// whose snapshot is older than [`oldest`](Self::oldest) can no longer be validated.
#[derive(Debug)]
pub struct History {
    /// From each boundary up to the next one, the last write; before the first: `oldest`.
    steps: BTreeMap<Vec<u8>, u64>,
    times: VecDeque<(Monotonic, u64)>,
    kept: Duration,
    oldest: u64,
    sweep_at: usize,
}

impl History {
    /// An empty history that starts at version `oldest` and keeps the writes of the last `kept`.
    pub fn new(oldest: u64, kept: Duration) -> Self {
        let (steps, times) = (BTreeMap::new(), VecDeque::new());
        Self { steps, times, kept, oldest, sweep_at: SWEEP_MIN }
    }

    /// The oldest snapshot that can be validated.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Whether a key in `range` was written after version `since`, which is not before `oldest`.
    pub fn is_written(&self, range: &KeyRange, since: u64) -> bool {
        if range.is_empty() {
            return false;
        }
        self.value_at(&range.start) > since
            || self.steps.range(range.start.clone()..range.end.clone()).any(|(_, at)| *at > since)
    }

    /// Checks that nothing that `commit` read was written since its snapshot.
    ///
    /// # Errors
    /// `Conflict`, or `TransactionTooOld` when that is no longer known.
    pub fn validate(&self, commit: &Commit) -> Result<()> {
        if commit.snapshot < self.oldest {
            let message = "the writes since the transaction's snapshot are no longer kept";
            return Err(Error::new(Code::TransactionTooOld, message));
        }
        if commit.reads.iter().any(|range| self.is_written(&range, commit.snapshot)) {
            let message = "another transaction wrote what this one read";
            return Err(Error::new(Code::Conflict, message));
        }
        Ok(())
    }

    /// Records that the keys in `range` were written at `version`, the highest so far.
    pub fn record(&mut self, range: KeyRange, version: u64) {
        if range.is_empty() {
            return;
        }
        let after = self.value_at(&range.end);
        let inside = (Bound::Excluded(range.start.clone()), Bound::Excluded(range.end.clone()));
        let inside: Vec<_> = self.steps.range(inside).map(|(key, _)| key.clone()).collect();
        for key in inside {
            self.steps.remove(&key);
        }
        self.steps.entry(range.end).or_insert(after);
        self.steps.insert(range.start, version);
    }

    /// Ends the writes of `version` at `now`, and forgets what is older than the time kept.
    pub fn advance(&mut self, version: u64, now: Monotonic) {
        self.times.push_back((now, version));
        while let Some((time, version)) = self.times.front().copied() {
            if now.since(time) <= self.kept {
                break;
            }
            self.oldest = version;
            self.times.pop_front();
        }
        if self.steps.len() >= self.sweep_at {
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        self.forget();
        if self.steps.len() > BOUNDARIES_MAX {
            let half = self.times.len().div_ceil(2);
            if let Some((_, version)) = self.times.drain(..half).next_back() {
                self.oldest = version;
            }
            self.forget();
        }
        self.sweep_at = (self.steps.len() * 2).clamp(SWEEP_MIN, BOUNDARIES_MAX);
    }

    /// Joins the steps that no snapshot can ask about any more.
    fn forget(&mut self) {
        let oldest = self.oldest;
        let mut was_old = true;
        self.steps.retain(|_, version| {
            let is_old = *version <= oldest;
            let kept = !(is_old && was_old);
            was_old = is_old;
            kept
        });
    }

    fn value_at(&self, key: &[u8]) -> u64 {
        let up_to = (Bound::Unbounded, Bound::Included(key));
        let step = self.steps.range::<[u8], _>(up_to).next_back();
        step.map_or(self.oldest, |(_, version)| *version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_list_of_all_writes() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut history = History::new(0, Duration::from_nanos(30));
            history.sweep_at = 8;
            let mut list: Vec<(KeyRange, u64)> = Vec::new();
            for version in 1..100u64 {
                for _ in 0..random.u8(..4) {
                    let start = random.u8(..60);
                    let end = start + random.u8(..8);
                    let range = KeyRange::new([start], [end]);
                    list.push((range.clone(), version));
                    history.record(range, version);
                }
                history.advance(version, Monotonic(version));
                assert!(history.oldest() + 31 >= version, "seed {seed}");
                for _ in 0..5 {
                    let start = random.u8(..60);
                    let range = KeyRange::new([start], [start + random.u8(..8)]);
                    let since = random.u64(history.oldest()..=version);
                    let expected = list.iter().any(|(w, at)| *at > since && w.intersects(&range));
                    assert_eq!(history.is_written(&range, since), expected, "seed {seed}");
                }
            }
            assert!(history.steps.len() < 130, "seed {seed}: {}", history.steps.len());
        }
    }
}
