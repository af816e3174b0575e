//! What a mount knows of directories by itself. Pure.
//!
//! A kernel asks for a directory's attributes again after each change that it makes there, and looks for
//! each name before it makes it. Both are answered here where that is right: attributes while nobody else changed
//! the directory, with the times of this mount's own changes; and that a name is not there, in directories
//! of which all names are known: those made here, and those read from the start to the end.
//!
//! Invariant: of a directory with `names`, each name that is there or that this mount may still make is among them.
//! Names that are not there any more may be.

use super::{Freshness, Mark};
use kiln_types::{Attr, FileKind, InodeId, Monotonic, Timestamp};
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A longer one is an error.
const NAME_BYTES_MAX: usize = 255;
/// Directories of which something is known.
const DIRECTORIES_MAX: usize = 16 << 10;
/// Names that are known, over all directories: 9 bytes each and as much again for growth.
const NAMES_MAX: usize = 1 << 20;

/// All names of a directory, as hashes: two names may have one, so that a name that seems to be there may not be.
#[derive(Debug, Default)]
pub(crate) struct Names(HashSet<u64>);

impl Names {
    pub(crate) fn add(&mut self, name: &[u8]) {
        self.0.insert(hash(name));
    }

    /// Whether a listing need not give up.
    pub(crate) fn is_small(&self) -> bool {
        self.0.len() < NAMES_MAX / 4
    }
}

/// How a change that this mount made in a directory ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    /// At this time something was made, or nothing happened there later than then.
    Made(Timestamp),
    /// A directory was made in it, or (`false`) removed.
    Directory(Timestamp, bool),
    /// The directory's attributes are others.
    Changed,
    /// Nothing changed.
    Not,
    /// Nobody knows; it may still happen.
    Open,
}

#[derive(Debug, Default)]
pub(super) struct Directories {
    known: HashMap<InodeId, Directory>,
    names: usize,
    /// What was forgotten of directories that are not among `known` happened before.
    forgotten: u64,
    /// This mount changed some directory's attributes then.
    some_changed: u64,
}

#[derive(Debug, Default)]
struct Directory {
    attr: Option<Kept>,
    /// Something was made here by this mount: answers to requests before the first do not tell the second.
    made: Option<(u64, Timestamp)>,
    /// Answers to requests before that tell attributes that are gone.
    changed: u64,
    /// Listings that began before that may lack names that this mount made.
    listed_from: u64,
    /// Changes of this mount that are under way, those whose answers were given up included.
    under_way: usize,
    /// Changes of this mount that are not answered.
    asked: usize,
    names: Option<Names>,
    /// This mount removed it then, with these attributes; who has it open sees them.
    gone: Option<(Mark, Attr)>,
}

#[derive(Debug)]
struct Kept {
    attr: Attr,
    sent: Mark,
    learned: Mark,
    until: Monotonic,
}

impl Freshness {
    /// Takes in the answer to a request of `sent`.
    pub(crate) fn learn(&mut self, sent: Mark, now: Monotonic, attr: &Attr) {
        if attr.links > 0 {
            self.directories.found(sent, attr.inode);
        }
        let is_kept = !self.keep_for(sent, attr.inode).is_zero();
        if attr.kind != FileKind::Directory || !is_kept || sent.0 < self.directories.some_changed {
            return;
        }
        let until = now.plus(self.keep_for);
        let directory = self.directories.entry(attr.inode);
        let known = directory.attr.as_ref().is_some_and(|kept| kept.sent.0 >= sent.0);
        if sent.0 < directory.changed || known {
            return;
        }
        directory.made = directory.made.filter(|(at, _)| sent.0 < *at);
        let learned = Mark(self.clock);
        directory.attr = Some(Kept { attr: attr.clone(), sent, learned, until });
    }

    /// The attributes of a directory, and when they were asked for; `None`: they have to be asked for.
    pub(crate) fn directory(&self, inode: InodeId, now: Monotonic) -> Option<(Mark, Attr)> {
        let directory = self.directories.known.get(&inode)?;
        if let Some((_, gone)) = &directory.gone {
            return Some((self.mark(), gone.clone()));
        }
        let kept = directory.attr.as_ref()?;
        let is_old = now >= kept.until || kept.sent.0 < self.directories.some_changed;
        if is_old || self.keep_for(kept.sent, inode).is_zero() {
            return None;
        }
        let mut attr = kept.attr.clone();
        // An earlier time is in them already, or somebody has set another one since.
        if let Some((_, at)) = directory.made.filter(|(_, at)| *at > attr.ctime) {
            (attr.mtime, attr.ctime) = (at, at);
        }
        Some((kept.sent, attr))
    }

    /// Whether a directory surely has nothing under a name.
    pub(crate) fn lacks(&self, parent: InodeId, name: &[u8]) -> bool {
        let names = self.directories.known.get(&parent).and_then(|known| known.names.as_ref());
        let is_name = name.len() <= NAME_BYTES_MAX;
        self.connected && is_name && names.is_some_and(|names| !names.0.contains(&hash(name)))
    }

    /// All names of a directory, by a listing (or the making of it) that began at `sent`.
    pub(crate) fn all_names(&mut self, sent: Mark, inode: InodeId, names: Names) {
        if self.keep_for(sent, inode).is_zero() {
            return;
        }
        let directory = self.directories.entry(inode);
        if sent.0 < directory.listed_from || directory.under_way > 0 {
            return;
        }
        let count = names.0.len();
        let before = directory.names.replace(names).map_or(0, |names| names.0.len());
        self.directories.names = self.directories.names - before + count;
        self.directories.bound_names();
    }

