//! Planted damage of each kind is found, named and set right.

use super::judge::Kind;
use super::tables::KEYS;
use super::{Checked, Checker};
use crate::records::{Body, Inode, Record, Slot};
use crate::tests::{Client, READ, ROOT, WRITE, World, invariants, key, simulate};
use kiln_kv::{RangeOptions, Transaction, transact};
use kiln_types::{ClientId, Code, FileKind, InodeId, TruncateEpoch};
use std::sync::Arc;

fn checker(world: &World) -> Checker {
    Checker::new(Arc::clone(&world.kv), &world.env, key())
}

async fn check(world: &World) -> Checked {
    checker(world).check().await.expect("a check")
}

/// What a tree has that is damaged on purpose.
struct Planted {
    world: World,
    client: Client,
    directory: InodeId,
    below: InodeId,
    file: InodeId,
    linked: InodeId,
    open: InodeId,
}

impl Planted {
    async fn new(world: World) -> Self {
        let mut client = world.client(1);
        let directory = client.mkdir(ROOT, "directory", 0o755).await.expect("mkdir").inode;
        let below = client.mkdir(directory, "below", 0o755).await.expect("mkdir").inode;
        let made = client.create(directory, "file", 0o644, WRITE).await.expect("create");
        client.close(&made, 5000).await.expect("close");
        let linked = client.touch(below, "linked", 0o644).await.expect("a file").inode;
        let change = client.change();
        world.store.link(&change, linked, ROOT, b"again").await.expect("link");
        let open = client.touch(ROOT, "open", 0o644).await.expect("a file").inode;
        client.open(open, WRITE).await.expect("an open file");
        client.open(open, READ).await.expect("an open file");
        let file = made.attr.inode;
        Self { world, client, directory, below, file, linked, open }
    }

    async fn edit(&self, edit: impl Fn(&mut dyn Transaction) + Send + Sync) {
        let edit = &edit;
        let edited = transact(&*self.world.kv, &self.world.env, "damage", |tx| {
            Box::pin(async move {
                edit(tx);
                Ok(())
            })
        });
        edited.await.expect("damage");
    }

    async fn value(&self, key: &[u8]) -> Option<Vec<u8>> {
        let read = transact(&*self.world.kv, &self.world.env, "look", |tx| {
            Box::pin(async move { tx.get(key).await })
        });
        read.await.expect("a value")
    }

    async fn edit_inode(&self, id: InodeId, edit: impl Fn(&mut Inode)) {
        let value = self.value(&KEYS.inode(id)).await.expect("an inode");
        let mut inode = Inode::decode(&value).expect("an inode");
        edit(&mut inode);
        self.edit(move |tx| tx.set(&KEYS.inode(id), &inode.encode())).await;
    }

    /// The slots of a directory.
    async fn slots(&self, directory: InodeId) -> Vec<(Vec<u8>, Slot)> {
        let range = &KEYS.slots(directory);
        let read = transact(&*self.world.kv, &self.world.env, "look", |tx| {
            Box::pin(tx.range(range.clone(), RangeOptions::default()))
        });
        let slots = read.await.expect("slots").into_iter();
        slots.map(|(key, value)| (key, Slot::decode(&value).expect("a slot"))).collect()
    }

    /// The name of an inode in a directory.
    async fn slot_of(&self, directory: InodeId, inode: InodeId) -> (Vec<u8>, Slot) {
        let slots = self.slots(directory).await.into_iter();
        let is_it = |slot: &Slot| slot.entry.as_ref().is_some_and(|entry| entry.inode == inode);
        slots.into_iter().find(|(_, slot)| is_it(slot)).expect("a name")
    }

