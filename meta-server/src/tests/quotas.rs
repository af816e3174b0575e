//! Counting a tree that is in use, limits of several servers, and what writers are granted.

use super::{Client, READ, ROOT, WRITE, World, abandon, code, invariants, root, simulate, user};
use crate::counter::Counter;
use crate::store::{Opened, QuotaChange, Renewal, SetAttrArgs};
use kiln_types::{Account, Code, Encoder, InodeId, QuotaLimits, Result, Usage};
use std::sync::Arc;
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn bytes(limit: u64) -> QuotaChange {
    QuotaChange::Set(QuotaLimits { bytes: Some(limit), inodes: None })
}

fn inodes(limit: u64) -> QuotaChange {
    QuotaChange::Set(QuotaLimits { bytes: None, inodes: Some(limit) })
}

impl Client {
    async fn quota(&mut self, account: Account, to: QuotaChange) {
        let change = self.change();
        self.world.store.set_quota(&change, account, to).await.expect("a quota");
    }

    async fn used(&self, account: Account) -> Usage {
        self.world.store.quota(&root(), account).await.expect("usage").usage
    }

    async fn grow(&self, opened: &Opened, end: u64, promised: u64) -> Result<Opened> {
        let session = opened.session.expect("an open file");
        let wanted = Renewal { end, promised, capability: opened.capability.clone() };
        self.world.store.renew(&self.who, self.id, opened.attr.inode, session, &wanted).await
    }
}

/// A directory with two levels of directories below it, and files in all.
async fn tree(client: &mut Client) -> (InodeId, Vec<InodeId>) {
    let top = client.mkdir(ROOT, "top", 0o755).await.expect("mkdir").inode;
    let mut directories = vec![top];
    for one in 0..3 {
        let name = format!("d{one}");
        let below = client.mkdir(top, &name, 0o755).await.expect("mkdir").inode;
        directories.push(below);
        directories.push(client.mkdir(below, &name, 0o755).await.expect("mkdir").inode);
    }
    for (at, directory) in directories.iter().enumerate() {
        for file in 0..if at == 2 { 300 } else { 5 } {
            client.touch(*directory, &format!("f{file}"), 0o644).await.expect("a file");
        }
    }
    (top, directories)
}

#[test]
fn a_tree_that_is_in_use_is_counted_over_restarts() {
    for seed in 0..40 {
        simulate(seed, false, move |world| in_use(world, seed));
    }
}

/// Steps of counting between changes of a tree; servers that stop in the middle of a step.
async fn in_use(world: World, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut client = world.client(1);
    let (top, directories) = tree(&mut client).await;
    let account = Account::Directory(top);
    let mut sets = vec![inodes(10_000), QuotaChange::Clear, inodes(20_000)];
    let mut steps = 0;
    while let Some(to) = sets.pop() {
        if sets.len() == 1 {
            client.quota(Account::Directory(directories[3]), bytes(MIB)).await;
        }
        client.quota(account, to).await;
        for _ in 0..rng.u32(..60) {
            let directory = *rng.choice(&directories).expect("one");
            let name = format!("f{}", rng.u8(..8));
            let elsewhere = *rng.choice(&directories).expect("one");
            let moved = format!("f{}", rng.u8(..8));
            steps += 1;
            let outcome = match rng.u8(..6) {
                0 => client.touch(directory, &format!("n{steps}"), 0o644).await.map(drop),
                1 => client.mkdir(directory, &format!("n{steps}"), 0o755).await.map(drop),
                2 => client.unlink(directory, &name).await,
                3 => client.rename((directory, &name), (elsewhere, &moved)).await,
                4 => client.rename((directory, "d1"), (directory, "renamed")).await,
                _ => {
                    let page = world.store.uncounted().await.expect("a page");
                    if let Some(next) = page.first() {
                        let _lost = abandon(world.store.count(*next), rng.u64(..40)).await;
                    }
                    Ok(())
                }
            };
            let fine = [None, Some(Code::NotFound), Some(Code::OtherQuota)];
            assert!(fine.contains(&code(outcome).err()));
            if steps % 7 == 0 {
                invariants::check(&world).await;
            }
        }
    }
    Counter::new(Arc::clone(&world.store)).round().await.expect("counted");
    invariants::check(&world).await;
    // Files have one name each here: all are counted where they are.
    let mut expected = count(&client, top).await;
    let inner = count(&client, directories[3]).await;
    expected -= inner;
    assert_eq!(client.used(account).await.inodes, expected);
    assert_eq!(client.used(Account::Directory(directories[3])).await.inodes, inner);
}

