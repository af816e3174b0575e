//! What is wrong with a tree, and what sets it right. Pure.

use super::tables::{Entry, KEYS, Node, Tables};
use crate::keys::{client_of, inode_of_lock};
use crate::records::REMOVED;
use crate::store::prune::DETACHED;
use crate::store::trash::TRASHED;
use kiln_types::{FileKind, InodeId};
use std::collections::{BTreeMap, BTreeSet};

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A record that cannot be read: its bytes are not those that were written.
    Unreadable,
    /// A file or directory that no directory names.
    Orphan,
    /// Directories that lead to each other, and not to the root.
    Loop,
    /// A name of something that is not there.
    Dangling,
    /// A name that is not found where it is looked for, or says something else than its inode.
    Name,
    /// A number of links or of subdirectories that is not that of the names.
    Links,
    /// A file that is shorter than what was acknowledged to its writer.
    Length,
    /// Chunks that would be removed although they are a file's, or are never looked for.
    Garbage,
    /// An id that could be given twice.
    Ids,
    /// Sums that are not those of their parts: inodes, quotas, the trash.
    Sums,
    /// What belongs to an open file, a lock or the trash, and has lost its other half.
    Halves,
    /// What belongs to something that is gone.
    Leftover,
}

/// What sets something right.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Repair {
    /// Nothing here does.
    None,
    Clear(Vec<u8>),
    SetNumber(Vec<u8>, u64),
    RemoveEntry(InodeId, u64),
    /// Takes an entry out and puts it in again, as what its inode is.
    PutAgain(InodeId, u64),
    SetLinks(InodeId, u32),
    SetParent(InodeId, InodeId),
    SetLength(InodeId, u64),
    /// Gives it a name in lost+found.
    Rescue(InodeId),
    /// The other half of an open file: its key.
    PutSession(Vec<u8>, Vec<u8>),
    PutMark(Vec<u8>),
    /// What a truncation left, under its epoch.
    PutGarbage(InodeId, kiln_types::TruncateEpoch),
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wrong {
    pub(super) kind: Kind,
    /// The inode that it is about.
    pub(super) inode: Option<InodeId>,
    pub(super) why: String,
    pub(super) repair: Repair,
}

/// Everything that is wrong, in the order in which it is set right.
pub(super) fn judge(tables: &Tables) -> Vec<Wrong> {
    let mut judge = Judge { tables, wrong: Vec::new() };
    judge.unreadable();
    judge.ids();
    judge.garbage();
    let named = judge.entries();
    judge.nodes(&named);
    judge.loops();
    judge.counts(&named);
    judge.halves();
    judge.trash();
    judge.leftovers();
    judge.wrong
}

struct Judge<'a> {
    tables: &'a Tables,
    wrong: Vec<Wrong>,
}

/// Which directories name an inode.
type Named = BTreeMap<InodeId, Vec<InodeId>>;

