//! What has to be true of the keys of a tree whenever nothing is under way.

use crate::keys::{Keys, client_of, cookie_of, garbage_name, session_of};
use crate::records::{Body, Client, Handle, Inode, REMOVED, Record, Slot, number};
use crate::tests::World;
use kiln_kv::{KeyRange, RangeOptions};
use kiln_types::{FileKind, InodeId, TreeId};
use std::collections::{BTreeMap, BTreeSet};

/// Every pair that is stored, by the byte that says what it is.
pub(crate) async fn dump(world: &World) -> BTreeMap<u8, Vec<(Vec<u8>, Vec<u8>)>> {
    let mut transaction = world.kv.begin().await.expect("a transaction");
    let all = transaction.range(KeyRange::all(), RangeOptions::default()).await.expect("all keys");
    let mut kinds: BTreeMap<u8, Vec<_>> = BTreeMap::new();
    for pair in all {
        kinds.entry(pair.0[4]).or_default().push(pair);
    }
    kinds
}

/// Inodes, names, links, sessions and garbage agree with each other.
pub(crate) async fn check(world: &World) {
    let mut dump = dump(world).await;
    let mut take = |kind: u8| dump.remove(&kind).unwrap_or_default();
    let keys = Keys { tree: TreeId::MAIN };
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
    assert_eq!(counters.get(&keys.inode_count()), Some(&(inodes.len() as u64)));

    let mut names: BTreeMap<InodeId, u32> = BTreeMap::new();
    let mut subdirectories: BTreeMap<InodeId, u64> = BTreeMap::new();
    let mut groups: BTreeMap<(InodeId, u64), Vec<(u64, Slot)>> = BTreeMap::new();
    for (key, value) in take(b'D') {
        let slot = Slot::decode(&value).expect("a slot");
        let directory = InodeId(u64::from_be_bytes(key[5..13].try_into().expect("8 bytes")));
        let cookie = cookie_of(&key).expect("a cookie");
        assert!(inodes[&directory].is_directory(), "entries of {directory}");
        if let Some(entry) = &slot.entry {
            let inode = inodes.get(&entry.inode).expect("an entry names an inode");
            assert_eq!(inode.kind(), entry.kind);
            *names.entry(entry.inode).or_default() += 1;
            if entry.kind == FileKind::Directory {
                *subdirectories.entry(directory).or_default() += 1;
                assert_eq!(inode.parent, directory, "the parent of {}", entry.inode);
            }
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

    let handles = take(b'H');
    let mut open = BTreeSet::new();
    let mut sessions = BTreeSet::new();
    for (key, value) in &handles {
        let handle = Handle::decode(value).expect("a handle");
        let (client, session) = (client_of(key).expect("a client"), session_of(key).expect("one"));
        open.insert(handle.inode);
        sessions.insert(keys.session(handle.inode, handle.write, client, session));
    }
    assert_eq!(sessions, take(b'S').into_iter().map(|(key, _)| key).collect());

    for inode in inodes.values() {
        let count = names.get(&inode.id).copied().unwrap_or(0);
        if inode.is_directory() {
            assert_eq!(count, u32::from(inode.id != InodeId::ROOT), "names of {}", inode.id);
            let counted = counters.get(&keys.links(inode.id)).copied().unwrap_or(0);
            assert_eq!(counted, subdirectories.get(&inode.id).copied().unwrap_or(0));
            check_way_up(&inodes, inode);
        } else {
            assert_eq!(inode.links, count, "links of {}", inode.id);
            assert!(count > 0 || open.contains(&inode.id), "{} is an orphan", inode.id);
        }
    }
    for key in counters.keys().filter(|key| key.len() > 5) {
        let inode = InodeId(u64::from_be_bytes(key[5..13].try_into().expect("8 bytes")));
        assert!(inodes.contains_key(&inode), "links of {inode}, which is gone");
    }

    let garbage: BTreeSet<_> =
        take(b'G').iter().map(|(key, _)| garbage_name(key).expect("garbage")).collect();
    let mut floors = BTreeSet::new();
    for inode in inodes.values() {
        if let Body::File(file) = &inode.body {
            floors.extend(file.floors.iter().map(|(_, epoch)| (inode.id, *epoch)));
        }
    }
    for (inode, epoch) in &garbage {
        assert_eq!(*epoch == REMOVED, !inodes.contains_key(inode), "garbage of {inode}");
    }
    let truncations: BTreeSet<_> = garbage.into_iter().filter(|(_, e)| *e != REMOVED).collect();
    assert_eq!(truncations, floors);
    for (_, value) in take(b'C') {
        Client::decode(&value).expect("a client");
    }
}

/// Parents lead to the root.
fn check_way_up(inodes: &BTreeMap<InodeId, Inode>, inode: &Inode) {
    let mut at = inode;
    for _ in 0..=inodes.len() {
        if at.id == InodeId::ROOT {
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