#[test]
fn inodes_of_earlier_versions_are_counted_once() {
    simulate(3, false, |world| async move {
        let mut client = world.client(1);
        let (top, directories) = tree(&mut client).await;
        let long = client.create(top, "long", 0o644, WRITE).await.expect("a file");
        client.close(&long, 5 * MIB).await.expect("a report");
        make_old(&world).await;
        // Some are written anew, or removed, before the walk comes to them.
        client.truncate(long.attr.inode, MIB).await.expect("shorter");
        client.unlink(directories[1], "f0").await.expect("unlink");
        client.rename((directories[1], "f1"), (directories[3], "moved")).await.expect("rename");
        client.touch(top, "new", 0o644).await.expect("a file");
        client.quota(Account::Directory(directories[1]), inodes(10_000)).await;
        let quota = world.store.quota(&root(), Account::User(0)).await.expect("a quota");
        assert!(quota.counting && quota.usage.inodes < 10, "{quota:?}");
        let another = world.another().await;
        Counter::new(Arc::clone(&another.store)).round().await.expect("counted");
        invariants::check(&world).await;
        let quota = world.store.quota(&root(), Account::User(0)).await.expect("a quota");
        let inodes = world.store.inode_count().await.expect("a number");
        assert_eq!(quota.usage, Usage { bytes: MIB, inodes });
        assert!(!quota.counting);
    });
}

/// Makes the tree one that a version before quotas wrote.
async fn make_old(world: &World) {
    let dump = invariants::dump(world).await;
    let mut transaction = world.kv.begin().await.expect("a transaction");
    for (key, value) in &dump[&b'I'] {
        let body = &value[8..value.len() - 8];
        let mut record = Encoder::new();
        record.raw(&value[..2]).u16(4).bytes(body);
        transaction.set(key, &record.finish());
    }
    for (key, _) in dump[&b'V'].iter().chain(&dump[&b'Z']) {
        transaction.clear(key);
    }
    transaction.commit().await.expect("a commit");
}

/// How many inodes there are at and below a directory.
async fn count(client: &Client, top: InodeId) -> u64 {
    let (mut left, mut all) = (vec![top], 0);
    while let Some(at) = left.pop() {
        all += 1;
        if let Ok((entries, _)) = client.world.store.read_dir(&root(), at, 0, 0, false).await {
            left.extend(entries.into_iter().map(|entry| entry.inode));
        }
    }
    all
}

