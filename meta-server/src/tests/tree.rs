//! Names, listings, confinement, placement.

use crate::placement::Tables;
use crate::store::{CreateArgs, SetAttrArgs, SetTime, Settings, Store, StoreParts, XattrMode};
use crate::tests::{CHUNK, Client, ROOT, WRITE, World, code, key, root, simulate, user};
use crate::{Table, XATTR_BYTES_MAX};
use kiln_types::{Code, InodeId, LayoutWish, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn a_listing_shows_what_stays_once_whatever_changes_meanwhile() {
    for seed in 0..20 {
        simulate(seed, false, move |world| async move {
            let world = world.narrow(4).await;
            let mut client = world.client(1);
            let mut rng = fastrand::Rng::with_seed(seed);
            for n in 0..60 {
                client.touch(ROOT, &format!("stay{n}"), 0o644).await.expect("a file");
                client.touch(ROOT, &format!("go{n}"), 0o644).await.expect("a file");
            }
            let (mut after, mut seen) = (0, BTreeMap::new());
            loop {
                let limit = rng.usize(1..7);
                let (page, end) =
                    world.store.read_dir(&root(), ROOT, after, limit, false).await.expect("a page");
                assert!(page.len() == limit || end, "a short page in the middle");
                for entry in page {
                    assert!(entry.cookie > after && entry.cookie < 1 << 63);
                    after = entry.cookie;
                    *seen.entry(entry.name).or_insert(0) += 1;
                }
                if end {
                    break;
                }
                let n = rng.u32(..60);
                let _ = client.unlink(ROOT, &format!("go{n}")).await;
                let _ = client.touch(ROOT, &format!("new{n}"), 0o644).await;
                let _ = client.rename((ROOT, &format!("new{n}")), (ROOT, &format!("go{n}"))).await;
            }
            for n in 0..60 {
                assert_eq!(seen.get(format!("stay{n}").as_bytes()), Some(&1), "seed {seed}");
            }
            assert!(seen.values().all(|count| *count == 1), "seed {seed}: {seen:?}");
        });
    }
}

#[test]
fn more_names_than_a_hash_can_number_are_refused() {
    simulate(1, false, |world| async move {
        // One bit: every name has the same hash.
        let world = world.narrow(1).await;
        let mut client = world.client(1);
        for n in 0..256 {
            client.touch(ROOT, &format!("n{n}"), 0o644).await.expect("a file");
        }
        assert_eq!(code(client.touch(ROOT, "full", 0o644).await), Err(Code::NoSpace));
        client.unlink(ROOT, "n0").await.expect("an unlink");
        client.unlink(ROOT, "n100").await.expect("an unlink");
        client.touch(ROOT, "a", 0o644).await.expect("the first place");
        client.touch(ROOT, "b", 0o644).await.expect("a place in the middle");
        assert_eq!(code(client.touch(ROOT, "c", 0o644).await), Err(Code::NoSpace));
        assert_eq!(code(client.lookup(ROOT, "n0").await), Err(Code::NotFound));
        client.lookup(ROOT, "n255").await.expect("it");
    });
}

#[test]
fn wrong_names_are_refused() {
    simulate(1, false, |world| async move {
        let mut client = world.client(1);
        let long = "x".repeat(256);
        for (name, expected) in [
            ("", Code::Invalid),
            (".", Code::Invalid),
            ("..", Code::Invalid),
            ("a/b", Code::Invalid),
            ("a\0b", Code::Invalid),
            (long.as_str(), Code::NameTooLong),
        ] {
            assert_eq!(code(client.touch(ROOT, name, 0o644).await), Err(expected), "{name:?}");
            assert_eq!(code(client.mkdir(ROOT, name, 0o644).await), Err(expected), "{name:?}");
            assert_eq!(code(client.unlink(ROOT, name).await), Err(expected), "{name:?}");
            let renamed = client.rename((ROOT, "a"), (ROOT, name)).await;
            assert_eq!(code(renamed), Err(expected), "{name:?}");
        }
        assert_eq!(code(client.lookup(ROOT, &long).await), Err(Code::NameTooLong));
        client.touch(ROOT, &long[1..], 0o644).await.expect("255 bytes");
        let target = vec![b't'; 4096];
        for (target, expected) in [
            (&target[..], Code::NameTooLong),
            (&[][..], Code::NotFound),
            (&b"a\0"[..], Code::Invalid),
        ] {
            let change = client.change();
            let made = world.store.symlink(&change, ROOT, b"s", target).await;
            assert_eq!(code(made), Err(expected));
        }
        let change = client.change();
        world.store.symlink(&change, ROOT, b"s", &target[1..]).await.expect("4095 bytes");
    });
}

#[test]
fn walks_follow_forty_symlinks_and_no_more() {
    simulate(1, false, |world| async move {
        let mut client = world.client(1);
        let file = client.touch(ROOT, "l0", 0o644).await.expect("a file");
        for n in 1..=41 {
            let (name, target) = (format!("l{n}"), format!("l{}", n - 1));
            let change = client.change();
            let (name, target) = (name.as_bytes(), target.as_bytes());
            world.store.symlink(&change, ROOT, name, target).await.expect("a symlink");
        }
        let resolve = |path: &'static [u8], follow| {
            let store = Arc::clone(&world.store);
            async move { store.resolve(&root(), ROOT, path, follow).await.map(|attr| attr.inode) }
        };
        assert_eq!(resolve(b"/l40", true).await, Ok(file.inode));
        assert_eq!(code(resolve(b"/l41", true).await), Err(Code::SymlinkLoop));
        assert_ne!(resolve(b"/l41", false).await, Ok(file.inode));
        assert_eq!(code(resolve(b"/l1/", false).await), Err(Code::NotDirectory));
        assert_eq!(resolve(b"", true).await, Ok(ROOT));
        assert_eq!(resolve(b"//./..//", true).await, Ok(ROOT));
        assert_eq!(code(resolve(b"none", true).await), Err(Code::NotFound));
        assert_eq!(code(resolve(b"l0/none", true).await), Err(Code::NotDirectory));
        assert_eq!(code(resolve(&[b'a'; 5000], true).await), Err(Code::NameTooLong));
    });
}

