//! Trees that are removed as a whole, over many transactions.

use crate::Keeper;
use crate::pruner::Pruner;
use crate::tests::{Client, ROOT, WRITE, World, code, invariants, root, simulate, user};
use kiln_types::{Attr, Code, InodeId};
use std::sync::Arc;

/// `d` with 300 files, and in it `e` with 150, one of which has another name.
async fn tree(world: &World, client: &mut Client) -> (Attr, Attr) {
    let d = client.mkdir(ROOT, "d", 0o755).await.expect("d");
    let e = client.mkdir(d.inode, "e", 0o755).await.expect("e");
    for number in 0..300 {
        let file = client.create(d.inode, &format!("f{number}"), 0o644, WRITE).await.expect("f");
        if number == 7 {
            world.chunks.write(&file.attr, file.attr.epoch, 0, 7).expect("a write");
        }
        client.close(&file, u64::from(number == 7)).await.expect("a close");
    }
    for number in 0..150 {
        client.touch(e.inode, &format!("g{number}"), 0o644).await.expect("g");
    }
    let linked = client.lookup(e.inode, "g3").await.expect("g3").inode;
    let change = client.change();
    world.store.link(&change, linked, ROOT, b"kept").await.expect("a link");
    (d, e)
}

async fn inodes(world: &World) -> u64 {
    world.store.inode_count().await.expect("a count")
}

#[test]
fn a_tree_goes_over_restarts_and_leaves_what_has_other_holds() {
    simulate(1, false, |world| async move {
        let mut client = world.client(1);
        let (d, e) = tree(&world, &mut client).await;
        let open = client.lookup(d.inode, "f9").await.expect("f9").inode;
        let open = client.open(open, WRITE).await.expect("an open");
        let change = client.change();
        world.store.remove_tree(&change, ROOT, b"d").await.expect("a removal");
        world.store.remove_tree(&change, ROOT, b"d").await.expect("the same again");
        assert_eq!(code(client.lookup(ROOT, "d").await), Err(Code::NotFound));
        assert_eq!(code(client.touch(d.inode, "new", 0o644).await), Err(Code::NotFound));
        assert_eq!(code(client.rename((ROOT, "kept"), (d.inode, "k")).await), Err(Code::NotFound));
        invariants::check(&world).await;
        // A page, and another server goes on.
        assert!(world.store.prune(d.inode, 0).await.expect("a page").is_some_and(|next| next > 0));
        invariants::check(&world).await;
        let before = inodes(&world).await;
        assert!(before > 170, "{before}");
        let restarted = world.another().await;
        Keeper::new(Arc::clone(&restarted.store)).round().await.expect("a round");
        invariants::check(&world).await;
        // The root, the file with another name, and the open one.
        assert_eq!(inodes(&world).await, 3);
        assert_eq!(client.lookup(ROOT, "kept").await.expect("it is kept").links, 1);
        assert_eq!(code(client.attr(e.inode).await), Err(Code::StaleHandle));
        client.close(&open, 0).await.expect("a close");
        assert_eq!(inodes(&world).await, 2);
        assert_eq!(world.chunks.stored(), []);
    });
}

#[test]
fn who_may_not_remove_one_entry_removes_nothing() {
    simulate(2, false, |world| async move {
        let mut client = world.client(1);
        client.with(user(10, 100, &[]));
        let d = client.mkdir(ROOT, "d", 0o755).await;
        assert_eq!(code(d), Err(Code::PermissionDenied));
        client.with(root());
        let d = client.mkdir(ROOT, "d", 0o777).await.expect("d").inode;
        let up = client.mkdir(d, "up", 0o1777).await.expect("up").inode;
        let e = client.mkdir(up, "e", 0o777).await.expect("e").inode;
        let top = |name: &str| (d, name.to_owned());
        let remove = async |client: &mut Client, (parent, name): (InodeId, String)| {
            let change = client.change();
            code(world.store.remove_tree(&change, parent, name.as_bytes()).await)
        };
        client.with(user(10, 100, &[]));
        // A directory of root's in a sticky one.
        assert_eq!(remove(&mut client, top("up")).await, Err(Code::NotPermitted));
        assert_eq!(client.lookup(up, "e").await.expect("e").inode, e);
        client.with(root());
        let own = client.mkdir(d, "own", 0o755).await.expect("own").inode;
        client.mkdir(own, "f", 0o755).await.expect("f");
        client.with(user(10, 100, &[]));
        assert_eq!(remove(&mut client, top("own")).await, Err(Code::PermissionDenied));
        client.with(root());
        assert_eq!(remove(&mut client, top("own")).await, Ok(()));
        assert_eq!(remove(&mut client, top("up")).await, Ok(()));
        client.touch(d, "file", 0o644).await.expect("a file");
        assert_eq!(remove(&mut client, top("file")).await, Err(Code::NotDirectory));
        assert_eq!(remove(&mut client, top("none")).await, Err(Code::NotFound));
        Pruner::new(Arc::clone(&world.store)).round().await.expect("a round");
        invariants::check(&world).await;
        assert_eq!(inodes(&world).await, 3);
    });
}
