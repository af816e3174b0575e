//! A tree moves between stores, however often that is interrupted, and is served in one place.

use crate::moving::{Mover, Replace};
use crate::tests::{Client, ROOT, WRITE, World, code, engine, invariants, simulate};
use async_trait::async_trait;
use kiln_kv::{Kv, Transaction};
use kiln_types::{Code, Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A store that is lost after so many more transactions.
struct Fails {
    kv: Arc<dyn Kv>,
    left: AtomicU64,
}

#[async_trait]
impl Kv for Fails {
    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        let left = self.left.fetch_sub(1, Ordering::Relaxed);
        if left == 0 {
            self.left.store(0, Ordering::Relaxed);
            return Err(Error::new(Code::Unreachable, "the store is lost"));
        }
        self.kv.begin().await
    }
}

/// Directories, files, names and attributes: a few pages of them.
async fn make_tree(client: &mut Client) {
    for number in 0..30 {
        let dir = client.mkdir(ROOT, &format!("dir {number}"), 0o755).await.expect("mkdir").inode;
        for file in 0..number {
            let name = format!("file {file}");
            let made = client.create(dir, &name, 0o644, WRITE).await.expect("create");
            client.close(&made, 10 * file).await.expect("close");
            let change = client.change();
            let value = vec![7; 2000];
            let set = client.world.store.set_xattr(
                &change,
                made.attr.inode,
                b"user.large",
                &value,
                Default::default(),
            );
            set.await.expect("an attribute");
        }
    }
}

/// Everything but which ids come next.
async fn tree(world: &World) -> BTreeMap<u8, Vec<(Vec<u8>, Vec<u8>)>> {
    let mut dump = invariants::dump(world).await;
    dump.retain(|kind, _| !b"Aa".contains(kind));
    dump
}

/// Runs a step of a move until nothing interrupts it any more; how often something did.
async fn insist<F>(kv: &Arc<dyn Kv>, mut step: impl FnMut(Arc<Fails>) -> F) -> u64
where
    F: Future<Output = Result<u64>>,
{
    for transactions in 1.. {
        let left = AtomicU64::new(transactions * 3);
        match step(Arc::new(Fails { kv: Arc::clone(kv), left })).await {
            Ok(pairs) => {
                assert!(pairs > 1000, "{pairs} pairs");
                // Whoever does not know that it has ended asks again.
                let left = AtomicU64::new(u64::MAX);
                step(Arc::new(Fails { kv: Arc::clone(kv), left })).await.expect("no harm");
                return transactions - 1;
            }
            Err(error) => assert_eq!(error.code(), Code::Unreachable, "{error}"),
        }
    }
    0
}

async fn export(world: &World, kv: &Arc<dyn Kv>, file: &Path) -> u64 {
    insist(kv, async |kv| Mover::new(&*kv, &world.env, &mut |_, _| ()).export(file).await).await
}

async fn import(world: &World, kv: &Arc<dyn Kv>, file: &Path, replace: Replace) -> u64 {
    let import = async |kv: Arc<Fails>| {
        Mover::new(&*kv, &world.env, &mut |_, _| ()).import(file, replace).await
    };
    insist(kv, import).await
}

#[test]
fn a_tree_moves_and_comes_back_through_interruptions() {
    simulate(1, false, |world| async move {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str| directory.path().join(name);
        let mut client = world.client(1);
        make_tree(&mut client).await;
        let before = tree(&world).await;
        let (old, new) = (Arc::clone(&world.kv), engine::new(&world.env).await);
        assert!(export(&world, &old, &file("one")).await > 2, "it was interrupted");
        // Nobody serves it from here any more, nor from there before it has arrived.
        assert_eq!(code(world.try_another().await.map(drop)), Err(Code::Busy));
        let there = World { kv: Arc::clone(&new), ..world.clone() };
        assert!(import(&world, &new, &file("one"), Replace::Nothing).await > 2);
        assert_eq!(tree(&there).await, before);
        let there = there.another().await;
        invariants::check(&there).await;
        let mut client = Client { world: there.clone(), ..client };
        client.mkdir(ROOT, "made there", 0o755).await.expect("mkdir");
        let after = tree(&there).await;

        // What is in use is not replaced; what has left is.
        let onto = |dump: &str, replace| {
            let (kv, env, file) = (Arc::clone(&old), world.env.clone(), file(dump));
            async move { code(Mover::new(&*kv, &env, &mut |_, _| ()).import(&file, replace).await) }
        };
        export(&world, &new, &file("two")).await;
        assert_eq!(onto("two", Replace::Nothing).await, Err(Code::Exists));
        assert!(import(&world, &old, &file("two"), Replace::Left).await > 2);
        assert_eq!(tree(&world).await, after);
        invariants::check(&world.another().await).await;
        assert_eq!(onto("two", Replace::Left).await, Ok(0), "all of it has come");
        assert_eq!(onto("one", Replace::Left).await, Err(Code::Exists), "it is in use");
        // The other end can be taken back.
        let ends = &mut |_: &str, _| ();
        assert_eq!(Mover::new(&*new, &world.env, ends).reopen().await, Ok(true));
        invariants::check(&there.another().await).await;
    });
}

#[test]
fn what_changes_meanwhile_and_other_dumps_are_found() {
    simulate(2, false, |world| async move {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("dump");
        let mut client = world.client(1);
        make_tree(&mut client).await;
        let kv = Arc::clone(&world.kv);
        // A server that was not stopped goes on.
        let mut written = 0;
        let mut progress = |what: &str, _| written += u64::from(what == "written");
        Mover::new(&*kv, &world.env, &mut progress).export(&file).await.expect("a dump");
        client.mkdir(ROOT, "late", 0o755).await.expect("mkdir");
        assert!(written > 2);
        let export = |file: &Path| {
            let (kv, env, file) = (Arc::clone(&kv), world.env.clone(), file.to_path_buf());
            async move { code(Mover::new(&*kv, &env, &mut |_, _| ()).export(&file).await) }
        };
        assert_eq!(export(&file).await, Err(Code::Corrupt), "the dump lacks it");
        std::fs::write(&file, "a letter").expect("a file");
        assert_eq!(export(&file).await, Err(Code::Invalid), "it is no dump");
        let nothing = engine::new(&world.env).await;
        let nothing = Mover::new(&*nothing, &world.env, &mut |_, _| ()).export(&file).await;
        assert_eq!(code(nothing), Err(Code::NotFound));
    });
}

/// FoundationDB has backups of its own.
#[cfg(not(feature = "test-foundationdb"))]
#[test]
fn a_backup_that_nobody_goes_on_with_lets_go() {
    simulate(7, false, |world| async move {
        let begun = world.store.backup(None, &[]).await.expect("a page");
        let other = world.store.backup(None, &[]).await.err().map(|error| error.code());
        assert_eq!(other, Some(Code::Busy));
        world.env.sleep(std::time::Duration::from_secs(61)).await;
        world.store.forget_idle_backup();
        let late = world.store.backup(Some(begun.id), &[]).await.err().map(|error| error.code());
        assert_eq!(late, Some(Code::StaleHandle));
    });
}