#[test]
fn a_directorys_time_may_be_set_to_the_future_and_changes_still_show() {
    simulate(1, false, |world| async move {
        let mut client = world.client(1);
        let future = Timestamp(4_000_000_000_000_000_000);
        let args = SetAttrArgs { mtime: Some(SetTime::At(future)), ..SetAttrArgs::default() };
        let change = client.change();
        let attr = world.store.set_attr(&change, ROOT, &args).await.expect("set");
        assert_eq!(attr.mtime, future);
        assert_eq!(client.attr(ROOT).await.expect("it").mtime, future);
        world.env.sleep(Duration::from_millis(1)).await;
        client.touch(ROOT, "f", 0o644).await.expect("a file");
        assert_eq!(client.attr(ROOT).await.expect("it").mtime, world.env.wall());
    });
}

#[test]
fn a_confined_caller_stays_in_its_directory() {
    simulate(1, false, |world| async move {
        let mut owner = world.client(1);
        let home = owner.mkdir(ROOT, "home", 0o755).await.expect("a directory").inode;
        let inside = owner.mkdir(home, "ann", 0o777).await.expect("a directory").inode;
        let below = owner.mkdir(inside, "d", 0o777).await.expect("a directory").inode;
        let outside = owner.touch(home, "secret", 0o666).await.expect("a file").inode;
        let shared = owner.touch(home, "shared", 0o666).await.expect("a file").inode;
        let change = owner.change();
        let sneak = world.store.symlink(&change, inside, b"sneak", b"/../secret").await;
        sneak.expect("a symlink");

        let mut ann = world.client(2);
        let mut who = user(5, 5, &[]);
        who.subtree = Some("/home/ann".into());
        ann.with(who.clone());
        assert_eq!(ann.attr(ROOT).await.expect("its root").inode, inside);
        assert_eq!(ann.lookup(ROOT, "..").await.expect("its root").inode, inside);
        assert_eq!(ann.lookup(below, "..").await.expect("its root").inode, inside);
        for inode in [home, outside, shared] {
            assert_eq!(code(ann.attr(inode).await), Err(Code::NotAuthorized));
            assert_eq!(code(ann.open(inode, WRITE).await), Err(Code::NotAuthorized));
        }
        assert_eq!(code(ann.touch(home, "x", 0o600).await), Err(Code::NotAuthorized));
        let moved = ann.rename((below, "x"), (home, "x")).await;
        assert_eq!(code(moved), Err(Code::NotAuthorized));
        let walked = world.store.resolve(&who, ROOT, b"/sneak", true).await;
        assert_eq!(code(walked), Err(Code::NotFound), "/ is its own directory");
        let file = ann.create(below, "mine", 0o600, WRITE).await.expect("a file");
        ann.close(&file, 1).await.expect("a close");
        let found = world.store.resolve(&who, ROOT, b"/d/../d/mine", true).await.expect("it");
        assert_eq!(found.inode, file.attr.inode);
        // Moved out by someone else, it is out of reach.
        owner.rename((below, "mine"), (home, "taken")).await.expect("a rename");
        assert_eq!(code(ann.attr(file.attr.inode).await), Err(Code::NotAuthorized));
        who.subtree = Some("/home/bob".into());
        assert_eq!(code(ann.with(who).attr(ROOT).await), Err(Code::NotAuthorized));
    });
}

