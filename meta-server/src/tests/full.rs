//! An engine that has room for little else than removals.

use super::{CreateArgs, OpenArgs, READ, ROOT, WRITE, World, code, open_store, simulate};
use async_trait::async_trait;
use kiln_kv::{Kv, Transaction};
use kiln_types::{Code, Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An engine that may be short of room.
struct Limited {
    kv: Arc<dyn Kv>,
    is_short: AtomicBool,
}

#[async_trait]
impl Kv for Limited {
    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        self.kv.begin().await
    }

    fn may_grow(&self) -> Result<()> {
        match self.is_short.load(Ordering::Relaxed) {
            true => Err(Error::new(Code::NoSpace, "short of room")),
            false => Ok(()),
        }
    }
}

#[test]
fn names_are_refused_and_all_else_goes_on() {
    simulate(1, false, |world| async move {
        let limited = Arc::new(Limited { kv: world.kv.clone(), is_short: AtomicBool::new(false) });
        let kv: Arc<dyn Kv> = limited.clone();
        let store = Arc::new(open_store(&world.env, &kv, &world.chunks).await);
        let mut client = World { kv, store, ..world }.client(1);
        let file = client.touch(ROOT, "file", 0o644).await.expect("a file");
        client.mkdir(ROOT, "dir", 0o755).await.expect("a directory");

        limited.is_short.store(true, Ordering::Relaxed);
        assert_eq!(code(client.touch(ROOT, "new", 0o644).await), Err(Code::NoSpace));
        assert_eq!(code(client.mkdir(ROOT, "more", 0o755).await), Err(Code::NoSpace));
        let change = client.change();
        let new =
            |name: &[u8]| CreateArgs { parent: ROOT, name: name.to_vec(), ..CreateArgs::default() };
        let many = client.world.store.create_many(&change, &[new(b"x"), new(b"y")], false).await;
        assert_eq!(code(many).err(), Some(Code::NoSpace));
        let there = client.create(ROOT, "file", 0o644, OpenArgs { write: true, ..READ }).await;
        let opened = there.expect("a file that is there is opened");
        client.sync(&opened, 100).await.expect("a report");
        client.close(&opened, 100).await.expect("a close");
        client.open(file.inode, WRITE).await.expect("an open");
        client.truncate(file.inode, 0).await.expect("a truncation");
        client.rename((ROOT, "file"), (ROOT, "other")).await.expect("a rename");
        client.unlink(ROOT, "other").await.expect("an unlink");

        limited.is_short.store(false, Ordering::Relaxed);
        client.touch(ROOT, "new", 0o644).await.expect("there is room again");
    });
}
