//! Truncations that are interrupted, and writers that do not know of them.

use crate::Keeper;
use crate::records::FLOORS_MAX;
use crate::store::LENGTH_MAX;
use crate::tests::{CHUNK, Client, READ, ROOT, WRITE, World, code, invariants, simulate};
use kiln_types::{Code, TruncateEpoch};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn two_clients(world: &World) -> (Client, Client) {
    (world.client(1), world.client(2))
}

/// The time after which no capability of now counts any more, with signs of life in between.
async fn capabilities_end(world: &World, clients: &[&Client]) {
    for _ in 0..8 {
        world.env.sleep(Duration::from_secs(10)).await;
        for client in clients {
            world.store.keep_alive(&client.who, client.id, false).await.expect("a beat");
        }
    }
}

#[test]
fn an_interrupted_truncation_is_finished_before_anyone_writes() {
    simulate(1, false, |world| async move {
        let (mut a, mut b) = two_clients(&world);
        let file = a.create(ROOT, "f", 0o644, WRITE).await.expect("a file");
        for offset in [100, CHUNK - 1] {
            world.chunks.write(&file.attr, file.attr.epoch, offset, 7).expect("a write");
        }
        a.close(&file, CHUNK).await.expect("a close");

        world.chunks.down.store(true, Ordering::Relaxed);
        let cut = crate::SetAttrArgs { length: Some(50), ..Default::default() };
        let change = a.change();
        let inode = file.attr.inode;
        let failed = world.store.set_attr(&change, inode, &cut).await;
        assert_eq!(code(failed), Err(Code::Unreachable));
        // The new length is there, and may be read under; nobody may write.
        assert_eq!(b.open(inode, READ).await.expect("an open").attr.length, 50);
        assert_eq!(code(b.open(inode, WRITE).await), Err(Code::Unreachable));
        assert_eq!(code(b.truncate(inode, 300).await), Err(Code::Unreachable));

        world.chunks.down.store(false, Ordering::Relaxed);
        let opened = b.open(inode, WRITE).await.expect("an open");
        assert_eq!(opened.attr.epoch, TruncateEpoch(2));
        world.chunks.write(&opened.attr, opened.attr.epoch, 200, 9).expect("a write");
        b.sync(&opened, 201).await.expect("a sync");
        // The first client repeats its request: the answer is what it was, and cuts nothing again.
        let attr = world.store.set_attr(&change, inode, &cut).await.expect("a repetition");
        assert_eq!(attr.length, 50);
        // So does the chunk request of a server that stopped, when it comes late.
        world.chunks.repeat_cuts(|_| true);
        b.truncate(inode, 2 * CHUNK).await.expect("growth");
        let attr = a.attr(inode).await.expect("attributes");
        let read = |offset| world.chunks.read(&attr, offset);
        assert_eq!((read(100), read(200), read(CHUNK - 1)), (0, 9, 0));
    });
}

#[test]
fn a_writer_that_missed_a_truncation_changes_nothing_behind_it() {
    simulate(2, false, |world| async move {
        let (mut a, mut b) = two_clients(&world);
        let late = a.create(ROOT, "f", 0o644, WRITE).await.expect("a file");
        let inode = late.attr.inode;
        world.chunks.write(&late.attr, late.attr.epoch, 3 * CHUNK + 5, 7).expect("a write");
        b.truncate(inode, 10).await.expect("a truncation");
        // It has written behind the cut before and does so after it, and reports both.
        world.chunks.write(&late.attr, late.attr.epoch, 2 * CHUNK, 8).expect("a late write");
        let refused = world.chunks.write(&late.attr, late.attr.epoch, 100, 8);
        assert_eq!(code(refused), Err(Code::StaleEpoch));
        assert_eq!(a.sync(&late, 3 * CHUNK + 6).await.expect("a sync").length, 10);
        let attr = b.truncate(inode, 4 * CHUNK).await.expect("growth");
        let read = |offset| world.chunks.read(&attr, offset);
        assert_eq!((read(3 * CHUNK + 5), read(2 * CHUNK), read(100)), (0, 0, 0));

        let renewed = a.renew(&late).await.expect("a renewal");
        assert_eq!(renewed.attr.epoch, attr.epoch);
        world.chunks.write(&renewed.attr, renewed.attr.epoch, 2 * CHUNK + 1, 6).expect("a write");
        a.close(&renewed, 2 * CHUNK + 2).await.expect("a close");
        capabilities_end(&world, &[&a, &b]).await;
        Keeper::new(Arc::clone(&world.store)).round().await.expect("a round");
        let attr = b.attr(inode).await.expect("attributes");
        assert_eq!(attr.floors, []);
        let read = |offset| world.chunks.read(&attr, offset);
        assert_eq!((read(2 * CHUNK), read(2 * CHUNK + 1), read(3 * CHUNK + 5)), (0, 6, 0));
        invariants::check(&world).await;
        invariants::check_chunks(&world).await;
    });
}

#[test]
fn floors_are_kept_until_no_old_capability_is_left_and_are_bounded() {
    simulate(3, false, |world| async move {
        let mut client = world.client(1);
        let inode = client.touch(ROOT, "f", 0o644).await.expect("a file").inode;
        for n in 1..=FLOORS_MAX as u64 {
            client.truncate(inode, (n + 1) * CHUNK).await.expect("growth");
            client.truncate(inode, n * CHUNK).await.expect("a cut");
        }
        client.truncate(inode, 99 * CHUNK).await.expect("growth");
        assert_eq!(code(client.truncate(inode, 98 * CHUNK).await), Err(Code::Busy));
        // A cut before all others needs no further floor.
        let mut keeper = Keeper::new(Arc::clone(&world.store));
        keeper.round().await.expect("a round");
        let floors = client.attr(inode).await.expect("attributes").floors;
        assert_eq!(floors.len(), FLOORS_MAX, "too early");
        capabilities_end(&world, &[&client]).await;
        keeper.round().await.expect("a round");
        assert_eq!(client.attr(inode).await.expect("attributes").floors, []);
        let attr = client.truncate(inode, 98 * CHUNK).await.expect("a cut");
        assert_eq!(attr.floors, [(98, attr.epoch)]);
        let attr = client.truncate(inode, 0).await.expect("a cut");
        assert_eq!(attr.floors, [(0, attr.epoch)]);
        invariants::check(&world).await;
    });
}

#[test]
fn lengths_are_sparse_and_limited() {
    simulate(4, false, |world| async move {
        let mut client = world.client(1);
        let file = client.create(ROOT, "f", 0o644, WRITE).await.expect("a file");
        let inode = file.attr.inode;
        let attr = client.truncate(inode, LENGTH_MAX).await.expect("the longest file");
        assert_eq!(attr.length, LENGTH_MAX);
        let too_long = client.truncate(inode, LENGTH_MAX + 1).await;
        assert_eq!(code(too_long), Err(Code::FileTooLarge));
        assert_eq!(code(client.sync(&file, u64::MAX).await), Err(Code::FileTooLarge));
        client.truncate(inode, 1).await.expect("a cut at once");
        client.mkdir(ROOT, "d", 0o755).await.expect("a directory");
        let directory = client.lookup(ROOT, "d").await.expect("it").inode;
        assert_eq!(code(client.truncate(directory, 0).await), Err(Code::IsDirectory));
    });
}