#[test]
fn ids_are_given_once_by_any_number_of_servers() {
    simulate(1, true, |world| async move {
        let mut ids = BTreeSet::new();
        for round in 0..5 {
            for world in [world.clone(), world.another().await] {
                for _ in 0..700 {
                    let id = world.store.next_inode().await.expect("an id");
                    assert!(id > ROOT && ids.insert(id), "round {round}");
                }
            }
        }
    });
}

struct NoTable;

impl Tables for NoTable {
    fn newest(&self) -> Option<Table> {
        None
    }
}

#[test]
fn without_a_chain_table_everything_but_new_files_works() {
    simulate(1, false, |world| async move {
        let parts = StoreParts {
            kv: Arc::clone(&world.kv),
            env: world.env.clone(),
            chunks: Arc::clone(&world.chunks) as _,
            tables: Arc::new(NoTable),
            key: key(),
        };
        let store = Arc::new(Store::open(parts, Settings::default()).await.expect("a store"));
        let mut client = World { store, ..world.clone() }.client(1);
        client.mkdir(ROOT, "d", 0o755).await.expect("a directory");
        assert_eq!(code(client.touch(ROOT, "f", 0o644).await), Err(Code::NotReady));
        assert_eq!(code(client.lookup(ROOT, "f").await), Err(Code::NotFound));
    });
}

#[test]
fn layouts_follow_the_request() {
    simulate(1, false, |world| async move {
        let mut client = world.client(1);
        let layout = client.touch(ROOT, "f", 0o644).await.expect("a file").layout.expect("one");
        assert_eq!((layout.chunk_bytes, layout.stripe), (CHUNK as u32, 4));
        let mut args = CreateArgs {
            parent: ROOT,
            name: b"g".to_vec(),
            wish: LayoutWish { chunk_bytes: 4 << 20, stripe: 99 },
            ..CreateArgs::default()
        };
        let change = client.change();
        let made = world.store.create(&change, &args).await.expect("a file");
        let layout = made.attr.layout.expect("one");
        assert_eq!((layout.chunk_bytes, layout.stripe, layout.table_version), (4 << 20, 6, 1));
        args.name = b"h".to_vec();
        args.wish.chunk_bytes = 12345;
        let change = client.change();
        let made = world.store.create(&change, &args).await;
        assert_eq!(code(made), Err(Code::Invalid));
    });
}

#[test]
fn layouts_follow_the_directory() {
    simulate(1, false, |world| async move {
        let mut client = world.client(1);
        let old = client.mkdir(ROOT, "old", 0o755).await.expect("a directory");
        assert_eq!(old.layout, None);
        let top = client.mkdir(ROOT, "top", 0o777).await.expect("a directory").inode;
        let set = async |client: &mut Client, inode, wish| {
            let args = SetAttrArgs { layout: Some(wish), ..SetAttrArgs::default() };
            let change = client.change();
            world.store.set_attr(&change, inode, &args).await
        };
        let wish = LayoutWish { chunk_bytes: 2 << 20, stripe: 0 };
        let said = set(&mut client, top, wish).await.expect("a change").layout.expect("one");
        assert_eq!((said.chunk_bytes, said.stripe), (2 << 20, 4));
        let below = client.mkdir(top, "below", 0o755).await.expect("a directory").inode;
        let file = client.touch(below, "f", 0o644).await.expect("a file");
        let layout = file.layout.expect("one");
        assert_eq!((layout.chunk_bytes, layout.stripe), (2 << 20, 4));
        let narrow = LayoutWish { stripe: 1, ..wish };
        set(&mut client, below, narrow).await.expect("a change");
        let layout = client.touch(below, "g", 0o644).await.expect("a file").layout.expect("one");
        assert_eq!((layout.chunk_bytes, layout.stripe), (2 << 20, 1));
        // What is there stays, and elsewhere nothing changes.
        assert_eq!(client.lookup(below, "f").await.expect("it").layout, file.layout);
        let layout = client.touch(old.inode, "f", 0o644).await.expect("a file").layout;
        assert_eq!(layout.map(|layout| layout.chunk_bytes), Some(CHUNK as u32));
        assert_eq!(set(&mut client, top, LayoutWish::default()).await.expect("it").layout, None);
        let wrong = LayoutWish { chunk_bytes: 5, ..wish };
        assert_eq!(code(set(&mut client, top, wrong).await), Err(Code::Invalid));
        assert_eq!(code(set(&mut client, file.inode, wish).await), Err(Code::NotDirectory));
        client.with(user(10, 100, &[]));
        assert_eq!(code(set(&mut client, top, wish).await), Err(Code::NotPermitted));
    });
}

