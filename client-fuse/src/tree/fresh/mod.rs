//! For how long a kernel may keep an answer. Pure.
//!
//! While the change stream is up, a change by another client reaches this mount at once and makes the
//! kernel drop what it has. An answer that was on its way at that moment would slip past: it may be kept
//! only if nothing that it is about changed since its request was sent.

mod directories;

pub(crate) use directories::{Ended, Names};

use directories::Directories;
use kiln_types::InodeId;
use std::collections::HashMap;
use std::time::Duration;

/// Changes that are remembered one by one; further ones count as a change of everything.
const CHANGES_MAX: usize = 8192;

/// What changed, and when, in the order in which this mount learned of it.
#[derive(Debug)]
pub(crate) struct Freshness {
    keep_for: Duration,
    connected: bool,
    clock: u64,
    /// Everything may have changed then.
    everything: u64,
    changed: HashMap<InodeId, u64>,
    directories: Directories,
}

/// The moment at which a request was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark(u64);

impl Freshness {
    /// Answers may be kept for `keep_for` while the change stream is up.
    pub(crate) fn new(keep_for: Duration) -> Self {
        let (changed, directories) = (HashMap::new(), Directories::default());
        Self { keep_for, connected: false, clock: 0, everything: 0, changed, directories }
    }

    /// A request is sent now.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.clock)
    }

    /// How long an answer about `inode` to a request of that moment may be kept.
    pub(crate) fn keep_for(&self, mark: Mark, inode: InodeId) -> Duration {
        let changed = self.changed.get(&inode).copied().unwrap_or(0).max(self.everything);
        if self.connected && changed <= mark.0 { self.keep_for } else { Duration::ZERO }
    }

    /// `inode`, or a name in it, changed: answers under way may not know it.
    pub(crate) fn change(&mut self, inode: InodeId) {
        self.clock += 1;
        if self.changed.len() >= CHANGES_MAX {
            self.change_everything();
        } else {
            self.changed.insert(inode, self.clock);
        }
    }

    /// Other clients may have changed anything, and made any names.
    pub(crate) fn miss(&mut self) {
        self.change_everything();
        self.directories.forget_names();
    }

    fn change_everything(&mut self) {
        self.clock += 1;
        self.everything = self.clock;
        self.changed.clear();
    }

    /// The change stream is up, or down: then nothing may be kept.
    pub(crate) fn set_connected(&mut self, connected: bool) {
        self.connected = connected;
        self.miss();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(10);
    const A: InodeId = InodeId(7);
    const B: InodeId = InodeId(8);

    #[test]
    fn an_answer_that_a_change_overtook_is_not_kept() {
        let mut fresh = Freshness::new(KEEP);
        assert_eq!(fresh.keep_for(fresh.mark(), A), Duration::ZERO, "the stream is down");
        let before = fresh.mark();
        fresh.set_connected(true);
        assert_eq!(fresh.keep_for(before, A), Duration::ZERO, "sent while it was down");
        let sent = fresh.mark();
        fresh.change(A);
        assert_eq!(fresh.keep_for(sent, A), Duration::ZERO);
        assert_eq!(fresh.keep_for(sent, B), KEEP);
        assert_eq!(fresh.keep_for(fresh.mark(), A), KEEP);
        let sent = fresh.mark();
        fresh.miss();
        assert_eq!(fresh.keep_for(sent, B), Duration::ZERO);
        fresh.set_connected(false);
        assert_eq!(fresh.keep_for(fresh.mark(), B), Duration::ZERO);
    }

    #[test]
    fn many_changes_count_as_a_change_of_everything() {
        let mut fresh = Freshness::new(KEEP);
        fresh.set_connected(true);
        let sent = fresh.mark();
        for inode in 100..100 + 2 * CHANGES_MAX as u64 {
            fresh.change(InodeId(inode));
        }
        assert_eq!(fresh.keep_for(sent, A), Duration::ZERO);
        assert_eq!(fresh.keep_for(sent, InodeId(100)), Duration::ZERO);
        assert_eq!(fresh.keep_for(fresh.mark(), A), KEEP);
        assert!(fresh.changed.len() <= CHANGES_MAX);
    }
}
