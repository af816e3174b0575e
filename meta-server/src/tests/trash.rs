//! The trash and open files, dead writers, confined callers, quotas and several servers.

use super::{Client, READ, ROOT, WRITE, World, code, invariants, root, simulate, user};
use crate::Keeper;
use crate::expirer::Expirer;
use crate::pruner::Pruner;
use crate::store::{Change, QuotaChange, Who};
use kiln_types::{Account, Code, InodeId, QuotaLimits, Result, TrashItem};
use std::sync::Arc;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

impl Client {
    async fn keep(&mut self, keep: Option<Duration>) {
        let change = self.change();
        self.world.store.set_trash(&change, keep).await.expect("a setting");
    }

    async fn trash(&self, all: bool) -> Vec<TrashItem> {
        let (mut items, mut after) = (Vec::new(), None);
        loop {
            let page = self.world.store.trash_items(&self.who, all, after).await;
            let (page, next) = page.expect("a page");
            items.extend(page);
            match next {
                Some(next) => after = Some(next),
                None => return items,
            }
        }
    }

    async fn restore(&mut self, item: InodeId, to: Option<(InodeId, &[u8])>) -> Result<()> {
        let change = self.change();
        self.world.store.restore(&change, item, to).await.map(drop)
    }

    async fn empty(&mut self, items: &[InodeId]) -> Result<()> {
        let change = self.change();
        self.world.store.empty_trash(&change, items).await
    }

    async fn remove_tree(&mut self, parent: InodeId, name: &str) {
        let change = self.change();
        self.world.store.remove_tree(&change, parent, name.as_bytes()).await.expect("a removal");
    }
}

fn keeper(world: &World) -> Keeper {
    Keeper::new(Arc::clone(&world.store))
}

#[test]
fn who_has_a_file_open_keeps_it_in_the_trash_and_after_it() {
    simulate(1, false, |world| async move {
        let (mut client, mut keeper) = (world.client(1), keeper(&world));
        client.keep(Some(HOUR)).await;
        let file = client.create(ROOT, "f", 0o644, WRITE).await.expect("a file");
        let inode = file.attr.inode;
        client.unlink(ROOT, "f").await.expect("an unlink");
        assert_eq!(code(client.lookup(ROOT, "f").await), Err(Code::NotFound));
        world.chunks.write(&file.attr, file.attr.epoch, 5, 7).expect("a write");
        let attr = client.close(&file, 6).await.expect("a close");
        assert_eq!((attr.links, attr.length), (0, 6));
        let change = client.change();
        let named = world.store.link(&change, inode, ROOT, b"g").await;
        assert_eq!(code(named), Err(Code::NotFound), "only a restore names it");
        keeper.round().await.expect("a round");
        invariants::check(&world).await;
        assert_eq!(world.store.trash().await.expect("usage").usage.bytes, 6);
        client.restore(inode, None).await.expect("it is there");
        let attr = client.lookup(ROOT, "f").await.expect("its name");
        assert_eq!((attr.inode, attr.links, world.chunks.read(&attr, 5)), (inode, 1, 7));
        // Open when its time has come, it lives until it is closed.
        let reader = client.open(inode, READ).await.expect("an open");
        client.unlink(ROOT, "f").await.expect("an unlink");
        client.empty(&[inode]).await.expect("it goes");
        assert_eq!(code(client.empty(&[inode]).await), Err(Code::NotFound));
        assert_eq!(code(client.restore(inode, None).await), Err(Code::NotFound));
        invariants::check(&world).await;
        client.renew(&reader).await.expect("it is open");
        client.close(&reader, 0).await.expect("a close");
        world.env.sleep(Duration::from_secs(80)).await;
        keeper.round().await.expect("a round");
        assert_eq!(world.chunks.stored(), []);
        invariants::check(&world).await;
    });
}

#[test]
fn a_dead_writers_file_in_the_trash_ends_where_storage_says() {
    simulate(2, false, |world| async move {
        let (dead, mut other) = (&mut world.client(1), world.client(2));
        other.keep(Some(HOUR)).await;
        let file = dead.create(ROOT, "f", 0o644, WRITE).await.expect("a file");
        world.chunks.write(&file.attr, file.attr.epoch, 9, 7).expect("a write");
        other.unlink(ROOT, "f").await.expect("an unlink");
        world.store.keep_alive(&root(), dead.id, true).await.expect("a goodbye");
        keeper(&world).round().await.expect("a round");
        other.restore(file.attr.inode, None).await.expect("it is there");
        let attr = other.lookup(ROOT, "f").await.expect("its name");
        assert_eq!((attr.length, world.chunks.read(&attr, 9)), (10, 7));
        invariants::check(&world).await;
    });
}

/// What is due goes, and what was in it.
async fn expire(world: &World) {
    Expirer::new(Arc::clone(&world.store)).round().await.expect("expiry");
    Pruner::new(Arc::clone(&world.store)).round().await.expect("a round");
}

/// 300 files one by one, and a tree of 200.
async fn fill(client: &mut Client) {
    let d = client.mkdir(ROOT, "d", 0o755).await.expect("d").inode;
    for number in 0..300 {
        client.touch(ROOT, &format!("f{number}"), 0o644).await.expect("a file");
    }
    for number in 0..200 {
        client.touch(d, &format!("f{number}"), 0o644).await.expect("a file");
    }
    for number in 0..300 {
        client.unlink(ROOT, &format!("f{number}")).await.expect("an unlink");
    }
    client.remove_tree(ROOT, "d").await;
}