#[test]
fn inodes_are_listed_in_pages() {
    simulate(1, false, |world| async move {
        let mut client = world.client(1);
        let mut expected = BTreeMap::new();
        for n in 0..40 {
            let name = format!("n{n}");
            if n % 3 == 0 {
                client.mkdir(ROOT, &name, 0o755).await.expect("a directory");
                continue;
            }
            let inode = client.touch(ROOT, &name, 0o644).await.expect("a file").inode;
            let removed = n % 5 == 0;
            if removed {
                client.unlink(ROOT, &name).await.expect("an unlink");
            } else {
                client.truncate(inode, 5 * CHUNK).await.expect("growth");
                client.truncate(inode, CHUNK).await.expect("a cut");
            }
            expected.insert(inode, removed);
        }
        for limit in [1, 2, 3, 7, 1000] {
            let (mut listed, mut after) = (BTreeMap::new(), InodeId(0));
            loop {
                let (page, end) = world.store.list_inodes(after, limit).await.expect("a page");
                assert!(end || !page.is_empty());
                for inode in page {
                    assert!(inode.inode > after);
                    after = inode.inode;
                    listed.insert(inode.inode, inode.removed);
                }
                if end {
                    break;
                }
            }
            assert_eq!(listed, expected, "limit {limit}");
        }
    });
}

#[test]
fn extended_attributes_have_limits_and_namespaces() {
    simulate(1, false, |world| async move {
        let mut client = world.client(1);
        let inode = client.touch(ROOT, "f", 0o666).await.expect("a file").inode;
        let store = Arc::clone(&world.store);
        let big = vec![7; XATTR_BYTES_MAX];
        for (name, value, mode, expected) in [
            (&b"user.a"[..], &big[..], XattrMode::Create, Ok(())),
            (b"user.a", b"x", XattrMode::Create, Err(Code::Exists)),
            (b"user.b", b"x", XattrMode::Replace, Err(Code::NoAttribute)),
            (b"trusted.t", b"x", XattrMode::Any, Ok(())),
            (b"security.s", b"x", XattrMode::Any, Ok(())),
            (b"system.posix_acl_access", b"x", XattrMode::Any, Err(Code::Unsupported)),
        ] {
            let change = client.change();
            let set = store.set_xattr(&change, inode, name, value, mode).await;
            assert_eq!(code(set), expected, "{}", name.escape_ascii());
        }
        let change = client.change();
        let too_big = store.set_xattr(&change, inode, b"user.c", &[0; 65537], XattrMode::Any).await;
        assert_eq!(code(too_big), Err(Code::TooBig));
        assert_eq!(store.get_xattr(&root(), inode, b"user.a").await, Ok(big));
        let names = |who| {
            let store = Arc::clone(&store);
            async move { store.list_xattrs(&who, inode).await.expect("names").len() }
        };
        let plain = user(5, 5, &[]);
        assert_eq!((names(root()).await, names(plain.clone()).await), (3, 2));
        let hidden = store.get_xattr(&plain, inode, b"trusted.t").await;
        assert_eq!(code(hidden), Err(Code::NoAttribute));
        client.with(plain);
        for name in [&b"trusted.t"[..], b"security.s"] {
            let change = client.change();
            let set = store.set_xattr(&change, inode, name, b"y", XattrMode::Any).await;
            assert_eq!(code(set), Err(Code::NotPermitted));
            let change = client.change();
            let removed = store.remove_xattr(&change, inode, name).await;
            assert_eq!(code(removed), Err(Code::NotPermitted));
        }
        client.with(root());
        let mut count = 0;
        loop {
            let change = client.change();
            let name = format!("user.{count:0>250}");
            let set = store.set_xattr(&change, inode, name.as_bytes(), b"", XattrMode::Any).await;
            if let Err(error) = set {
                assert_eq!(error.code(), Code::NoSpace);
                break;
            }
            count += 1;
        }
        assert_eq!(count, 255);
        client.unlink(ROOT, "f").await.expect("an unlink");
        let dump = crate::tests::invariants::dump(&world).await;
        assert_eq!((dump.get(&b'N'), dump.get(&b'X')), (None, None));
    });
}
