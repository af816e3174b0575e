//! Which members of a group may commit, and what they leave: pure, over what the store was found to hold.

use kiln_kv::history::History;
use kiln_kv::optimistic::{Changes, Commit, Stored};
use kiln_kv::{CLEARED_KEYS_MAX, KeyRange};
use kiln_types::{Code, Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What has to be known of the store before a group can be decided.
#[derive(Debug, Default)]
pub(crate) struct Need {
    /// The oldest view whose reads are validated: the log is needed from there on.
    pub(crate) since: Option<u64>,
    /// Keys whose values are merged.
    pub(crate) merged: Vec<Vec<u8>>,
    /// Ranges that are cleared: bounds in pairs.
    pub(crate) cleared: (Vec<Vec<u8>>, Vec<Vec<u8>>),
}

impl Need {
    pub(crate) fn of<'a>(commits: impl Iterator<Item = &'a Commit> + Clone) -> Self {
        let readers = commits.clone().filter(|commit| !commit.reads.is_empty());
        let mut need = Self { since: readers.map(|one| one.snapshot).min(), ..Self::default() };
        for commit in commits {
            let keys = commit.writes.keys().keys().filter(|key| !commit.writes.decides(key));
            need.merged.extend(keys.cloned());
            for range in commit.writes.cleared().iter() {
                need.cleared.0.push(range.start);
                need.cleared.1.push(range.end);
            }
        }
        need
    }
}

/// One commit of the log.
#[derive(Debug)]
pub(crate) struct Logged {
    pub(crate) version: u64,
    pub(crate) starts: Vec<Vec<u8>>,
    pub(crate) ends: Vec<Vec<u8>>,
}

/// What the store holds of a [`Need`].
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The version of the last commit.
    pub(crate) head: u64,
    /// The commits since [`Need::since`], in order, as far as the log goes back.
    pub(crate) log: Vec<Logged>,
    pub(crate) values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Stored keys in the ranges that are cleared, up to one above [`CLEARED_KEYS_MAX`].
    pub(crate) cleared: BTreeSet<Vec<u8>>,
}

impl Found {
    /// Whether some keys to clear may not have been found.
    pub(crate) fn is_cut(&self) -> bool {
        self.cleared.len() > CLEARED_KEYS_MAX
    }

    /// The writes that the log tells of. Before a gap in it nothing is known.
    fn history(&self) -> History {
        let known = self.log.iter().rev().zip((0..=self.head).rev());
        let known = known.take_while(|(logged, expected)| logged.version == *expected).count();
        let mut history = History::new(self.head - known as u64, Duration::MAX);
        for logged in &self.log[self.log.len() - known..] {
            for (start, end) in logged.starts.iter().zip(&logged.ends) {
                history.record(KeyRange::new(start.clone(), end.clone()), logged.version);
            }
        }
        history
    }
}

/// What a group commits.
#[derive(Debug, Default)]
pub(crate) struct Decided {
    /// The version that the group gets.
    pub(crate) version: u64,
    /// For each member.
    pub(crate) outcomes: Vec<Result<()>>,
    pub(crate) changes: Changes,
    /// What the members write, for the log.
    pub(crate) starts: Vec<Vec<u8>>,
    pub(crate) ends: Vec<Vec<u8>>,
}

impl Decided {
    pub(crate) fn any(&self) -> bool {
        self.outcomes.iter().any(Result::is_ok)
    }
}

/// Decides the members one after the other, each over what those before it leave.
pub(crate) fn decide<'a>(found: Found, commits: impl Iterator<Item = &'a Commit>) -> Decided {
    let (head, history) = (found.head, found.history());
    let decided = Decided { version: head + 1, ..Decided::default() };
    let mut group = Group { found, history, decided };
    for commit in commits {
        let outcome = group.admit(commit, head);
        group.decided.outcomes.push(outcome);
    }
    group.decided
}

struct Group {
    found: Found,
    history: History,
    decided: Decided,
}

impl Group {
    fn admit(&mut self, commit: &Commit, head: u64) -> Result<()> {
        if !commit.reads.is_empty() {
            if commit.snapshot > head {
                let text =
                    "the transaction has seen commits that PostgreSQL does not have any more";
                return Err(Error::new(Code::TransactionTooOld, text));
            }
            self.history.validate(commit)?;
        }
        let changes = commit.changes(self)?;
        self.decided.changes.extend(changes);
        for range in commit.writes.conflict_ranges() {
            self.decided.starts.push(range.start.clone());
            self.decided.ends.push(range.end.clone());
            self.history.record(range, head + 1);
        }
        Ok(())
    }
}

impl Stored for Group {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.decided.changes.get(key) {
            Some(value) => Ok(value.clone()),
            None => Ok(self.found.values.get(key).cloned()),
        }
    }

    fn keys(&self, range: &KeyRange, most: usize) -> Result<Vec<Vec<u8>>> {
        let bounds = || range.start.clone()..range.end.clone();
        let changes = &self.decided.changes;
        let stored = self.found.cleared.range(bounds()).filter(|key| !changes.contains_key(*key));
        let changed = changes.range(bounds()).filter(|(_, value)| value.is_some());
        Ok(stored.chain(changed.map(|(key, _)| key)).take(most).cloned().collect())
    }
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
