//! What is not any more as it was.

use bytes::Bytes;
use kiln_types::InodeId;
use std::collections::{BTreeMap, BTreeSet};

/// The most changes of one message; more are told as a loss.
const CHANGES_MAX: usize = 4096;

/// What changed, without order or number: telling it twice does no harm.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Changes {
    lost: bool,
    inodes: BTreeMap<InodeId, bool>,
    names: BTreeSet<(InodeId, Bytes)>,
    unlocked: BTreeSet<InodeId>,
    appends: BTreeSet<InodeId>,
}

impl Changes {
    /// Anything may have changed.
    pub(crate) fn anything() -> Self {
        Self { lost: true, ..Self::default() }
    }

    /// Whether anything may have changed; then nothing is told one by one.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.lost && self.count() == 0
    }

    /// Inodes whose attributes changed or that are gone; `true`: their content changed, too.
    pub fn inodes(&self) -> impl Iterator<Item = (InodeId, bool)> {
        self.inodes.iter().map(|(inode, content)| (*inode, *content))
    }

    /// Names that were made, removed, or lead to something else.
    pub fn names(&self) -> impl Iterator<Item = (InodeId, &Bytes)> {
        self.names.iter().map(|(parent, name)| (*parent, name))
    }

    /// Inodes on which locks ended that somebody waits for.
    pub fn unlocked_inodes(&self) -> impl Iterator<Item = InodeId> {
        self.unlocked.iter().copied()
    }

    /// Inodes to which somebody wants to append.
    pub fn appends(&self) -> impl Iterator<Item = InodeId> {
        self.appends.iter().copied()
    }

    /// Whether something is not any more as caches may have it.
    pub(super) fn is_cached(&self) -> bool {
        self.lost || !self.inodes.is_empty() || !self.names.is_empty()
    }

    /// Whether somebody may wait for it, whatever is in caches.
    pub(super) fn is_awaited(&self) -> bool {
        self.lost || !self.unlocked.is_empty() || !self.appends.is_empty()
    }

    /// Those that concern some inodes, names in some directories, and locks.
    pub(super) fn only(
        &self,
        inodes: impl Fn(InodeId) -> bool,
        parents: impl Fn(InodeId) -> bool,
    ) -> Self {
        Self {
            inodes: self.inodes().filter(|(inode, _)| inodes(*inode)).collect(),
            names: self.names.iter().filter(|(parent, _)| parents(*parent)).cloned().collect(),
            ..self.clone()
        }
    }

    fn count(&self) -> usize {
        self.inodes.len() + self.names.len() + self.unlocked.len() + self.appends.len()
    }

    /// Attributes of an inode change.
    pub(crate) fn attr(&mut self, inode: InodeId) {
        self.inodes.entry(inode).or_insert(false);
    }

    /// Content and attributes of a file change.
    pub(crate) fn content(&mut self, inode: InodeId) {
        self.inodes.insert(inode, true);
    }

    /// What a directory has under a name changes.
    pub(crate) fn name(&mut self, parent: InodeId, name: &[u8]) {
        self.names.insert((parent, Bytes::copy_from_slice(name)));
    }

    /// Locks on an inode end that somebody waits for.
    pub(crate) fn unlocked(&mut self, inode: InodeId) {
        self.unlocked.insert(inode);
    }

    /// Somebody wants the right to append to an inode, which another client has.
    pub(crate) fn append(&mut self, inode: InodeId) {
        self.appends.insert(inode);
    }

    /// Adds others.
    pub(crate) fn extend(&mut self, others: &Self) {
        if self.lost {
            return;
        }
        if others.lost || self.count() + others.count() > CHANGES_MAX {
            *self = Self::anything();
            return;
        }
        for (inode, content) in &others.inodes {
            *self.inodes.entry(*inode).or_insert(false) |= content;
        }
        self.names.extend(others.names.iter().cloned());
        self.unlocked.extend(&others.unlocked);
        self.appends.extend(&others.appends);
    }
}
