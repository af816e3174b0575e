//! How locks end with their owners and their files; what they exclude is looked at in `random/locks.rs`.

use crate::store::{Opened, Settings};
use crate::tests::watcher::Watcher;
use crate::tests::{Client, ROOT, WRITE, World, code, root, simulate};
use crate::{Keeper, LockArgs};
use kiln_types::{Code, Lock, LockFamily, LockMode, LockOwner, LockRange, Result};
use std::sync::Arc;
use std::time::Duration;

fn whole(opened: &Opened) -> LockArgs {
    let (family, mode) = (LockFamily::Posix, LockMode::Exclusive);
    LockArgs {
        inode: opened.attr.inode,
        session: opened.session.expect("an open file"),
        owner: LockOwner(1),
        lock: Lock { family, mode, range: LockRange::ALL, pid: 1 },
    }
}

async fn locks(client: &mut Client, opened: &Opened, wait: bool) -> Result<bool> {
    let change = client.change();
    Ok(client.world.store.lock(&change, &whole(opened), wait).await?.is_some())
}

#[test]
fn a_lock_passes_on_when_its_client_is_surely_gone() {
    simulate(1, false, |world| async move {
        let (mut a, mut b) = (world.client(1), world.client(2));
        let lost = a.create(ROOT, "f", 0o644, WRITE).await.expect("a file");
        let file = b.open(lost.attr.inode, WRITE).await.expect("an open");
        let (family, inode) = (LockFamily::Posix, lost.attr.inode);
        assert_eq!(locks(&mut a, &lost, false).await, Ok(true));
        let mut keeper = Keeper::new(Arc::clone(&world.store));
        let watcher = Watcher::new(&world.env, &world.store, 3, false).await;
        let started = world.env.now();
        while !locks(&mut b, &file, true).await.expect("an answer") {
            let holder = world.store.lock_holder(&root(), b.id, &whole(&file)).await;
            let (held, own) = holder.expect("an answer").expect("a holder");
            assert_eq!((held.family, held.pid, own), (family, 1, false));
            world.env.sleep(Duration::from_secs(5)).await;
            world.store.keep_alive(&root(), b.id, false).await.expect("a beat");
            keeper.round().await.expect("a round");
        }
        let Settings { lease, capability, .. } = Settings::default();
        let waited = world.env.now().since(started);
        assert!(waited > lease + capability, "{waited:?}");
        assert_eq!(watcher.take().unlocked_inodes().collect::<Vec<_>>(), [inode]);
        // Whoever comes back is told that it has lost everything.
        assert_eq!(code(locks(&mut a, &lost, false).await), Err(Code::ClientEvicted));
    });
}

#[test]
fn locks_end_with_a_goodbye_and_with_the_inode() {
    simulate(2, false, |world: World| async move {
        let (mut a, mut b) = (world.client(1), world.client(2));
        let first = a.create(ROOT, "f", 0o644, WRITE).await.expect("a file");
        let file = b.open(first.attr.inode, WRITE).await.expect("an open");
        assert_eq!(locks(&mut a, &first, false).await, Ok(true));
        world.store.keep_alive(&root(), a.id, true).await.expect("a goodbye");
        let mut keeper = Keeper::new(Arc::clone(&world.store));
        keeper.round().await.expect("a round");
        assert_eq!(locks(&mut b, &file, false).await, Ok(true));
        b.unlink(ROOT, "f").await.expect("an unlink");
        b.close(&file, 0).await.expect("a close");
        assert_eq!(code(locks(&mut b, &file, false).await), Err(Code::StaleHandle));
        // Nothing is left in kv that a later page of its locks would stumble over.
        world.store.keep_alive(&root(), b.id, true).await.expect("a goodbye");
        keeper.round().await.expect("a round");
        assert_eq!(world.store.end_locks(b.id).await, Ok(false));
    });
}
