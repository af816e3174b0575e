//! What the keys of a tree say, as tables. Pure.

use crate::keys::{Keys, client_of, cookie_of, garbage_name, item_name, session_of};
use crate::locks::Locks;
use crate::name::{NUMBERS, NameHash};
use crate::quota::accounts;
use crate::records::{
    Body, Garbage, Handle, Inode, Item, Record, Slot, check_id, marked_time, number,
};
use crate::store::prune::DETACHED;
use crate::store::trash::TRASHED;
use kiln_types::{ClientId, Error, FileKind, InodeId, Result, TreeId, TruncateEpoch};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const KEYS: Keys = Keys { tree: TreeId::MAIN };

/// What is remembered of an inode.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: FileKind,
    pub(super) parent: InodeId,
    pub(super) links: u32,
    pub(super) length: u64,
    pub(super) dense_end: u64,
    pub(super) floors: Vec<TruncateEpoch>,
}

/// A directory entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) directory: InodeId,
    pub(super) cookie: u64,
    pub(super) inode: InodeId,
    pub(super) kind: FileKind,
    /// It lies where its name is looked for.
    pub(super) is_found: bool,
}

/// All of it.
pub(crate) struct Tables {
    names: NameHash,
    pub(super) inodes: BTreeMap<InodeId, Node>,
    pub(super) entries: Vec<Entry>,
    /// Directories with entries of which the first slot of a hash does not tell, as it should.
    pub(super) hidden: BTreeSet<(InodeId, u64)>,
    group: Option<(InodeId, u64, bool)>,
    /// Counters, by their keys; and what they should be, as far as inodes alone tell.
    pub(super) counters: BTreeMap<Vec<u8>, u64>,
    pub(super) usage: BTreeMap<Vec<u8>, u64>,
    pub(super) next_inode: u64,
    /// Open files by client and by inode, under the keys of the latter.
    pub(super) handles: BTreeMap<Vec<u8>, (Vec<u8>, Handle)>,
    pub(super) sessions: BTreeSet<Vec<u8>>,
    pub(super) open: BTreeSet<InodeId>,
    pub(super) locks: BTreeMap<InodeId, BTreeSet<ClientId>>,
    pub(super) marks: BTreeSet<Vec<u8>>,
    pub(super) garbage: BTreeSet<(InodeId, TruncateEpoch)>,
    /// Items of the trash, and the ways to them from their inodes.
    pub(super) items: BTreeSet<(kiln_types::Timestamp, InodeId)>,
    pub(super) item_marks: BTreeMap<InodeId, u64>,
    pub(super) detached: BTreeSet<InodeId>,
    /// Keys that belong to an inode and are gone with it.
    pub(super) belongings: Vec<(InodeId, Vec<u8>)>,
    /// Keys whose value is no record, and why not.
    pub(super) unreadable: Vec<(Vec<u8>, Error)>,
    /// Inodes of which the record is unreadable: they are there.
    pub(super) damaged: BTreeSet<InodeId>,
    pub(super) pairs: u64,
}

impl Tables {
    pub(super) fn new(names: NameHash) -> Self {
        Self {
            names,
            inodes: BTreeMap::new(),
            entries: Vec::new(),
            hidden: BTreeSet::new(),
            group: None,
            counters: BTreeMap::new(),
            usage: BTreeMap::new(),
            next_inode: 0,
            handles: BTreeMap::new(),
            sessions: BTreeSet::new(),
            open: BTreeSet::new(),
            locks: BTreeMap::new(),
            marks: BTreeSet::new(),
            garbage: BTreeSet::new(),
            items: BTreeSet::new(),
            item_marks: BTreeMap::new(),
            detached: BTreeSet::new(),
            belongings: Vec::new(),
            unreadable: Vec::new(),
            damaged: BTreeSet::new(),
            pairs: 0,
        }
    }

    /// Takes a pair; they come in the order of their keys.
    pub(super) fn take(&mut self, key: Vec<u8>, value: &[u8]) {
        self.pairs += 1;
        if let Err(error) = self.try_take(&key, value) {
            if key.get(4) == Some(&b'I') {
                self.damaged.extend(inode_in(&key).ok());
            }
            self.unreadable.push((key, error));
        }
    }

    fn try_take(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key.get(4) {
            Some(b'I') => self.take_inode(inode_in(key)?, Inode::decode(value)?),
            Some(b'D') => self.take_slot(key, Slot::decode(value)?),
            Some(b'A') => {
                self.next_inode = number(Some(value))?;
                Ok(())
            }
            Some(b'L' | b'U' | b'V') => self.take_counter(key, value),
            Some(b'T' | b'N' | b'X') => {
                self.belongings.push((inode_in(key)?, key.to_vec()));
                Ok(())
            }
            Some(b'H') => self.take_handle(key, Handle::decode(value)?),
            Some(b'S') => {
                Handle::decode(value)?;
                self.sessions.insert(key.to_vec());
                Ok(())
            }
            Some(b'K') => {
                let of = Locks::decode(value)?.clients().collect();
                self.locks.insert(inode_in(key)?, of);
                Ok(())
            }
            Some(b'J') => {
                self.marks.insert(key.to_vec());
                Ok(())
            }
            Some(b'P') => {
                self.detached.insert(inode_in(key)?);
                Ok(())
            }
            Some(b'G') => {
                Garbage::decode(value)?;
                self.garbage.insert(garbage_name(key)?);
                Ok(())
            }
            Some(b'E') => self.take_trash(key, value),
            _ => Ok(()),
        }
    }