    /// This mount is about to change something in `parent`, after which it may have `name`.
    pub(crate) fn begin(&mut self, parent: InodeId, name: Option<&[u8]>) -> Mark {
        self.clock += 1;
        let directory = self.directories.entry(parent);
        directory.under_way += 1;
        directory.asked += 1;
        if let Some(name) = name {
            self.appeared(parent, name);
        }
        self.mark()
    }

    /// What [`begin`](Self::begin) announced has ended.
    pub(crate) fn end(&mut self, parent: InodeId, begun: Mark, ended: Ended) {
        self.clock += 1;
        let clock = self.clock;
        let directory = self.directories.entry(parent);
        directory.listed_from = clock;
        directory.asked = directory.asked.saturating_sub(1);
        match ended {
            Ended::Made(time) => directory.make(clock, time),
            Ended::Directory(time, is_made) => {
                directory.count(clock, begun, is_made);
                directory.make(clock, time);
            }
            Ended::Changed | Ended::Open => directory.change(clock),
            Ended::Not => {}
        }
        // What is open counts as under way for ever.
        if !matches!(ended, Ended::Open) {
            directory.under_way = directory.under_way.saturating_sub(1);
        }
    }

    /// Whether this mount changes something in a directory; `None`: in any.
    pub(crate) fn is_changing(&self, parent: Option<InodeId>) -> bool {
        let known = &self.directories.known;
        let changes = |directory: &Directory| directory.asked > 0;
        match parent {
            Some(parent) => known.get(&parent).is_some_and(changes),
            None => known.values().any(changes),
        }
    }

    /// Another client changed what a directory has under a name.
    pub(crate) fn name_changed(&mut self, parent: InodeId, name: &[u8]) {
        self.change(parent);
        self.appeared(parent, name);
    }

    /// A directory may have this name from now on.
    fn appeared(&mut self, parent: InodeId, name: &[u8]) {
        let names = self.directories.known.get_mut(&parent).and_then(|known| known.names.as_mut());
        if names.is_some_and(|names| names.0.insert(hash(name))) {
            self.directories.names += 1;
            self.directories.bound_names();
        }
    }

    /// This mount changed attributes of an inode, which may be a directory; without one, of any directory.
    pub(crate) fn changed_here(&mut self, inode: Option<InodeId>) {
        self.clock += 1;
        match inode.map(|inode| self.directories.known.get_mut(&inode)) {
            None => self.directories.some_changed = self.clock,
            Some(None) => self.directories.forgotten = self.clock,
            Some(Some(directory)) => directory.change(self.clock),
        }
    }

    /// This mount removed a directory.
    pub(crate) fn removed(&mut self, attr: &Attr) {
        let gone = Some((self.mark(), attr.clone()));
        self.directories.entry(attr.inode).gone = gone;
    }

    /// The kernel forgets an inode.
    pub(crate) fn forget(&mut self, inode: InodeId) {
        if let Some(directory) = self.directories.known.remove(&inode) {
            self.directories.names -= directory.names.map_or(0, |names| names.0.len());
            self.directories.forgotten = self.clock;
        }
    }
}

impl Directory {
    /// Something was made in it at `time`.
    fn make(&mut self, clock: u64, time: Timestamp) {
        let time = self.made.map_or(time, |(_, before)| before.max(time));
        self.made = Some((clock, time));
    }

    /// One more or one less directory is in it. Attributes that were known before tell how many there were; of those
    /// that came meanwhile nobody knows whether they count it.
    fn count(&mut self, clock: u64, begun: Mark, is_made: bool) {
        self.attr = self.attr.take().filter(|kept| kept.learned.0 < begun.0);
        if let Some(kept) = &mut self.attr {
            let links = kept.attr.links;
            kept.attr.links =
                if is_made { links.saturating_add(1) } else { links.saturating_sub(1) };
        }
        self.changed = clock;
    }

    /// Its attributes are others from now on.
    fn change(&mut self, clock: u64) {
        (self.attr, self.made, self.changed) = (None, None, clock);
    }
}

impl Directories {
    /// A directory had a name when something was asked: if this mount removed it before, somebody has restored it.
    fn found(&mut self, asked: Mark, inode: InodeId) {
        if let Some(directory) = self.known.get_mut(&inode) {
            directory.gone.take_if(|(removed, _)| removed.0 <= asked.0);
        }
    }

    fn entry(&mut self, inode: InodeId) -> &mut Directory {
        if self.known.len() >= DIRECTORIES_MAX && !self.known.contains_key(&inode) {
            self.make_room();
        }
        let before = self.forgotten;
        let new = || Directory { changed: before, listed_from: before, ..Directory::default() };
        self.known.entry(inode).or_insert_with(new)
    }

    /// Forgets all directories in which nothing is under way.
    fn make_room(&mut self) {
        let last = |directory: &Directory| directory.changed.max(directory.listed_from);
        self.forgotten = self.known.values().map(last).max().unwrap_or(0).max(self.forgotten);
        self.known.retain(|_, directory| directory.under_way > 0);
        self.forget_names();
    }

    fn bound_names(&mut self) {
        if self.names > NAMES_MAX {
            self.forget_names();
        }
    }

    /// No directory's names are known any more.
    pub(super) fn forget_names(&mut self) {
        self.known.values_mut().for_each(|directory| directory.names = None);
        self.names = 0;
    }
}

fn hash(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
#[path = "directories_tests.rs"]
mod tests;
