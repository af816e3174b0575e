//! The inodes that the kernel knows or that are open on this mount.

use crate::tree::open_inode::OpenInode;
use kiln_types::{Attr, InodeId, Timestamp, TruncateEpoch};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// By the cluster's inode numbers.
#[derive(Default)]
pub(crate) struct Nodes {
    nodes: Mutex<HashMap<InodeId, Node>>,
}

#[derive(Default)]
struct Node {
    lookups: u64,
    /// Of the content that the kernel's pages belong to.
    content: Option<ContentVersion>,
    /// Of the attributes that the kernel was given last.
    given: Option<ContentVersion>,
    /// How often this mount removed it.
    removals: u64,
    open: Option<Arc<OpenInode>>,
}

/// Changes whenever the content does (and with some other changes too).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ContentVersion {
    epoch: TruncateEpoch,
    length: u64,
    mtime: Timestamp,
    ctime: Timestamp,
}

impl ContentVersion {
    fn of(attr: &Attr) -> Self {
        Self { epoch: attr.epoch, length: attr.length, mtime: attr.mtime, ctime: attr.ctime }
    }

    fn is_newer_than(&self, attr: &Attr) -> bool {
        (self.epoch, self.ctime) > (attr.epoch, attr.ctime)
    }
}

impl Node {
    fn is_unused(&self) -> bool {
        self.lookups == 0 && self.open.is_none()
    }
}

impl Nodes {
    /// The kernel knows `inode` once more.
    pub(crate) fn looked_up(&self, inode: InodeId) {
        self.nodes.lock().entry(inode).or_default().lookups += 1;
    }

    /// The kernel forgets `count` lookups; whether it does not know `inode` any more.
    pub(crate) fn forget(&self, inode: InodeId, count: u64) -> bool {
        let mut nodes = self.nodes.lock();
        let Some(node) = nodes.get_mut(&inode) else { return true };
        node.lookups = node.lookups.saturating_sub(count);
        let is_unused = node.is_unused();
        if is_unused {
            nodes.remove(&inode);
        }
        is_unused
    }

    /// The open state of `inode`, if it is open here.
    pub(crate) fn open(&self, inode: InodeId) -> Option<Arc<OpenInode>> {
        self.nodes.lock().get(&inode)?.open.clone()
    }

    /// One more handle of `inode`: joins the open state that is there, or puts `new` there.
    pub(crate) fn join_open(
        &self,
        inode: InodeId,
        new: impl FnOnce() -> Arc<OpenInode>,
    ) -> Arc<OpenInode> {
        let mut nodes = self.nodes.lock();
        let open = nodes.entry(inode).or_default().open.get_or_insert_with(new);
        open.join();
        Arc::clone(open)
    }

    /// One handle of `open` less; whether it was the last one, so that `inode` is not open any more.
    pub(crate) fn leave_open(&self, inode: InodeId, open: &OpenInode) -> bool {
        let mut nodes = self.nodes.lock();
        if open.leave() > 0 {
            return false;
        }
        if let Some(node) = nodes.get_mut(&inode) {
            node.open = None;
            if node.is_unused() {
                nodes.remove(&inode);
            }
        }
        true
    }

    /// `attr`, with what this mount knows better: while the answer was on its way, a file may have been
    /// written and closed here.
    pub(crate) fn newest(&self, mut attr: Attr) -> Attr {
        let nodes = self.nodes.lock();
        let content = nodes.get(&attr.inode).and_then(|node| node.content);
        if let Some(content) = content.filter(|known| known.is_newer_than(&attr)) {
            (attr.length, attr.mtime, attr.ctime) = (content.length, content.mtime, content.ctime);
        }
        attr
    }

    /// This mount removed a directory.
    pub(crate) fn removed(&self, inode: InodeId) {
        if let Some(node) = self.nodes.lock().get_mut(&inode) {
            node.removals += 1;
        }
    }

    /// Another one after each removal: a kernel makes nothing any more in a directory that it saw removed, also when
    /// somebody has restored it.
    pub(crate) fn generation(&self, inode: InodeId) -> u64 {
        self.nodes.lock().get(&inode).map_or(0, |node| node.removals)
    }

    /// The kernel is given these attributes.
    pub(crate) fn gave(&self, inode: InodeId, attr: &Attr) {
        if let Some(node) = self.nodes.lock().get_mut(&inode) {
            node.given = Some(ContentVersion::of(attr));
        }
    }

    /// `attr` comes with an open: whether the kernel's pages belong to that content, and whether it has
    /// these attributes. The pages do from now on: if they did not, the kernel drops them with this open.
    pub(crate) fn opens_same(&self, attr: &Attr) -> (bool, bool) {
        let version = Some(ContentVersion::of(attr));
        let mut nodes = self.nodes.lock();
        let Some(node) = nodes.get_mut(&attr.inode) else { return (false, false) };
        let same = (node.content == version, node.given == version);
        node.content = version;
        same
    }

    /// `attr` is the answer to a change that this mount made. With `wrote` it was one of the content,
    /// which the kernel's pages have; else the pages stay right only if nobody else changed it.
    pub(crate) fn changed_here(&self, attr: &Attr, wrote: bool) {
        let mut nodes = self.nodes.lock();
        let Some(node) = nodes.get_mut(&attr.inode) else { return };
        if node.content.is_some_and(|known| known.is_newer_than(attr)) {
            return;
        }
        let version = ContentVersion::of(attr);
        let same = |known: ContentVersion| {
            (known.epoch, known.length, known.mtime) == (attr.epoch, attr.length, attr.mtime)
        };
        if wrote || node.content.is_some_and(same) {
            node.content = Some(version);
        }
    }

    /// Another client changed the content.
    pub(crate) fn changed_elsewhere(&self, inode: InodeId) {
        if let Some(node) = self.nodes.lock().get_mut(&inode) {
            node.content = None;
        }
    }

    /// Any content may have changed; all inodes that the kernel may know something of.
    pub(crate) fn everything_changed(&self) -> Vec<InodeId> {
        let mut nodes = self.nodes.lock();
        nodes.values_mut().for_each(|node| node.content = None);
        nodes.keys().copied().collect()
    }

    /// All that are open.
    pub(crate) fn all_open(&self) -> Vec<Arc<OpenInode>> {
        self.nodes.lock().values().filter_map(|node| node.open.clone()).collect()
    }
}
