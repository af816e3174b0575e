//! What watchers are told: each operation, own changes, bounds, and that nobody is answered before they have heard.
//! That nothing is missed is looked at in `random/cache.rs`, and in `watch/board_tests.rs`.

use crate::holds::Shown;
use crate::store::{OpenArgs, RenameArgs, SetAttrArgs};
use crate::tests::watcher::Watcher;
use crate::tests::{Client, ROOT, WRITE, World, simulate};
use crate::watch::{Ask, Changes, LEASE};
use kiln_types::{ClientId, Code, InodeId};
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

/// What was heard: changes are not answered before.
fn heard(watcher: &Watcher) -> String {
    text(&watcher.take())
}

/// A watcher that is told everything.
async fn watcher(world: &World, client: u128) -> Watcher {
    Watcher::new(&world.env, &world.store, client, false).await
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
        let watcher = watcher(&other, 2).await;
        let change = world.client(1).change();
        let made = world.store.make_dir(&change, ROOT, b"d", 0o755).await;
        assert_eq!(other.store.make_dir(&change, ROOT, b"d", 0o755).await, made);
        assert_eq!(heard(&watcher), "lost");
    });
}

#[test]
fn each_operation_tells_exactly_what_it_changes() {
    simulate(1, false, async |world| {
        let (mut other, watcher) = (world.client(1), watcher(&world, 2).await);
        let d = other.mkdir(ROOT, "d", 0o755).await.expect("mkdir").inode;
        assert_eq!(heard(&watcher), "1 1/d");
        let opened = other.create(d, "f", 0o644, WRITE).await.expect("create");
        let f = opened.attr.inode;
        assert_eq!(heard(&watcher), format!("{d} {d}/f"));
        other.sync(&opened, 10).await.expect("sync");
        assert_eq!(heard(&watcher), format!("{f}+"));
        // Nothing written: nobody sees anything.
        other.sync(&opened, 0).await.expect("sync");
        other.close(&opened, 0).await.expect("close");
        other.open(f, WRITE).await.expect("open");
        assert_eq!(heard(&watcher), "");
        other.truncate(f, 3).await.expect("truncate");
        assert_eq!(heard(&watcher), format!("{f}+"));
        other.open(f, OpenArgs { truncate: true, ..WRITE }).await.expect("open");
        assert_eq!(heard(&watcher), format!("{f}+"));
        let change = other.change();
        let mode = SetAttrArgs { mode: Some(0o600), ..SetAttrArgs::default() };
        world.store.set_attr(&change, f, &mode).await.expect("chmod");
        assert_eq!(heard(&watcher), format!("{f}"));
        let change = other.change();
        world.store.link(&change, f, ROOT, b"l").await.expect("link");
        assert_eq!(heard(&watcher), format!("1 {f} 1/l"));
        other.rename((ROOT, "l"), (d, "g")).await.expect("rename");
        assert_eq!(heard(&watcher), format!("1 {d} {f} 1/l {d}/g"));
        let e = other.touch(ROOT, "e", 0o644).await.expect("create").inode;
        assert_eq!(heard(&watcher), "1 1/e");
        exchange(&mut other, (ROOT, "e"), (d, "f")).await;
        assert_eq!(heard(&watcher), format!("1 {d} {f} {e} 1/e {d}/f"));
        // Over a file that goes.
        other.rename((ROOT, "e"), (d, "f")).await.expect("rename");
        assert_eq!(heard(&watcher), format!("1 {d} {f} {e} 1/e {d}/f"));
        other.unlink(d, "f").await.expect("unlink");
        assert_eq!(heard(&watcher), format!("{d} {f} {d}/f"));
        assert_eq!(other.unlink(d, "f").await.map_err(|e| e.code().name()), Err("NotFound"));
        assert_eq!(heard(&watcher), "");
    });
}

#[test]
fn own_changes_are_left_out_and_silence_is_broken() {
    simulate(2, false, async |world| {
        let (mut own, mut other) = (world.client(7), world.client(8));
        let watcher = watcher(&world, 7).await;
        own.mkdir(ROOT, "own", 0o755).await.expect("mkdir");
        world.env.sleep(Duration::from_secs(10)).await;
        assert_eq!(heard(&watcher), "");
        other.mkdir(ROOT, "other", 0o755).await.expect("mkdir");
        assert_eq!(heard(&watcher), "1 1/other");
        // A question that nobody answers with a change is answered with nothing.
        let ask = Ask { watch: 1, seen: 0, only: false, confined: false };
        assert_eq!(world.store.watch(ClientId(9), "", ask).await.map(|(n, _)| n), Ok(1));
        let started = world.env.now();
        let silence = world.store.watch(ClientId(9), "", Ask { seen: 1, ..ask }).await;
        assert_eq!(silence, Ok((2, Changes::default())));
        assert_eq!(world.env.now().since(started), Duration::from_secs(1));
        world.store.end_watchers();
        world.env.sleep(Duration::from_millis(1)).await;
        assert_eq!(heard(&watcher), "lost");
        let ended = world.store.watch(ClientId(9), "", Ask { seen: 2, ..ask }).await;
        assert_eq!(ended.map_err(|error| error.code()), Err(Code::Cancelled));
    });
}