    async fn plant(&self, damage: &str) {
        let Self { directory, below, file, .. } = *self;
        match damage {
            "orphan" => {
                let (key, _) = self.slot_of(directory, file).await;
                self.edit(|tx| tx.clear(&key)).await;
            }
            "orphaned directory" => {
                let (key, _) = self.slot_of(ROOT, directory).await;
                self.edit(|tx| tx.clear(&key)).await;
            }
            "dangling" => self.edit(|tx| tx.clear(&KEYS.inode(file))).await,
            "loop" => {
                let (key, slot) = self.slot_of(ROOT, directory).await;
                let entry = slot.entry.expect("an entry");
                let name = crate::name::NameHash::new(self.hash_key().await).cookie(&entry.name);
                let there = KEYS.slot(below, name);
                let slot = Slot { more: false, entry: Some(entry) };
                self.edit(move |tx| {
                    tx.clear(&key);
                    tx.set(&there, &slot.encode());
                })
                .await;
                self.edit_inode(directory, |inode| inode.parent = below).await;
            }
            "kind" => {
                let (key, mut slot) = self.slot_of(directory, file).await;
                slot.entry.as_mut().expect("an entry").kind = FileKind::Symlink;
                self.edit(move |tx| tx.set(&key, &slot.encode())).await;
            }
            "misplaced" => {
                let (key, slot) = self.slot_of(directory, file).await;
                let other = KEYS.slot(directory, 77 << 8);
                self.edit(move |tx| {
                    tx.clear(&key);
                    tx.set(&other, &slot.encode());
                })
                .await;
            }
            _ => self.plant_record(damage).await,
        }
    }

    async fn plant_record(&self, damage: &str) {
        let Self { directory, below, file, linked, open, .. } = *self;
        match damage {
            "links" => self.edit_inode(linked, |inode| inode.links = 7).await,
            "subdirectories" => {
                self.edit(|tx| tx.set(&KEYS.links(directory), &9u64.to_le_bytes())).await;
            }
            "length" => {
                self.edit_inode(file, |inode| {
                    let Body::File(file) = &mut inode.body else { panic!("a file") };
                    file.dense_end = 5000;
                    file.length = 100;
                })
                .await;
            }
            "parent" => self.edit_inode(below, |inode| inode.parent = ROOT).await,
            "count" => self.edit(|tx| tx.add(&KEYS.inode_count(), 3)).await,
            "usage" => {
                let [bytes, _] = KEYS.usage(kiln_types::Account::User(0));
                self.edit(move |tx| tx.add(&bytes, 77)).await;
            }
            "ids" => self.edit(|tx| tx.set(&KEYS.next_inode(), &257u64.to_le_bytes())).await,
            "garbage" => {
                let value = self.value(&KEYS.inode(file)).await.expect("an inode");
                let Body::File(body) = Inode::decode(&value).expect("an inode").body else {
                    return;
                };
                let writable_until = self.world.env.wall();
                let garbage = crate::records::Garbage {
                    layout: body.layout,
                    first: 0,
                    end: 9,
                    writable_until,
                };
                let key = KEYS.garbage(file, TruncateEpoch(u64::MAX));
                self.edit(move |tx| tx.set(&key, &garbage.encode())).await;
            }
            "half of an open file" => {
                self.edit(|tx| tx.clear_range(KEYS.sessions(open))).await;
            }
            "leftover" => {
                let key = KEYS.xattr(InodeId(9999), b"user.x");
                self.edit(move |tx| tx.set(&key, b"x")).await;
            }
            "lock mark" => {
                let key = KEYS.lock_of(ClientId(1), file);
                self.edit(move |tx| tx.set(&key, b"")).await;
            }
            "removed tree" => {
                self.edit(move |tx| tx.set(&KEYS.detached(below), b"")).await;
            }
            other => panic!("{other}"),
        }
    }

    async fn hash_key(&self) -> [u64; 2] {
        let value = self.value(&KEYS.format()).await.expect("a format");
        crate::records::Format::decode(&value).expect("a format").hash_key
    }
}

