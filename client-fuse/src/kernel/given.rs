//! The names that the kernel may go by. Pure.
//!
//! It can be told to forget all names at once, but then the next use of a directory's name takes the working directory from
//! under whoever is in it, until that is answered. So the names are known here, to expire one by one.

use kiln_types::{InodeId, Monotonic};
use std::collections::HashSet;
use std::time::Duration;

/// A name, and the directory that it is in.
pub(super) type Name = (InodeId, Vec<u8>);

/// The names that were given in this period and in the one before, each as long as the kernel keeps a name; `None`: too
/// many to know them.
pub(super) struct Given {
    now: Option<HashSet<Name>>,
    before: Option<HashSet<Name>>,
    ends: Monotonic,
    most: usize,
}

impl Given {
    /// Knows at most `most` names of a period.
    pub(super) fn new(most: usize) -> Self {
        Self { now: Some(HashSet::new()), before: Some(HashSet::new()), ends: Monotonic(0), most }
    }

    /// The kernel may keep a name for so long.
    pub(super) fn note(&mut self, name: Name, keep_for: Duration, now: Monotonic) {
        if now >= self.ends {
            self.before = self.now.replace(HashSet::new());
            self.ends = now.plus(keep_for);
        }
        if self.now.as_ref().is_some_and(|names| names.len() == self.most) {
            self.now = None;
        }
        if let Some(names) = &mut self.now {
            names.insert(name);
        }
    }

    /// All of them, which the kernel is to forget now; `None` when they are not known.
    pub(super) fn take(&mut self) -> Option<impl Iterator<Item = Name> + use<>> {
        let [now, before] =
            [&mut self.now, &mut self.before].map(|names| names.replace(HashSet::new()));
        Some(now?.into_iter().chain(before?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_as_long_as_the_kernel_keeps_them() {
        const KEEP: Duration = Duration::from_secs(10);
        let mut given = Given::new(3);
        let note = |given: &mut Given, name: u8, seconds: u64| {
            let now = Monotonic(0).plus(Duration::from_secs(seconds));
            given.note((InodeId(1), vec![name]), KEEP, now);
        };
        let taken = |given: &mut Given| {
            let names = given.take()?.map(|(_, name)| name[0]);
            let mut names: Vec<_> = names.collect();
            names.sort_unstable();
            Some(names)
        };
        note(&mut given, 1, 100);
        note(&mut given, 2, 109);
        note(&mut given, 3, 112);
        assert_eq!(taken(&mut given), Some(vec![1, 2, 3]));
        assert_eq!(taken(&mut given), Some(vec![]));
        (1..=3).for_each(|name| note(&mut given, name, 200));
        note(&mut given, 4, 211);
        note(&mut given, 5, 222);
        assert_eq!(taken(&mut given), Some(vec![4, 5]));
        (1..=4).for_each(|name| note(&mut given, name, 300));
        note(&mut given, 5, 311);
        assert_eq!(taken(&mut given), None);
        assert_eq!(taken(&mut given), Some(vec![]));
    }
}