#[test]
fn a_watcher_that_says_nothing_holds_up_a_change_for_its_lease_and_no_other() {
    simulate(3, false, async |world| {
        let mut other = world.client(1);
        let ask = Ask { watch: 1, seen: 0, only: false, confined: false };
        let first = world.store.watch(ClientId(2), "", ask).await;
        assert_eq!(first, Ok((1, Changes::anything())));
        let started = world.env.now();
        other.mkdir(ROOT, "a", 0o755).await.expect("mkdir");
        assert_eq!(world.env.now().since(started), LEASE);
        other.mkdir(ROOT, "b", 0o755).await.expect("mkdir");
        assert_eq!(world.env.now().since(started), LEASE);
        // It begins anew, whatever it has seen.
        let late = world.store.watch(ClientId(2), "", Ask { seen: 1, ..ask }).await;
        assert_eq!(late, Ok((2, Changes::anything())));
        let missed = world.store.watch(ClientId(2), "", Ask { seen: 1, ..ask }).await;
        assert_eq!(missed, Ok((2, Changes::anything())));
    });
}

#[test]
fn who_knows_of_one_server_hears_of_what_it_was_shown() {
    simulate(4, false, async |world| {
        let mut other = world.client(1);
        let d = other.mkdir(ROOT, "d", 0o755).await.expect("mkdir").inode;
        let f = other.touch(d, "f", 0o644).await.expect("create").inode;
        let watcher = Watcher::new(&world.env, &world.store, 2, true).await;
        let chmod = SetAttrArgs { mode: Some(0o600), ..SetAttrArgs::default() };
        let show = |attrs: Vec<InodeId>, names: Vec<InodeId>, before: u64| {
            world.store.hold(ClientId(2), before, &Shown { attrs, names })
        };
        assert!(show(vec![f], vec![ROOT], world.store.last_change()));
        other.touch(d, "g", 0o644).await.expect("create");
        assert_eq!(heard(&watcher), "");
        other.touch(ROOT, "h", 0o644).await.expect("create");
        assert_eq!(heard(&watcher), "1/h");
        world.store.set_attr(&other.change(), f, &chmod).await.expect("chmod");
        assert_eq!(heard(&watcher), format!("{f}"));
        // What changed while an answer was on its way.
        let before = world.store.last_change();
        world.store.set_attr(&other.change(), d, &chmod).await.expect("chmod");
        other.touch(d, "i", 0o644).await.expect("create");
        assert!(!show(vec![d], vec![d], before));
        world.env.sleep(Duration::from_millis(1)).await;
        assert_eq!(heard(&watcher), format!("{d} {d}/i"));
        for name in 0..1100 {
            other.touch(d, &format!("{name}"), 0o644).await.expect("create");
        }
        world.env.sleep(Duration::from_millis(1)).await;
        watcher.take();
        assert!(!show(vec![f], vec![], before), "too long ago to know");
        world.env.sleep(Duration::from_millis(1)).await;
        assert_eq!(heard(&watcher), "lost");
    });
}

#[test]
fn a_restarted_server_waits_for_those_who_watched_it() {
    simulate(5, false, async |world| {
        let watcher = watcher(&world, 2).await;
        let again = world.another().await;
        let mut other = again.client(1);
        let started = world.env.now();
        other.mkdir(ROOT, "a", 0o755).await.expect("mkdir");
        assert_eq!(world.env.now().since(started), LEASE, "nobody came");
        let again = world.another().await;
        let came = self::watcher(&again, 2).await;
        let started = world.env.now();
        again.client(3).mkdir(ROOT, "b", 0o755).await.expect("mkdir");
        assert!(world.env.now().since(started) < Duration::from_millis(50));
        assert_eq!(heard(&came), "1 1/b");
        drop(watcher);
    });
}

#[test]
fn a_confined_client_learns_no_names() {
    simulate(6, false, async |world| {
        let mut other = world.client(1);
        let wide = (false, true);
        let watcher = Watcher::passing_on(&world.env, &world.store, 2, wide, |_| {});
        watcher.first(&world.env).await;
        for name in ["a", "b", "c"] {
            other.mkdir(ROOT, name, 0o755).await.expect("mkdir");
            assert_eq!(heard(&watcher), "lost");
        }
    });
}