#[test]
fn damage_is_found_named_and_set_right() {
    for (damage, kind, path) in [
        ("orphan", Kind::Orphan, None),
        ("orphaned directory", Kind::Orphan, None),
        ("dangling", Kind::Dangling, Some("/directory")),
        ("links", Kind::Links, Some("/")),
        ("subdirectories", Kind::Links, Some("/directory")),
        ("length", Kind::Length, Some("/directory/file")),
        ("parent", Kind::Links, None),
        ("loop", Kind::Loop, None),
        ("kind", Kind::Name, Some("/directory/file")),
        ("misplaced", Kind::Name, Some("/directory/file")),
        ("count", Kind::Sums, None),
        ("usage", Kind::Sums, None),
        ("ids", Kind::Ids, None),
        ("garbage", Kind::Garbage, Some("/directory/file")),
        ("half of an open file", Kind::Halves, Some("/open")),
        ("leftover", Kind::Leftover, None),
        ("lock mark", Kind::Halves, Some("/directory/file")),
        ("removed tree", Kind::Leftover, Some("/directory/below")),
    ] {
        simulate(3, false, move |world| async move {
            let planted = Planted::new(world.clone()).await;
            assert_eq!(check(&world).await.findings, [], "before {damage}");
            planted.plant(damage).await;
            let found = check(&world).await.findings;
            let first = found.iter().find(|found| found.kind == kind);
            let first = first.unwrap_or_else(|| panic!("{damage}: {found:?}"));
            assert!(first.repairable && !first.repaired, "{damage}: {first:?}");
            if let Some(path) = path {
                let named = first.path.as_deref().map(String::from_utf8_lossy);
                assert!(named.is_some_and(|named| named.starts_with(path)), "{damage}: {first:?}");
            }
            let repaired = checker(&world).repair().await.expect("a repair");
            assert!(repaired.findings.iter().all(|found| found.repaired), "{damage}: {repaired:?}");
            assert_eq!(check(&world).await.findings, [], "after {damage}");
            invariants::check(&world).await;
            // Everything that was there, and was not itself what is lost, is there.
            let there = world.another().await;
            for inode in [planted.below, planted.linked, planted.open] {
                there.client(9).attr(inode).await.expect("it is there");
            }
            drop(planted.client);
        });
    }
}

#[test]
fn a_record_with_a_flipped_bit_is_named_and_nothing_is_taken_for_gone() {
    simulate(4, false, |world| async move {
        let planted = Planted::new(world.clone()).await;
        let key = KEYS.inode(planted.file);
        let mut value = planted.value(&key).await.expect("an inode");
        value[0] ^= 4;
        planted.edit(move |tx| tx.set(&key, &value)).await;
        let found = check(&world).await.findings;
        assert!(
            !found.is_empty() && found.iter().all(|found| found.kind == Kind::Unreadable),
            "{found:?}"
        );
        assert_eq!(found[0].inode, Some(planted.file));
        assert!(!found[0].repairable);
        let repaired = checker(&world).repair().await.expect("a repair").findings;
        assert_eq!(repaired, found, "only a backup helps");
        planted.slot_of(planted.directory, planted.file).await;
    });
}

#[test]
fn no_tree_is_made_where_there_is_none() {
    simulate(5, false, |world| async move {
        let kv = crate::tests::engine::new(&world.env).await;
        let empty = World { kv, ..world };
        for outcome in [checker(&empty).check().await, checker(&empty).repair().await] {
            assert_eq!(outcome.err().map(|error| error.code()), Some(Code::NotFound));
        }
        assert!(invariants::dump(&empty).await.is_empty());
    });
}

#[test]
fn what_a_repair_does_not_reach_is_not_called_repaired() {
    simulate(6, false, |world| async move {
        let mut planted = Planted::new(world.clone()).await;
        let found = planted.client.mkdir(ROOT, "lost+found", 0o700).await.expect("mkdir").inode;
        let taken = format!("inode-{}", planted.file);
        planted.client.touch(found, &taken, 0o644).await.expect("a file");
        planted.plant("orphan").await;
        let findings = checker(&world).repair().await.expect("a repair").findings;
        let left: Vec<_> = findings.iter().filter(|found| !found.repaired).collect();
        assert!(left.iter().any(|found| found.kind == Kind::Orphan), "{findings:?}");
    });
}
