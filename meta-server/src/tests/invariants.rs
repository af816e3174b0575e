//! What has to be true of the keys of a tree whenever nothing is under way.

mod quotas;
mod trash;

use crate::keys::{Keys, client_of, cookie_of, garbage_name, session_of};
use crate::locks::Locks;
use crate::records::{Body, Client, Handle, Inode, REMOVED, Record, Slot, number};
use crate::store::prune::{DETACHED, is_detached};
use crate::tests::World;
use kiln_kv::{KeyRange, RangeOptions};
use kiln_types::{FileKind, InodeId, TreeId};
use std::collections::{BTreeMap, BTreeSet};

/// Every pair that is stored, by the byte that says what it is.
pub(crate) async fn dump(world: &World) -> BTreeMap<u8, Vec<(Vec<u8>, Vec<u8>)>> {
    let all = kiln_kv::transact(&*world.kv, &world.env, "dump", |tx| {
        Box::pin(tx.range(KeyRange::all(), RangeOptions::default()))
    });
    let all = all.await.expect("all keys");
    let mut kinds: BTreeMap<u8, Vec<_>> = BTreeMap::new();
    for pair in all {
        kinds.entry(pair.0[4]).or_default().push(pair);
    }
    kinds
}

/// The inodes, and what else is said of them.
struct Found {
    inodes: BTreeMap<InodeId, Inode>,
    counters: BTreeMap<Vec<u8>, u64>,
    names: BTreeMap<InodeId, u32>,
    subdirectories: BTreeMap<InodeId, u64>,
    open: BTreeSet<InodeId>,
}

const KEYS: Keys = Keys { tree: TreeId::MAIN };