#[test]
fn what_is_old_enough_goes_whichever_server_looks_and_the_setting_of_now_counts() {
    simulate(3, false, |world| async move {
        let mut client = world.client(1);
        client.keep(Some(HOUR)).await;
        fill(&mut client).await;
        let items = client.trash(true).await;
        assert!(items.len() == 301 && items.is_sorted_by_key(|item| item.removed));
        let other = world.another().await;
        world.env.sleep(HOUR - Duration::from_secs(60)).await;
        expire(&other).await;
        assert_eq!(client.trash(true).await.len(), 301);
        // Longer, and off: what is there stays for as long as was said last, nothing else comes.
        client.keep(Some(2 * HOUR)).await;
        client.keep(None).await;
        world.env.sleep(HOUR).await;
        client.touch(ROOT, "late", 0o644).await.expect("a file");
        client.unlink(ROOT, "late").await.expect("an unlink");
        expire(&other).await;
        assert_eq!(client.trash(true).await.len(), 301);
        client.keep(Some(HOUR)).await;
        client.touch(ROOT, "now", 0o644).await.expect("a file");
        let change = Change { past_trash: true, ..client.change() };
        world.store.unlink(&change, ROOT, b"now").await.expect("an unlink");
        client.touch(ROOT, "new", 0o644).await.expect("a file");
        client.unlink(ROOT, "new").await.expect("an unlink");
        expire(&other).await;
        let left = client.trash(true).await;
        assert_eq!(left.iter().map(|item| &item.name[..]).collect::<Vec<_>>(), [b"new"]);
        invariants::check(&world).await;
        assert_eq!(world.store.inode_count().await, Ok(2));
        for (keep, who) in [(Duration::ZERO, root()), (HOUR, user(7, 7, &[]))] {
            let change = client.with(who).change();
            let set = world.store.set_trash(&change, Some(keep)).await;
            assert!(matches!(code(set), Err(Code::Invalid | Code::NotPermitted)));
        }
    });
}

#[test]
fn a_confined_caller_has_the_trash_of_its_directory() {
    simulate(4, false, |world| async move {
        let mut owner = world.client(1);
        owner.keep(Some(HOUR)).await;
        let home = owner.mkdir(ROOT, "home", 0o777).await.expect("home").inode;
        let inside = owner.mkdir(home, "ann", 0o777).await.expect("ann").inode;
        let below = owner.mkdir(inside, "d", 0o777).await.expect("d").inode;
        let mut ann = world.client(2);
        ann.with(Who { subtree: Some("/home/ann".into()), ..root() });
        let file = ann.create(below, "mine", 0o600, WRITE).await.expect("a file");
        let mine = file.attr.inode;
        ann.unlink(below, "mine").await.expect("an unlink");
        assert_eq!(ann.attr(mine).await.expect("it is open").links, 0);
        let secret = owner.touch(home, "secret", 0o600).await.expect("a file").inode;
        owner.unlink(home, "secret").await.expect("an unlink");
        let seen = ann.trash(true).await;
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].path(), Some(b"/d/mine".to_vec()));
        assert_eq!(owner.trash(true).await.len(), 2);
        assert_eq!(code(ann.restore(secret, Some((below, b"x"))).await), Err(Code::NotAuthorized));
        assert_eq!(code(ann.empty(&[secret]).await), Err(Code::NotAuthorized));
        assert_eq!(code(ann.restore(mine, Some((home, b"x"))).await), Err(Code::NotAuthorized));
        let change = ann.change();
        let set = world.store.set_trash(&change, None).await;
        assert_eq!(code(set), Err(Code::NotPermitted));
        ann.restore(mine, Some((ROOT, b"here"))).await.expect("its own directory");
        assert_eq!(ann.lookup(ROOT, "here").await.expect("it").inode, mine);
        // A whole tree, and what was removed in it before, which is where it was.
        ann.unlink(ROOT, "here").await.expect("an unlink");
        owner.remove_tree(home, "ann").await;
        assert_eq!(code(owner.restore(mine, None).await), Err(Code::NotFound));
        assert_eq!(code(owner.restore(mine, Some((below, b"x"))).await), Err(Code::NotFound));
        owner.restore(inside, None).await.expect("the tree");
        ann.restore(mine, None).await.expect("it has its directory again");
        invariants::check(&world).await;
    });
}

#[test]
fn a_tree_comes_back_also_when_its_directory_has_another_quota_now() {
    simulate(5, false, |world| async move {
        let (mut client, mut keeper) = (world.client(1), keeper(&world));
        client.keep(Some(HOUR)).await;
        let d = client.mkdir(ROOT, "d", 0o755).await.expect("d").inode;
        let e = client.mkdir(d, "e", 0o755).await.expect("e").inode;
        client.touch(e, "f", 0o644).await.expect("f");
        let account = Account::Directory(d);
        let used = async || world.store.quota(&root(), account).await.expect("a quota").usage;
        client.remove_tree(d, "e").await;
        let limits = QuotaLimits { bytes: None, inodes: Some(10) };
        let change = client.change();
        world.store.set_quota(&change, account, QuotaChange::Set(limits)).await.expect("a quota");
        keeper.round().await.expect("counted");
        assert_eq!(used().await.inodes, 1);
        let elsewhere = client.mkdir(d, "else", 0o755).await.expect("else").inode;
        assert_eq!(code(client.restore(e, Some((elsewhere, b""))).await), Err(Code::OtherQuota));
        client.restore(e, None).await.expect("home");
        keeper.round().await.expect("counted");
        assert_eq!(used().await.inodes, 4);
        // In the trash it counts as before.
        client.remove_tree(d, "e").await;
        assert_eq!(used().await.inodes, 4);
        client.empty(&[e]).await.expect("it goes");
        keeper.round().await.expect("a round");
        assert_eq!(used().await.inodes, 2);
        invariants::check(&world).await;
    });
}