impl Judge<'_> {
    fn add(&mut self, kind: Kind, inode: Option<InodeId>, why: impl Into<String>, repair: Repair) {
        self.wrong.push(Wrong { kind, inode, why: why.into(), repair });
    }

    fn unreadable(&mut self) {
        for (key, error) in &self.tables.unreadable {
            let inode = super::tables::inode_in(key).ok();
            let why = format!("key {}: {}", key.escape_ascii(), error.message());
            self.add(Kind::Unreadable, inode, why, Repair::None);
        }
    }

    fn ids(&mut self) {
        let tables = self.tables;
        let highest = tables.inodes.keys().chain(&tables.damaged).max().map_or(0, |id| id.0);
        let removed = tables.garbage.iter().map(|(inode, _)| inode.0).max().unwrap_or(0);
        let highest = highest.max(removed);
        // Those below 256 are the tree's own.
        if highest >= 256 && highest >= tables.next_inode {
            let why =
                format!("inode {highest} exists, and the next one would be {}", tables.next_inode);
            self.add(Kind::Ids, None, why, Repair::SetNumber(KEYS.next_inode(), highest + 1));
        }
    }

    fn garbage(&mut self) {
        let tables = self.tables;
        for (inode, epoch) in &tables.garbage {
            let node = tables.inodes.get(inode);
            let why = match node {
                Some(_) if *epoch == REMOVED => "it exists, and its chunks are to be removed",
                Some(node) if *epoch != REMOVED && !node.floors.contains(epoch) => {
                    "chunks are to be removed that no truncation cut off"
                }
                None if *epoch != REMOVED && !tables.damaged.contains(inode) => {
                    "it is gone, and what it was truncated by is not forgotten"
                }
                _ => continue,
            };
            let repair = Repair::Clear(KEYS.garbage(*inode, *epoch));
            self.add(Kind::Garbage, Some(*inode), why, repair);
        }
        for (inode, node) in &tables.inodes {
            for epoch in
                node.floors.iter().filter(|epoch| !tables.garbage.contains(&(*inode, **epoch)))
            {
                let why = "chunks that a truncation cut off are not looked for";
                self.add(Kind::Garbage, Some(*inode), why, Repair::PutGarbage(*inode, *epoch));
            }
        }
    }

    /// Which names count.
    fn entries(&mut self) -> Named {
        let tables = self.tables;
        let mut named = Named::new();
        for entry in &tables.entries {
            let Entry { directory, cookie, inode, kind, is_found } = *entry;
            let remove = Repair::RemoveEntry(directory, cookie);
            let of = tables.inodes.get(&directory).map(|node| node.kind);
            if of != Some(FileKind::Directory) && !tables.damaged.contains(&directory) {
                let why = format!("a name of inode {inode} in something that is no directory");
                self.add(
                    Kind::Leftover,
                    Some(directory),
                    why,
                    Repair::Clear(KEYS.slot(directory, cookie)),
                );
                continue;
            }
            if !tables.has(inode) {
                let why = format!("it names inode {inode}, which is not there");
                self.add(Kind::Dangling, Some(directory), why, remove);
                continue;
            }
            let node = tables.inodes.get(&inode);
            let others = named.entry(inode).or_default();
            let is_directory = node.is_some_and(|node| node.kind == FileKind::Directory);
            if is_directory && !others.is_empty() {
                let why = "a directory has a second name";
                self.add(Kind::Name, Some(inode), why, remove);
                continue;
            }
            others.push(directory);
            let is_other_kind = node.is_some_and(|node| node.kind != kind);
            let is_detached = tables.inodes.get(&directory).is_some_and(|of| of.parent == DETACHED);
            if is_other_kind || !is_found && !is_detached {
                let why = match is_other_kind {
                    true => format!("a name says that it is a {}", name(kind)),
                    false => "a name that is not found".into(),
                };
                self.add(Kind::Name, Some(inode), why, Repair::PutAgain(directory, cookie));
            }
        }
        for (directory, first) in &tables.hidden {
            if tables.inodes.get(directory).is_some_and(|node| node.parent != DETACHED) {
                let behind = tables.entries.iter().filter(|entry| {
                    entry.directory == *directory && entry.cookie / 256 == first / 256
                });
                for entry in behind {
                    let repair = Repair::PutAgain(*directory, entry.cookie);
                    self.add(Kind::Name, Some(entry.inode), "a name that is not found", repair);
                }
            }
        }
        named
    }

    fn nodes(&mut self, named: &Named) {
        let tables = self.tables;
        for (inode, node) in &tables.inodes {
            let directories = named.get(inode).map_or(&[][..], Vec::as_slice);
            match node.kind {
                FileKind::Directory => self.directory(*inode, node, directories),
                _ => self.file(*inode, node, directories),
            }
            if node.length < node.dense_end {
                let (length, end) = (node.length, node.dense_end);
                let why = format!("{length} bytes long, and {end} were acknowledged");
                self.add(Kind::Length, Some(*inode), why, Repair::SetLength(*inode, end));
            }
        }
    }

    fn directory(&mut self, inode: InodeId, node: &Node, named: &[InodeId]) {
        match named.first() {
            None if inode == InodeId::ROOT || Tables::is_nowhere(node.parent) => {}
            None => self.add(
                Kind::Orphan,
                Some(inode),
                "a directory without a name",
                Repair::Rescue(inode),
            ),
            Some(parent) if node.parent != *parent => {
                let why = format!("it is in directory {parent}, and says {}", node.parent);
                self.add(Kind::Links, Some(inode), why, Repair::SetParent(inode, *parent));
            }
            Some(_) => {}
        }
    }

    fn file(&mut self, inode: InodeId, node: &Node, named: &[InodeId]) {
        let count = u32::try_from(named.len()).unwrap_or(u32::MAX);
        let is_held = self.tables.open.contains(&inode) || node.parent == TRASHED;
        if count == 0 && !is_held {
            self.add(Kind::Orphan, Some(inode), "a file without a name", Repair::Rescue(inode));
        } else if count != node.links {
            let why = format!("{} links, and {count} names", node.links);
            self.add(Kind::Links, Some(inode), why, Repair::SetLinks(inode, count));
        }
    }

    /// Ways up that do not end.
    fn loops(&mut self) {
        let tables = self.tables;
        let mut good: BTreeSet<InodeId> = BTreeSet::new();
        for (start, node) in &tables.inodes {
            let (mut way, mut at) = (Vec::new(), *start);
            let is_directory = node.kind == FileKind::Directory;
            while is_directory && !good.contains(&at) && !way.contains(&at) {
                let Some(node) = tables.inodes.get(&at) else { break };
                way.push(at);
                if at == InodeId::ROOT || Tables::is_nowhere(node.parent) {
                    break;
                }
                at = node.parent;
            }
            // The first of a loop is taken out of it; what is below comes with it.
            let last = way.last().and_then(|last| tables.inodes.get(last));
            let returns = at != InodeId::ROOT
                && way.contains(&at)
                && last.is_some_and(|last| last.parent == at && !Tables::is_nowhere(at));
            if returns {
                // Without that name it is an orphan.
                let name = tables.entries.iter().find(|entry| entry.inode == at);
                let repair = name.map(|name| Repair::RemoveEntry(name.directory, name.cookie));
                let why = "a directory that is below itself";
                self.add(Kind::Loop, Some(at), why, repair.unwrap_or(Repair::None));
            }
            good.extend(way);
        }
    }

    fn counts(&mut self, named: &Named) {
        let tables = self.tables;
        let mut below: BTreeMap<InodeId, u64> = BTreeMap::new();
        for (inode, directories) in named {
            if tables.inodes.get(inode).is_some_and(|node| node.kind == FileKind::Directory) {
                directories.iter().for_each(|of| *below.entry(*of).or_default() += 1);
            }
        }
        for (inode, node) in
            tables.inodes.iter().filter(|(_, node)| node.kind == FileKind::Directory)
        {
            let key = KEYS.links(*inode);
            let counted = tables.counters.get(&key).copied().unwrap_or(0);
            let real = below.get(inode).copied().unwrap_or(0);
            // What is being removed goes piece by piece.
            if counted != real && node.parent != DETACHED {
                let why = format!("{counted} subdirectories counted, and {real} there");
                self.add(Kind::Links, Some(*inode), why, Repair::SetNumber(key, real));
            }
        }
        let (key, real) = (KEYS.inode_count(), (tables.inodes.len() + tables.damaged.len()) as u64);
        let counted = tables.counters.get(&key).copied().unwrap_or(0);
        if counted != real {
            let why = format!("{counted} inodes counted, and {real} there");
            self.add(Kind::Sums, None, why, Repair::SetNumber(key, real));
        }
        if tables.damaged.is_empty() {
            for (key, counted, real) in tables.usages().filter(|(_, counted, real)| counted != real)
            {
                let why = format!("{}: {counted} counted, and {real} used", key.escape_ascii());
                self.add(Kind::Sums, None, why, Repair::SetNumber(key.clone(), real));
            }
        }
    }

    fn halves(&mut self) {
        let tables = self.tables;
        for (by_inode, (by_client, handle)) in &tables.handles {
            if !tables.has(handle.inode) {
                let why = "it is open, and not there";
                let gone = Some(handle.inode);
                self.add(Kind::Leftover, gone, why, Repair::Clear(by_client.clone()));
            } else if !tables.sessions.contains(by_inode) {
                let why = "it is open, and does not know of it";
                let repair = Repair::PutSession(by_inode.clone(), by_client.clone());
                self.add(Kind::Halves, Some(handle.inode), why, repair);
            }
        }
        for key in tables.sessions.iter().filter(|key| !tables.handles.contains_key(*key)) {
            let why = "a client has it open, and does not know of it";
            let inode = super::tables::inode_in(key).ok();
            self.add(Kind::Halves, inode, why, Repair::Clear(key.clone()));
        }
        let mut marked: BTreeSet<&Vec<u8>> = tables.marks.iter().collect();
        for (inode, clients) in tables.locks.iter().filter(|(inode, _)| tables.has(**inode)) {
            for key in clients.iter().map(|client| KEYS.lock_of(*client, *inode)) {
                if !marked.remove(&key) {
                    let why = "a lock that does not end with its client";
                    self.add(Kind::Halves, Some(*inode), why, Repair::PutMark(key));
                }
            }
        }
        for key in marked {
            let (client, inode) = (client_of(key).ok(), inode_of_lock(key).ok());
            let client = client.map_or_else(|| "?".into(), |client| client.to_string());
            let why = format!("client {client} is said to hold a lock, and holds none");
            self.add(Kind::Halves, inode, why, Repair::Clear(key.clone()));
        }
    }

    fn trash(&mut self) {
        let tables = self.tables;
        for (inode, node) in &tables.inodes {
            if node.parent == TRASHED && !tables.is_item(*inode) {
                let why = "it is in the trash, where nothing names it";
                self.add(Kind::Orphan, Some(*inode), why, Repair::Rescue(*inode));
            }
            if node.parent == DETACHED && !tables.detached.contains(inode) {
                let why = "it was removed, and nobody removes what is in it";
                self.add(Kind::Halves, Some(*inode), why, Repair::PutMark(KEYS.detached(*inode)));
            }
        }
        let is_there = |inode: &InodeId, parent| {
            tables.damaged.contains(inode)
                || tables.inodes.get(inode).is_some_and(|node| node.parent == parent)
        };
        for item in tables.items.iter().filter(|item| !is_there(&item.1, TRASHED)) {
            let why = "the trash names it, and it is not there";
            self.add(Kind::Leftover, Some(item.1), why, Repair::Clear(KEYS.item(*item)));
        }
        for inode in tables.item_marks.keys().filter(|inode| !is_there(inode, TRASHED)) {
            let why = "it is said to be in the trash";
            self.add(Kind::Leftover, Some(*inode), why, Repair::Clear(KEYS.item_of(*inode)));
        }
        for inode in tables.detached.iter().filter(|inode| !is_there(inode, DETACHED)) {
            let why = "it is said to have been removed with what is in it";
            self.add(Kind::Leftover, Some(*inode), why, Repair::Clear(KEYS.detached(*inode)));
        }
    }

    fn leftovers(&mut self) {
        let tables = self.tables;
        let counters = tables.counters.keys().filter(|key| key.get(4) == Some(&b'L'));
        let counters = counters.filter_map(|key| Some((super::tables::inode_in(key).ok()?, key)));
        let belongings = tables.belongings.iter().map(|(inode, key)| (*inode, key));
        for (inode, key) in belongings.chain(counters).filter(|(inode, _)| !tables.has(*inode)) {
            self.add(
                Kind::Leftover,
                Some(inode),
                "it is gone, and left something",
                Repair::Clear(key.clone()),
            );
        }
        for inode in tables.locks.keys().filter(|inode| !tables.has(**inode)) {
            let repair = Repair::Clear(KEYS.locks(*inode));
            self.add(Kind::Leftover, Some(*inode), "locks of what is gone", repair);
        }
    }
}

fn name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symbolic link",
        _ => "special file",
    }
}