#[test]
fn a_limit_reaches_other_servers_and_concerns_whom_it_should() {
    simulate(1, false, |world| async move {
        let other = world.another().await;
        let (mut one, mut two) = (world.client(1), other.client(2));
        two.touch(ROOT, "before", 0o644).await.expect("no limit");
        let user = user(10, 20, &[]);
        let open_to_all = SetAttrArgs { mode: Some(0o777), ..SetAttrArgs::default() };
        let change = one.change();
        world.store.set_attr(&change, ROOT, &open_to_all).await.expect("chmod");
        one.quota(Account::User(10), inodes(1)).await;
        world.env.sleep(Duration::from_secs(1)).await;
        two.with(user.clone()).touch(ROOT, "first", 0o644).await.expect("one file");
        assert_eq!(code(two.touch(ROOT, "second", 0o644).await), Err(Code::QuotaExceeded));
        assert_eq!(code(two.mkdir(ROOT, "second", 0o755).await), Err(Code::QuotaExceeded));
        one.touch(ROOT, "second", 0o644).await.expect("another user");

        // Only root sets quotas; others see what is theirs.
        let change = two.change();
        let set = other.store.set_quota(&change, Account::User(10), QuotaChange::Clear).await;
        assert_eq!(code(set), Err(Code::NotPermitted));
        let own = other.store.quota(&user, Account::User(10)).await.expect("their own");
        assert_eq!((own.usage.inodes, own.limits.inodes), (1, Some(1)));
        for account in [Account::User(0), Account::Group(21)] {
            assert_eq!(code(other.store.quota(&user, account).await), Err(Code::NotPermitted));
        }
        one.quota(Account::Group(21), bytes(0)).await;
        let listed = other.store.quotas(&user, None).await.expect("a list").0;
        assert_eq!(listed, [own]);
        let mut confined = root();
        confined.subtree = Some("/".into());
        let change = one.with(confined).change();
        let set = world.store.set_quota(&change, Account::User(10), QuotaChange::Clear).await;
        assert_eq!(code(set), Err(Code::NotPermitted), "a confined root");
    });
}

#[test]
fn a_writer_keeps_what_it_was_granted_and_gets_no_more() {
    simulate(2, false, |world| async move {
        let (mut one, mut two) = (world.client(1), world.client(2));
        let dir = one.mkdir(ROOT, "d", 0o755).await.expect("mkdir").inode;
        let free = one.create(ROOT, "free", 0o644, WRITE).await.expect("a file");
        assert_eq!(free.granted, None);
        one.quota(Account::Directory(dir), bytes(10 * MIB)).await;
        assert_eq!(one.open(free.attr.inode, WRITE).await.expect("open").granted, None);
        let a = one.create(dir, "a", 0o644, WRITE).await.expect("a file");
        let b = two.create(dir, "b", 0o644, WRITE).await.expect("a file");
        assert_eq!(a.granted, Some(10 * MIB / 8));
        let a = one.grow(&a, 7 * MIB, 0).await.expect("there is room");
        assert!((7 * MIB..10 * MIB).contains(&a.granted.expect("a bound")));
        // The other one takes almost everything; what the first one promised it may still write.
        let b = two.grow(&b, 9 * MIB, 0).await.expect("nobody has reported yet");
        two.sync(&b, 9 * MIB).await.expect("a report");
        assert_eq!(code(one.grow(&a, 8 * MIB, 7 * MIB).await), Err(Code::QuotaExceeded));
        let a = one.grow(&a, 0, 7 * MIB).await.expect("a renewal");
        assert_eq!(a.granted, Some(7 * MIB));
        // Nobody is believed who does not show what was granted.
        let other = one.grow(&b, 0, 100 * MIB).await;
        assert_eq!(code(other), Err(Code::StaleHandle));
        let forged = Opened { capability: b.capability.clone(), ..a.clone() };
        assert_eq!(one.grow(&forged, 0, 7 * MIB).await.expect("less").granted, Some(MIB));
        one.sync(&a, 7 * MIB).await.expect("a report is never refused");
        assert_eq!(one.used(Account::Directory(dir)).await, Usage { bytes: 16 * MIB, inodes: 3 });
        let longer = one.truncate(a.attr.inode, 7 * MIB + 1).await;
        assert_eq!(code(longer), Err(Code::QuotaExceeded));
        one.truncate(a.attr.inode, 0).await.expect("shorter");
        let reader = one.open(a.attr.inode, READ).await.expect("open");
        assert_eq!(reader.granted, None);
        one.unlink(dir, "b").await.expect("unlink");
        assert_eq!(one.used(Account::Directory(dir)).await.bytes, 9 * MIB, "it is open");
        two.close(&b, 9 * MIB).await.expect("close");
        assert_eq!(one.used(Account::Directory(dir)).await, Usage { bytes: 0, inodes: 2 });
        invariants::check(&world).await;
    });
}