/// Inodes, names, links, sessions and garbage agree with each other, and so says the check that operators run.
pub(crate) async fn check(world: &World) {
    let names = world.store.names;
    let looked = crate::check::look(&*world.kv, &world.env, names).await.expect("a check");
    assert_eq!(looked.1, []);
    let mut dump = dump(world).await;
    let mut take = |kind: u8| dump.remove(&kind).unwrap_or_default();
    let inodes: BTreeMap<InodeId, Inode> = take(b'I')
        .iter()
        .map(|(_, value)| Inode::decode(value).expect("an inode"))
        .map(|inode| (inode.id, inode))
        .collect();
    let counters: BTreeMap<Vec<u8>, u64> = [take(b'L'), take(b'U')]
        .concat()
        .into_iter()
        .map(|(key, value)| (key, number(Some(&value)).expect("a counter")))
        .collect();
    assert_eq!(counters.get(&KEYS.inode_count()), Some(&(inodes.len() as u64)));
    let (names, subdirectories) = (BTreeMap::new(), BTreeMap::new());
    let mut found = Found { inodes, counters, names, subdirectories, open: BTreeSet::new() };
    found.check_usage(&take(b'V'));
    let (entries, recounts) = (take(b'D'), take(b'Y'));
    found.check_quotas(&take(b'Q'), &recounts, &take(b'O'));
    found.check_entry_quotas(&entries, &recounts);
    found.check_entries(entries);
    found.check_sessions(&take(b'H'), take(b'S'));
    found.check_links();
    found.check_garbage(&take(b'G'));
    let queued = take(b'P').iter().map(|(key, _)| inode_in(key)).collect::<Vec<_>>();
    let detached = found.inodes.values().filter(|inode| inode.parent == DETACHED);
    assert_eq!(queued, detached.map(|inode| inode.id).collect::<Vec<_>>());
    found.check_trash(take(b'E'));
    found.check_locks(&take(b'K'), &take(b'J'));
    for (_, value) in take(b'C') {
        Client::decode(&value).expect("a client");
    }
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn inode_in(key: &[u8]) -> InodeId {
    InodeId(u64::from_be_bytes(key[5..13].try_into().expect("8 bytes")))
}

impl Found {
    fn check_entries(&mut self, entries: Pairs) {
        let mut groups: BTreeMap<(InodeId, u64), Vec<(u64, Slot)>> = BTreeMap::new();
        for (key, value) in entries {
            let slot = Slot::decode(&value).expect("a slot");
            let (directory, cookie) = (inode_in(&key), cookie_of(&key).expect("a cookie"));
            assert!(self.inodes[&directory].is_directory(), "entries of {directory}");
            if let Some(entry) = &slot.entry {
                let inode = self.inodes.get(&entry.inode).expect("an entry names an inode");
                assert_eq!(inode.kind(), entry.kind);
                *self.names.entry(entry.inode).or_default() += 1;
                if entry.kind == FileKind::Directory {
                    *self.subdirectories.entry(directory).or_default() += 1;
                    assert_eq!(inode.parent, directory, "the parent of {}", entry.inode);
                }
            }
            if self.inodes[&directory].parent == DETACHED {
                // Its entries go as they lie there.
                continue;
            }
            groups.entry((directory, cookie >> 8)).or_default().push((cookie & 255, slot));
        }
        for (group, slots) in groups {
            let (first, followers) = (&slots[0], &slots[1..]);
            assert_eq!(first.0, 0, "{group:?} begins with its first slot");
            assert!(first.1.more || followers.is_empty(), "{group:?} says that there are more");
            assert!(first.1.entry.is_some() || !followers.is_empty(), "{group:?} is empty");
            assert!(followers.iter().all(|(_, slot)| slot.entry.is_some() && !slot.more));
        }
    }

    /// The marks of clients say where they hold locks.
    fn check_locks(&self, locks: &Pairs, marks: &Pairs) {
        for (key, value) in locks {
            let (inode, locks) = (inode_in(key), Locks::decode(value).expect("locks"));
            assert!(self.inodes.contains_key(&inode), "locks of {inode}, which is gone");
            for client in locks.clients() {
                let mark = KEYS.lock_of(client, inode);
                assert!(
                    marks.iter().any(|(key, _)| *key == mark),
                    "no mark of {client} at {inode}"
                );
            }
        }
    }

    fn check_sessions(&mut self, handles: &Pairs, by_inode: Pairs) {
        let mut sessions = BTreeSet::new();
        for (key, value) in handles {
            let handle = Handle::decode(value).expect("a handle");
            let (client, session) = (client_of(key), session_of(key));
            let (client, session) = (client.expect("a client"), session.expect("a session"));
            self.open.insert(handle.inode);
            sessions.insert(KEYS.session(handle.inode, handle.write, client, session));
        }
        assert_eq!(sessions, by_inode.into_iter().map(|(key, _)| key).collect());
    }

    fn check_links(&self) {
        for inode in self.inodes.values() {
            let count = self.names.get(&inode.id).copied().unwrap_or(0);
            if inode.is_directory() {
                let named = inode.id != InodeId::ROOT && !is_detached(inode);
                assert_eq!(count, u32::from(named), "names of {}", inode.id);
                let counted = self.counters.get(&KEYS.links(inode.id)).copied().unwrap_or(0);
                let real = self.subdirectories.get(&inode.id).copied().unwrap_or(0);
                assert_eq!(counted, real, "subdirectories of {}", inode.id);
                check_way_up(&self.inodes, inode);
            } else {
                assert_eq!(inode.links, count, "links of {}", inode.id);
                let is_held = inode.is_kept() || self.open.contains(&inode.id);
                assert!(is_held, "{} is an orphan", inode.id);
            }
        }
        for key in self.counters.keys().filter(|key| key.len() > 5) {
            assert!(self.inodes.contains_key(&inode_in(key)), "a count of an inode that is gone");
        }
    }

    /// Every floor has its garbage record, and a removed inode one for everything.
    fn check_garbage(&self, garbage: &Pairs) {
        let name = |(key, _): &(Vec<u8>, Vec<u8>)| garbage_name(key).expect("garbage");
        let garbage: BTreeSet<_> = garbage.iter().map(name).collect();
        let mut floors = BTreeSet::new();
        for inode in self.inodes.values() {
            if let Body::File(file) = &inode.body {
                floors.extend(file.floors.iter().map(|(_, epoch)| (inode.id, *epoch)));
            }
        }
        for (inode, epoch) in &garbage {
            let is_gone = !self.inodes.contains_key(inode);
            assert_eq!(*epoch == REMOVED, is_gone, "garbage of {inode}");
        }
        let truncations: BTreeSet<_> =
            garbage.into_iter().filter(|(_, epoch)| *epoch != REMOVED).collect();
        assert_eq!(truncations, floors);
    }
}

/// Parents lead to the root.
fn check_way_up(inodes: &BTreeMap<InodeId, Inode>, inode: &Inode) {
    let mut at = inode;
    for _ in 0..=inodes.len() {
        if at.id == InodeId::ROOT || is_detached(at) {
            return;
        }
        at = &inodes[&at.parent];
    }
    panic!("directory {} is in a circle", inode.id);
}

/// Storage holds nothing that the tree does not name.
pub(crate) async fn check_chunks(world: &World) {
    let (listed, end) = world.store.list_inodes(InodeId(0), 0).await.expect("the inodes");
    assert!(end, "more than a page");
    let counts: BTreeMap<_, _> = listed
        .iter()
        .map(|inode| {
            assert!(!inode.removed, "inode {} is not collected", inode.inode);
            (inode.inode, inode.layout.chunk_count(inode.length))
        })
        .collect();
    for (inode, index) in world.chunks.stored() {
        let count = counts.get(&inode).unwrap_or_else(|| panic!("inode {inode} left a chunk"));
        assert!(index < *count, "inode {inode} has chunk {index} behind its end");
    }
}
