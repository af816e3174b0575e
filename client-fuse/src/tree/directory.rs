//! Reading of directories.

use crate::filesystem::{DirEntry, Handle, Known};
use crate::tree::Tree;
use crate::tree::fresh::{Mark, Names};
use kiln_client::DirEntry as Entry;
use kiln_types::{Attr, Caller, FileKind, InodeId, Result, Timestamp, TruncateEpoch};
use std::time::Duration;

/// Where `.` and `..` end; the metadata service's cookies are larger.
const SELF: u64 = 1;
const PARENT: u64 = 2;
/// Entries that are asked for at a time.
const PAGE: u32 = 512;

/// An open directory: the page that was read last, since the kernel takes it in smaller portions.
pub(crate) struct OpenDirectory {
    caller: Caller,
    inode: InodeId,
    page: tokio::sync::Mutex<Page>,
}

#[derive(Default)]
struct Page {
    /// The cookie behind which it begins.
    after: u64,
    entries: Vec<Entry>,
    /// Nothing follows.
    end: bool,
    sent: Option<Mark>,
    listing: Option<Listing>,
}

/// What was read from the start without a gap.
struct Listing {
    sent: Mark,
    names: Names,
    /// The cookie behind which it goes on.
    next: u64,
}

impl OpenDirectory {
    pub(crate) fn new(caller: Caller, inode: InodeId) -> Self {
        Self { caller, inode, page: tokio::sync::Mutex::default() }
    }
}

impl Page {
    /// The entries behind `after`, if the page knows what follows there.
    fn behind(&self, after: u64) -> Option<&[Entry]> {
        self.sent?;
        if after == self.after {
            return Some(&self.entries);
        }
        let at = self.entries.iter().position(|entry| entry.cookie == after)?;
        let rest = &self.entries[at + 1..];
        (!rest.is_empty() || self.end).then_some(rest)
    }
}

impl Listing {
    /// Takes in what follows; once it is complete, the mount knows all names of `inode`.
    fn go_on(mut self, tree: &Tree, inode: InodeId, entries: &[Entry], end: bool) -> Option<Self> {
        entries.iter().for_each(|entry| self.names.add(&entry.name));
        self.next = entries.last().map_or(self.next, |entry| entry.cookie);
        if !end {
            return self.names.is_small().then_some(self);
        }
        tree.fresh.lock().all_names(self.sent, inode, self.names);
        None
    }
}

/// See [`crate::FileSystem::read_dir`].
pub(crate) async fn read(
    tree: &Tree,
    handle: Handle,
    after: u64,
    limit: usize,
) -> Result<Vec<DirEntry>> {
    let directory = tree.handles.directory(handle)?;
    let mut found = Vec::new();
    for (cookie, name) in [(SELF, "."), (PARENT, "..")] {
        if after < cookie {
            let known = bare(tree.shown(directory.inode), FileKind::Directory);
            found.push(DirEntry { name: name.into(), cookie, known, bare: true });
        }
    }
    let after = if after <= PARENT { 0 } else { after };
    let mut page = directory.page.lock().await;
    // From the start means anew: rewinddir(3) shows what changed.
    if after == 0 || page.behind(after).is_none() {
        let sent = tree.mark();
        let (caller, inode) = (&directory.caller, directory.inode);
        let (entries, end) = tree.client.read_dir(caller, inode, after, PAGE, true).await?;
        let listing = page.listing.take().filter(|listing| listing.next == after && after != 0);
        let start = Listing { sent, names: Names::default(), next: after };
        let listing = listing.or_else(|| (after == 0).then_some(start));
        let listing = listing.and_then(|listing| listing.go_on(tree, inode, &entries, end));
        *page = Page { after, entries, end, sent: Some(sent), listing };
    }
    let Some(sent) = page.sent else { return Ok(found) };
    for entry in page.behind(after).unwrap_or_default().iter().take(limit.max(1)) {
        let known = match &entry.attr {
            Some(attr) => tree.named(sent, directory.inode, attr.clone()),
            None => bare(entry.inode, entry.kind),
        };
        let (name, cookie, bare) = (entry.name.clone(), entry.cookie, entry.attr.is_none());
        found.push(DirEntry { name, cookie, known, bare });
    }
    Ok(found)
}

/// What is known without attributes: nothing that may be kept, nor taken for attributes. `.` and `..` are given so,
/// too: the kernel knows better where they lead.
fn bare(inode: InodeId, kind: FileKind) -> Known {
    let attr = Attr {
        inode,
        kind,
        mode: 0,
        uid: 0,
        gid: 0,
        links: 1,
        length: 0,
        dense_end: 0,
        device: 0,
        atime: Timestamp(0),
        mtime: Timestamp(0),
        ctime: Timestamp(0),
        btime: Timestamp(0),
        epoch: TruncateEpoch(0),
        floors: Vec::new(),
        layout: None,
    };
    Known { attr, attr_for: Duration::ZERO, name_for: Duration::ZERO, generation: 0 }
}
