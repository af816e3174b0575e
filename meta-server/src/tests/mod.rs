//! Tests of the store as a whole.

mod batch;
mod chunks;
mod concurrent;
pub(crate) mod engine;
mod full;
pub(crate) mod invariants;
mod locks;
mod model;
mod moving;
mod open_files;
mod permissions;
mod prune;
mod quotas;
mod random;
mod readers;
mod trash;
mod tree;
mod truncation;
mod watch;
mod watcher;

use crate::placement::{Table, Tables};
use crate::store::{
    Change, CreateArgs, OpenArgs, Opened, RenameArgs, Renewal, SetAttrArgs, Settings, Store,
    StoreParts, Who, Written,
};
use chunks::FakeChunks;
use kiln_env::{Env, Executor};
use kiln_kv::Kv;
use kiln_types::{
    Attr, Caller, ClientId, ClusterId, Code, InodeId, KeyId, RequestId, Result, Secret, ServerKey,
};
use kiln_wire::CapabilityKey;
use std::future::Future;
use std::sync::Arc;
use std::task::Poll;

pub(crate) const ROOT: InodeId = InodeId::ROOT;
/// The chunk size of files in tests.
pub(crate) const CHUNK: u64 = 64 << 10;

/// One chain table for good.
struct OneTable;

impl Tables for OneTable {
    fn newest(&self) -> Option<Table> {
        Some(Table { id: 1.into(), version: 1, chains: 6 })
    }
}

pub(crate) fn key() -> CapabilityKey {
    let secret = Secret([3; 32]);
    CapabilityKey::derive(&ServerKey { cluster: ClusterId(1), id: KeyId(1), secret })
}

/// A store over a kv engine, with storage beside it.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) env: Env,
    pub(crate) kv: Arc<dyn Kv>,
    pub(crate) chunks: Arc<FakeChunks>,
    pub(crate) store: Arc<Store>,
}

impl World {
    pub(crate) async fn new(env: Env) -> Self {
        let kv = engine::new(&env).await;
        let chunks = Arc::new(FakeChunks::new(&env));
        let store = Arc::new(open_store(&env, &kv, &chunks).await);
        Self { env, kv, chunks, store }
    }

    /// Another server over the same kv, or the same one started again.
    pub(crate) async fn another(&self) -> Self {
        let store = Arc::new(open_store(&self.env, &self.kv, &self.chunks).await);
        Self { store, ..self.clone() }
    }

    /// Another one, unless the tree may not be served.
    pub(crate) async fn try_another(&self) -> Result<Store> {
        Store::open(parts(&self.env, &self.kv, &self.chunks), settings()).await
    }

    /// With names that often collide, and with other servers.
    pub(crate) async fn narrow(self, bits: u32) -> Self {
        let store = open_store(&self.env, &self.kv, &self.chunks).await;
        let store = Arc::new(store.with_narrow_names(bits).among_others());
        Self { store, ..self }
    }

    pub(crate) fn client(&self, id: u128) -> Client {
        Client { world: self.clone(), id: ClientId(id), who: root(), sequence: 0 }
    }
}

async fn open_store(env: &Env, kv: &Arc<dyn Kv>, chunks: &Arc<FakeChunks>) -> Store {
    Store::open(parts(env, kv, chunks), settings()).await.expect("an open store")
}

fn parts(env: &Env, kv: &Arc<dyn Kv>, chunks: &Arc<FakeChunks>) -> StoreParts {
    StoreParts {
        kv: Arc::clone(kv),
        env: env.clone(),
        chunks: Arc::clone(chunks) as _,
        tables: Arc::new(OneTable),
        key: key(),
    }
}

fn settings() -> Settings {
    let new_file = kiln_types::LayoutWish { chunk_bytes: CHUNK as u32, stripe: 4 };
    Settings { new_file, ..Settings::default() }
}

pub(crate) fn root() -> Who {
    user(0, 0, &[])
}

pub(crate) fn user(uid: u32, gid: u32, groups: &[u32]) -> Who {
    Who { caller: Caller { uid, gid, groups: groups.to_vec() }, ..Who::default() }
}

/// A client that sends one request after the other.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) world: World,
    pub(crate) id: ClientId,
    pub(crate) who: Who,
    sequence: u64,
}

impl Client {
    pub(crate) fn with(&mut self, who: Who) -> &mut Self {
        self.who = who;
        self
    }

