//! What watchers are told: each operation, own changes, bounds, beats. That nothing is missed is
//! looked at in `random/cache.rs`.

use crate::store::{OpenArgs, RenameArgs, SetAttrArgs};
use crate::tests::{Client, ROOT, WRITE, World, simulate};
use crate::watch::{Changes, Watcher};
use kiln_types::{ClientId, InodeId};
use std::time::Duration;

/// A message as text: inodes (with `+` where the content changed), then names.
fn text(changes: &Changes) -> String {
    if changes.is_lost() {
        return "lost".into();
    }
    let inodes =
        changes.inodes().map(|(id, content)| format!("{id}{}", ["", "+"][content as usize]));
    let names = changes.names().map(|(parent, name)| format!("{parent}/{}", name.escape_ascii()));
    inodes.chain(names).collect::<Vec<_>>().join(" ")
}

async fn next(watcher: &mut Watcher) -> String {
    text(&watcher.next().await.expect("a message"))
}

/// A watcher that has had its first message.
async fn watcher(world: &World, client: u128, confined: bool) -> Watcher {
    let mut watcher = world.store.watch(ClientId(client), confined).expect("a watcher");
    assert_eq!(next(&mut watcher).await, "lost");
    watcher
}

async fn exchange(client: &mut Client, a: (InodeId, &str), b: (InodeId, &str)) {
    let args = RenameArgs {
        parent: a.0,
        name: a.1.into(),
        new_parent: b.0,
        new_name: b.1.into(),
        exchange: true,
        ..RenameArgs::default()
    };
    let change = client.change();
    client.world.store.rename(&change, &args).await.expect("an exchange");
}

/// The server that did it may have told nobody.
#[test]
fn a_repeated_request_is_told_by_whoever_answers_it() {
    simulate(1, false, async |world| {
        let other = world.another().await;
        let mut heard = watcher(&other, 2, false).await;
        let change = world.client(1).change();
        let made = world.store.make_dir(&change, ROOT, b"d", 0o755).await;
        assert_eq!(other.store.make_dir(&change, ROOT, b"d", 0o755).await, made);
        assert_eq!(next(&mut heard).await, "lost");
    });
}

#[test]
fn each_operation_tells_exactly_what_it_changes() {
    simulate(1, false, async |world| {
        let (mut other, mut heard) = (world.client(1), watcher(&world, 2, false).await);
        let d = other.mkdir(ROOT, "d", 0o755).await.expect("mkdir").inode;
        assert_eq!(next(&mut heard).await, "1 1/d");
        let opened = other.create(d, "f", 0o644, WRITE).await.expect("create");
        let f = opened.attr.inode;
        assert_eq!(next(&mut heard).await, format!("{d} {d}/f"));
        other.sync(&opened, 10).await.expect("sync");
        assert_eq!(next(&mut heard).await, format!("{f}+"));
        // Nothing written: nobody sees anything.
        other.sync(&opened, 0).await.expect("sync");
        other.close(&opened, 0).await.expect("close");
        other.open(f, WRITE).await.expect("open");
        assert_eq!(next(&mut heard).await, "");
        other.truncate(f, 3).await.expect("truncate");
        assert_eq!(next(&mut heard).await, format!("{f}+"));
        other.open(f, OpenArgs { truncate: true, ..WRITE }).await.expect("open");
        assert_eq!(next(&mut heard).await, format!("{f}+"));
        let change = other.change();
        let mode = SetAttrArgs { mode: Some(0o600), ..SetAttrArgs::default() };
        world.store.set_attr(&change, f, &mode).await.expect("chmod");
        assert_eq!(next(&mut heard).await, format!("{f}"));
        let change = other.change();
        world.store.link(&change, f, ROOT, b"l").await.expect("link");
        assert_eq!(next(&mut heard).await, format!("1 {f} 1/l"));
        other.rename((ROOT, "l"), (d, "g")).await.expect("rename");
        assert_eq!(next(&mut heard).await, format!("1 {d} {f} 1/l {d}/g"));
        let e = other.touch(ROOT, "e", 0o644).await.expect("create").inode;
        assert_eq!(next(&mut heard).await, "1 1/e");
        exchange(&mut other, (ROOT, "e"), (d, "f")).await;
        assert_eq!(next(&mut heard).await, format!("1 {d} {f} {e} 1/e {d}/f"));
        // Over a file that goes.
        other.rename((ROOT, "e"), (d, "f")).await.expect("rename");
        assert_eq!(next(&mut heard).await, format!("1 {d} {f} {e} 1/e {d}/f"));
        other.unlink(d, "f").await.expect("unlink");
        assert_eq!(next(&mut heard).await, format!("{d} {f} {d}/f"));
        assert_eq!(other.unlink(d, "f").await.map_err(|e| e.code().name()), Err("NotFound"));
        assert_eq!(next(&mut heard).await, "");
    });
}

#[test]
fn own_changes_are_left_out_and_silence_is_broken() {
    simulate(2, false, async |world| {
        let (mut own, mut other) = (world.client(7), world.client(8));
        let mut heard = watcher(&world, 7, false).await;
        let started = world.env.now();
        own.mkdir(ROOT, "own", 0o755).await.expect("mkdir");
        assert_eq!(next(&mut heard).await, "");
        assert!(world.env.now().since(started) <= Duration::from_secs(1));
        own.mkdir(ROOT, "more", 0o755).await.expect("mkdir");
        other.mkdir(ROOT, "other", 0o755).await.expect("mkdir");
        assert_eq!(next(&mut heard).await, "1 1/other");
        world.store.end_watchers();
        assert_eq!(heard.next().await, None);
        assert!(world.store.watch(ClientId(7), false).is_err());
    });
}

#[test]
fn who_is_too_slow_is_told_that_something_was_lost() {
    simulate(3, false, async |world| {
        let (mut other, mut heard) = (world.client(1), watcher(&world, 2, false).await);
        for _ in 0..2 {
            for _ in 0..2100 {
                other.mkdir(ROOT, "d", 0o755).await.expect("mkdir");
                let change = other.change();
                world.store.remove_dir(&change, ROOT, b"d").await.expect("rmdir");
                world.env.sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(next(&mut heard).await, "lost");
        }
        // And goes on.
        other.mkdir(ROOT, "d", 0o755).await.expect("mkdir");
        assert_eq!(next(&mut heard).await, "1 1/d");
    });
}

#[test]
fn a_confined_client_learns_no_names_and_not_often() {
    simulate(4, false, async |world| {
        let (mut other, mut heard) = (world.client(1), watcher(&world, 2, true).await);
        let started = world.env.now();
        for name in ["a", "b", "c"] {
            other.mkdir(ROOT, name, 0o755).await.expect("mkdir");
            assert_eq!(next(&mut heard).await, "lost");
        }
        assert!(world.env.now().since(started) >= Duration::from_millis(200));
    });
}