    fn take_inode(&mut self, id: InodeId, inode: Inode) -> Result<()> {
        check_id(id, &inode)?;
        let (mut length, mut dense_end, mut floors) = (0, 0, Vec::new());
        if let Body::File(file) = &inode.body {
            (length, dense_end) = (file.length, file.dense_end);
            floors = file.floors.iter().map(|(_, epoch)| *epoch).collect();
        }
        if inode.counted {
            for account in accounts(inode.quota, inode.uid, inode.gid) {
                for (key, more) in KEYS.usage(account).into_iter().zip([length, 1]) {
                    let used = self.usage.entry(key).or_default();
                    *used = used.wrapping_add(more);
                }
            }
        }
        if inode.parent == TRASHED {
            for (key, more) in KEYS.trash_usage().into_iter().zip([length, 1]) {
                *self.usage.entry(key).or_default() += more;
            }
        }
        let (kind, parent, links) = (inode.kind(), inode.parent, inode.links);
        self.inodes.insert(id, Node { kind, parent, links, length, dense_end, floors });
        Ok(())
    }

    /// The first slot of a hash tells whether others follow.
    fn take_slot(&mut self, key: &[u8], slot: Slot) -> Result<()> {
        let (directory, cookie) = (inode_in(key)?, cookie_of(key)?);
        let first = cookie - cookie % NUMBERS;
        if cookie == first {
            self.group = Some((directory, first, slot.more));
        } else if self.group != Some((directory, first, true)) {
            self.hidden.insert((directory, first));
        }
        let Some(entry) = slot.entry else { return Ok(()) };
        let is_found = self.names.cookie(&entry.name) == first;
        let (inode, kind) = (entry.inode, entry.kind);
        self.entries.push(Entry { directory, cookie, inode, kind, is_found });
        Ok(())
    }

    fn take_counter(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        // What is no number is set anew, as one that is wrong.
        let count = number(Some(value)).unwrap_or(u64::MAX);
        self.counters.insert(key.to_vec(), count);
        Ok(())
    }

    fn take_handle(&mut self, key: &[u8], handle: Handle) -> Result<()> {
        let (client, session) = (client_of(key)?, session_of(key)?);
        self.open.insert(handle.inode);
        let by_inode = KEYS.session(handle.inode, handle.write, client, session);
        self.handles.insert(by_inode, (key.to_vec(), handle));
        Ok(())
    }

    fn take_trash(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key.get(5) {
            Some(1) => {
                Item::decode(value)?;
                self.items.insert(item_name(key)?);
            }
            Some(2) => {
                let inode = key.get(6..14).and_then(|bytes| bytes.try_into().ok());
                let inode = inode.ok_or_else(|| Error::corrupt("a key of the trash"))?;
                self.item_marks.insert(InodeId(u64::from_be_bytes(inode)), number(Some(value))?);
            }
            Some(3) => return self.take_counter(key, value),
            _ => {}
        }
        Ok(())
    }

    /// Whether an inode is there, readable or not.
    pub(super) fn has(&self, inode: InodeId) -> bool {
        self.inodes.contains_key(&inode) || self.damaged.contains(&inode)
    }

    pub(super) fn is_item(&self, inode: InodeId) -> bool {
        let at = self.item_marks.get(&inode).map(|mark| marked_time(*mark));
        at.is_some_and(|at| self.items.contains(&(at, inode)))
    }

    /// What the trash and removed trees have instead of a parent.
    pub(super) fn is_nowhere(parent: InodeId) -> bool {
        parent == DETACHED || parent == TRASHED
    }

    /// What counts as used in each account that has ever been.
    pub(super) fn usages(&self) -> impl Iterator<Item = (&Vec<u8>, u64, u64)> {
        let is_usage = |key: &&Vec<u8>| matches!(key.get(4), Some(b'V' | b'E'));
        let keys: BTreeSet<_> =
            self.counters.keys().chain(self.usage.keys()).filter(is_usage).collect();
        keys.into_iter().map(|key| {
            let of = |table: &BTreeMap<Vec<u8>, u64>| table.get(key).copied().unwrap_or(0);
            (key, of(&self.counters), of(&self.usage))
        })
    }
}

/// The inode at the start of a key's fields.
pub(super) fn inode_in(key: &[u8]) -> Result<InodeId> {
    let bytes = key.get(5..13).and_then(|bytes| bytes.try_into().ok());
    let bytes = bytes.ok_or_else(|| Error::corrupt("a key that is too short"))?;
    Ok(InodeId(u64::from_be_bytes(bytes)))
}