    /// The next request.
    pub(crate) fn change(&mut self) -> Change {
        self.sequence += 1;
        let request = RequestId::in_slot(0, self.sequence);
        Change { who: self.who.clone(), client: self.id, request, past_trash: false }
    }

    pub(crate) async fn mkdir(&mut self, parent: InodeId, name: &str, mode: u32) -> Result<Attr> {
        let change = self.change();
        self.world.store.make_dir(&change, parent, name.as_bytes(), mode).await
    }

    pub(crate) async fn create(
        &mut self,
        parent: InodeId,
        name: &str,
        mode: u32,
        open: OpenArgs,
    ) -> Result<Opened> {
        let name = name.as_bytes().to_vec();
        let args = CreateArgs { parent, name, mode, open, ..CreateArgs::default() };
        let change = self.change();
        self.world.store.create(&change, &args).await
    }

    /// An empty file that nobody has open.
    pub(crate) async fn touch(&mut self, parent: InodeId, name: &str, mode: u32) -> Result<Attr> {
        Ok(self.create(parent, name, mode, OpenArgs::default()).await?.attr)
    }

    pub(crate) async fn unlink(&mut self, parent: InodeId, name: &str) -> Result<()> {
        let change = self.change();
        self.world.store.unlink(&change, parent, name.as_bytes()).await.map(drop)
    }

    pub(crate) async fn open(&mut self, inode: InodeId, args: OpenArgs) -> Result<Opened> {
        let change = self.change();
        self.world.store.open_file(&change, inode, args).await
    }

    pub(crate) async fn close(&mut self, opened: &Opened, end: u64) -> Result<Attr> {
        let (change, session) = (self.change(), opened.session.expect("an open file"));
        let written = Written { end, epoch: opened.attr.epoch, ..Written::default() };
        self.world.store.close(&change, opened.attr.inode, session, &written).await
    }

    pub(crate) async fn sync(&mut self, opened: &Opened, end: u64) -> Result<Attr> {
        let (change, session) = (self.change(), opened.session.expect("an open file"));
        let written = Written { end, epoch: opened.attr.epoch, ..Written::default() };
        self.world.store.sync(&change, opened.attr.inode, session, &written).await
    }

    pub(crate) async fn renew(&self, opened: &Opened) -> Result<Opened> {
        let session = opened.session.expect("an open file");
        let (inode, wanted) = (opened.attr.inode, Renewal::default());
        self.world.store.renew(&self.who, self.id, inode, session, &wanted).await
    }

    pub(crate) async fn truncate(&mut self, inode: InodeId, length: u64) -> Result<Attr> {
        let args = SetAttrArgs { length: Some(length), ..SetAttrArgs::default() };
        let change = self.change();
        self.world.store.set_attr(&change, inode, &args).await
    }

    pub(crate) async fn rename(
        &mut self,
        (parent, name): (InodeId, &str),
        (new_parent, new_name): (InodeId, &str),
    ) -> Result<()> {
        let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        let args = RenameArgs { parent, name, new_parent, new_name, ..RenameArgs::default() };
        let change = self.change();
        self.world.store.rename(&change, &args).await.map(drop)
    }

    pub(crate) async fn attr(&self, inode: InodeId) -> Result<Attr> {
        self.world.store.get_attr(&self.who, inode).await
    }

    pub(crate) async fn lookup(&self, parent: InodeId, name: &str) -> Result<Attr> {
        self.world.store.lookup(&self.who, parent, name.as_bytes()).await
    }
}

pub(crate) const READ: OpenArgs = OpenArgs { read: true, write: false, truncate: false };
pub(crate) const WRITE: OpenArgs = OpenArgs { read: false, write: true, truncate: false };

pub(crate) fn code<T>(result: Result<T>) -> Result<T, Code> {
    result.map_err(|error| error.code())
}

/// Runs a test with one store on the seeded executor.
pub(crate) fn simulate<F>(seed: u64, faults: bool, test: impl FnOnce(World) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let executor = Executor::new(seed);
    let env = executor.env();
    executor.set_faults(faults);
    executor.run(async move { test(World::new(env).await).await });
}

/// Polls `future` at most `polls` times, then drops it: the server or its answer is lost.
pub(crate) async fn abandon<F: Future>(future: F, polls: u64) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    std::future::poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}
