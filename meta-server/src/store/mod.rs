//! The file system: operations as transactions.

mod admin;
mod attr;
mod backup;
mod batch;
mod clients;
mod count;
mod cut;
mod dir;
pub(crate) mod garbage;
mod ids;
mod limits;
pub(crate) mod lock;
mod lookup;
mod names;
mod open;
pub(crate) mod prune;
mod quota;
pub(crate) mod readers;
mod reading;
mod rename;
pub(crate) mod trash;
mod xattr;

pub use admin::InodeChunks;
pub use attr::{SetAttrArgs, SetTime};
pub use batch::{CloseArgs, Report};
pub use dir::Listed;
pub use lock::LockArgs;
pub use open::{CreateArgs, OpenArgs, Opened, Renewal, Written};
pub use quota::QuotaChange;
pub use rename::RenameArgs;
pub use xattr::XattrMode;

use crate::chunks::ChunkService;
use crate::holds::Shown;
use crate::keys::Keys;
use crate::moving;
use crate::name::NameHash;
use crate::placement::Tables;
use crate::quota::{Ledger, accounts};
use crate::records::{Answer, Body, Directory, Format, Inode, Record};
use crate::tx::Tx;
use crate::watch::{Ask, Changes, Hub};
use garbage::Handover;
use ids::Ids;
use kiln_env::Env;
use kiln_kv::{Body as Boxed, Kv, Transaction, transact};
use kiln_types::LayoutWish;
use kiln_types::{
    Attr, Caller, ClientId, Code, Error, InodeId, RequestId, Result, Timestamp, TreeId,
};
use kiln_wire::{CLOCK_SKEW_NS, CapabilityKey};
use limits::KnownLimits;
use readers::{Departure, Readers};
pub(crate) use reading::Claim;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// The longest file, in bytes: what `off_t` can say.
pub const LENGTH_MAX: u64 = i64::MAX as u64;

/// How often an operation finishes a truncation before its own work.
const CUTS_MAX: u32 = 8;

/// What a store is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The tree.
    pub tree: TreeId,
    /// The layout of new files where neither the request nor the directory says otherwise.
    pub new_file: LayoutWish,
    /// How long a capability opens chunks.
    pub capability: Duration,
    /// A client that was silent for this long is retired.
    pub lease: Duration,
    /// Owner and group of a new tree's root directory.
    pub root_owner: (u32, u32),
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tree: TreeId::MAIN,
            new_file: LayoutWish { chunk_bytes: kiln_types::CHUNK_BYTES_DEFAULT, stripe: 8 },
            capability: Duration::from_secs(60),
            lease: Duration::from_secs(60),
            root_owner: (0, 0),
        }
    }
}

/// As whom a request is made, and the directory that it may not leave.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Who {
    /// The user.
    pub caller: Caller,
    /// The name of the credential with which the request came; empty: a server's own.
    pub credential: String,
    /// The absolute path of a directory that is this caller's root; `None`: the whole tree.
    pub subtree: Option<String>,
}

/// A request to change something. Its retries carry the same ids and are answered as the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// As whom.
    pub who: Who,
    /// The client incarnation.
    pub client: ClientId,
    /// The request: see [`RequestId::in_slot`].
    pub request: RequestId,
    /// What loses its last name goes for good, also when there is a trash.
    pub past_trash: bool,
}

/// What a store is made of.
pub struct StoreParts {
    /// Where everything is kept.
    pub kv: Arc<dyn Kv>,
    /// The seams.
    pub env: Env,
    /// Storage.
    pub chunks: Arc<dyn ChunkService>,
    /// The chain table.
    pub tables: Arc<dyn Tables>,
    /// The key that signs capabilities.
    pub key: CapabilityKey,
}

/// The file system of one tree.
pub struct Store {
    pub(crate) kv: Arc<dyn Kv>,
    pub(crate) env: Env,
    pub(crate) chunks: Arc<dyn ChunkService>,
    tables: Arc<dyn Tables>,
    key: CapabilityKey,
    pub(crate) settings: Settings,
    pub(crate) keys: Keys,
    pub(crate) names: NameHash,
    ids: Ids,
    /// What committed changes left for the keeper.
    pub(crate) handover: Handover,
    /// A tree was removed.
    pub(crate) detached: Notify,
    /// A quota was set or taken away, or a tree came under another one.
    pub(crate) recounts: Notify,
    /// How long the trash keeps what is in it may have changed.
    pub(crate) expiry: Notify,
    limits: KnownLimits,
    hub: Arc<Hub>,
    pub(crate) readers: Arc<Readers>,
    /// No other server has the tree open.
    is_alone: bool,
    /// The last time that a change got, see [`Store::now`].
    clock: AtomicI64,
    backups: backup::Backups,
    /// Why it may not go on: the tree has been exported.
    moved: watch::Sender<Option<Error>>,
}

/// What an operation came to.
pub(crate) enum Outcome {
    /// It is done.
    Done(Answer),
    /// A truncation of this inode has to be finished first; nothing was changed.
    Cut(InodeId),
}

impl From<Attr> for Outcome {
    fn from(attr: Attr) -> Self {
        Self::Done(Answer { attr: Some(attr), ..Answer::default() })
    }
}

impl Outcome {
    /// Done, with nothing to tell.
    pub(crate) fn done() -> Self {
        Self::Done(Answer::default())
    }
}

impl Answer {
    /// The attributes in it.
    pub(crate) fn into_attr(self) -> Result<Attr> {
        self.attr.ok_or_else(|| Error::internal("a recorded answer without attributes"))
    }
}

impl Store {
    /// Opens the tree, and makes it when it is new.
    ///
    /// # Errors
    /// What kv reports.
    pub async fn open(parts: StoreParts, settings: Settings) -> Result<Self> {
        transact(&*parts.kv, &parts.env, "open of the tree", |kv| Box::pin(moving::check(kv)))
            .await?;
        Self::open_to_repair(parts, settings).await
    }

    /// The same, of a tree that may be on its way.
    pub(crate) async fn open_to_repair(parts: StoreParts, settings: Settings) -> Result<Self> {
        let keys = Keys { tree: settings.tree };
        let format = open_format(&parts, keys, &settings).await?;
        let StoreParts { kv, env, chunks, tables, key } = parts;
        let watchers = clients::watchers(&*kv, &env, keys).await?;
        let is_alone = kv.is_exclusive();
        let before = if is_alone { watchers.clone() } else { BTreeSet::new() };
        let readers = Readers::new(env.clone(), before, settings.lease);
        let hub = Hub::new(env.clone(), watchers);
        Ok(Self {
            kv,
            env,
            chunks,
            tables,
            key,
            settings,
            keys,
            names: NameHash::new(format.hash_key),
            ids: Ids::default(),
            handover: Handover::default(),
            detached: Notify::new(),
            recounts: Notify::new(),
            expiry: Notify::new(),
            limits: KnownLimits::default(),
            hub,
            readers,
            is_alone,
            clock: AtomicI64::default(),
            backups: backup::Backups::default(),
            moved: watch::Sender::new(None),
        })
    }

    /// Looks, for as long as it is polled, whether the tree has been exported.
    pub(crate) async fn watch_move(&self) {
        loop {
            self.env.sleep(moving::LOOK).await;
            let looked =
                transact(&*self.kv, &self.env, "look for a move", |kv| Box::pin(moving::check(kv)));
            match looked.await {
                Err(error) if error.code() == Code::Busy => {
                    self.moved.send_replace(Some(error));
                }
                // Without its kv a server changes nothing.
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// Ends when the tree has been exported: this server may not go on.
    pub(crate) async fn moved(&self) -> Error {
        let mut moved = self.moved.subscribe();
        let moved = moved.wait_for(Option::is_some).await;
        let error = moved.ok().and_then(|error| error.clone());
        error.unwrap_or_else(|| Error::internal("the store is gone"))
    }

    /// The same store as one of several over its kv.
    #[cfg(test)]
    pub(crate) fn among_others(mut self) -> Self {
        self.readers = Readers::new(self.env.clone(), BTreeSet::new(), self.settings.lease);
        self.is_alone = false;
        self
    }

    /// The same store with a hash of few bits.
    #[cfg(test)]
    pub(crate) fn with_narrow_names(mut self, bits: u32) -> Self {
        self.names = NameHash::narrow([1, 2], bits);
        self
    }

    /// The seams that the store runs on.
    pub fn env(&self) -> &Env {
        &self.env
    }

    fn tx<'a, 's>(
        &self,
        kv: &'a mut (dyn Transaction + 's),
        departure: Arc<Departure>,
    ) -> Tx<'a, 's> {
        let (keys, names, now) = (self.keys, self.names, self.now());
        let (capability, new_file) = (self.settings.capability, self.settings.new_file);
        let (changes, garbage, room) = (Changes::default(), Vec::new(), self.kv.may_grow());
        Tx {
            kv,
            keys,
            names,
            now,
            changes,
            garbage,
            capability,
            new_file,
            room,
            ledger: Ledger::default(),
            trash: None,
            departure,
            ended: Vec::new(),
        }
    }

    /// The wall clock, but never back: of two states of an inode, clients take the one with the
    /// later time of change for the newer one.
    fn now(&self) -> Timestamp {
        let wall = self.env.wall();
        Timestamp(self.clock.fetch_max(wall.0, Ordering::Relaxed).max(wall.0))
    }

    /// What others changed through this server since the last message to a client that watches, and the number of
    /// this message; see [`Hub::next`].
    ///
    /// # Errors
    /// `Overloaded` when too many watch already, `Cancelled` when the server stops, `ClientEvicted`,
    /// `NotAuthorized`, or what kv reports.
    pub(crate) async fn watch(
        &self,
        client: ClientId,
        credential: &str,
        ask: Ask,
    ) -> Result<(u64, Changes)> {
        if ask.seen == 0 {
            self.transact("watch", &|tx| {
                Box::pin(async move { tx.admit_watcher(client, credential).await })
            })
            .await?;
        }
        self.hub.next(client, ask).await
    }

    /// Whether a client watches, and what it is shown has to be noted.
    pub(crate) fn notes(&self, client: ClientId) -> bool {
        self.hub.notes(client)
    }

    /// The number of the last change of any inode.
    pub(crate) fn last_change(&self) -> u64 {
        self.hub.last()
    }

    /// Notes what a client was shown in answer to a request that began after the change `before`. `false`: some of
    /// it has changed since.
    pub(crate) fn hold(&self, client: ClientId, before: u64, shown: &Shown) -> bool {
        self.hub.hold(client, before, &shown.attrs, &shown.names)
    }

    /// Ends all watchers.
    pub(crate) fn end_watchers(&self) {
        self.hub.close();
    }

    /// Runs a transaction. The body may run more than once.
    pub(crate) async fn transact<'s, T, F>(&'s self, what: &str, body: &'s F) -> Result<T>
    where
        T: Send,
        F: for<'t, 'a> Fn(&'t mut Tx<'a, 's>) -> Boxed<'t, T> + Sync,
    {
        let (telling, departure) = (self.hub.telling(None), self.readers.departure());
        let outcome = transact(&*self.kv, &self.env, what, |kv| {
            let (telling, departure) = (Arc::clone(&telling), Arc::clone(&departure));
            Box::pin(async move {
                let mut tx = self.tx(kv, departure);
                let output = body(&mut tx).await?;
                tx.settle(None).await?;
                telling.note(&tx.changes);
                Ok((output, tx.garbage))
            })
        })
        .await;
        departure.decided(&outcome);
        let (output, garbage) = outcome?;
        telling.done();
        self.handover.give(garbage);
        Ok(output)
    }

    /// Applies a change once: a retry gets the recorded answer.
    pub(crate) async fn change<'s, F>(
        &'s self,
        change: &'s Change,
        what: &str,
        body: &'s F,
    ) -> Result<Answer>
    where
        F: for<'t, 'a> Fn(&'t mut Tx<'a, 's>) -> Boxed<'t, Outcome> + Sync,
    {
        for _ in 0..CUTS_MAX {
            match self.attempt(change, what, body).await? {
                Outcome::Done(answer) => return Ok(answer),
                Outcome::Cut(inode) => self.finish_cut(inode).await?,
            }
        }
        Err(Error::new(Code::Busy, format!("{what}: truncated again and again meanwhile")))
    }

    async fn attempt<'s, F>(
        &'s self,
        change: &'s Change,
        what: &str,
        body: &'s F,
    ) -> Result<Outcome>
    where
        F: for<'t, 'a> Fn(&'t mut Tx<'a, 's>) -> Boxed<'t, Outcome> + Sync,
    {
        let (limits, telling) = (self.limits().await?, self.hub.telling(Some(change.client)));
        let departure = self.readers.departure();
        let outcome = transact(&*self.kv, &self.env, what, |kv| {
            let (limits, telling) = (Arc::clone(&limits), Arc::clone(&telling));
            let departure = Arc::clone(&departure);
            Box::pin(async move {
                let mut tx = self.tx(kv, departure);
                tx.admit(change.client, &change.who.credential).await?;
                if let Some(answer) = tx.replay(change.client, change.request).await? {
                    // Who did it may have died before it told, or told before it was committed.
                    telling.note(&Changes::anything());
                    return Ok((Outcome::Done(answer), Vec::new()));
                }
                let to_trash = limits.trash && !change.past_trash;
                tx.trash = to_trash.then_some(change.who.caller.uid);
                let outcome = body(&mut tx).await?;
                tx.settle(Some(&limits)).await?;
                if let Outcome::Done(answer) = &outcome {
                    tx.record(change.client, change.request, answer);
                }
                telling.note(&tx.changes);
                Ok((outcome, tx.garbage))
            })
        })
        .await;
        departure.decided(&outcome);
        let (outcome, garbage) = outcome?;
        let due = telling.done();
        self.handover.give(garbage);
        self.hub.heard(due).await?;
        Ok(outcome)
    }

    /// When a capability that was given out at `from` has surely ended.
    pub(crate) fn capability_end(&self, from: Timestamp) -> Timestamp {
        capability_end(from, self.settings.capability)
    }
}

/// When a capability that was given out at `from` might open chunks nowhere any more: its lifetime,
/// the clocks' difference at either end, and the time of a transaction.
pub(crate) fn capability_end(from: Timestamp, lifetime: Duration) -> Timestamp {
    let lifetime = i64::try_from(lifetime.as_nanos()).unwrap_or(i64::MAX);
    Timestamp(from.0.saturating_add(lifetime).saturating_add(3 * CLOCK_SKEW_NS))
}

/// Reads the tree's format; makes the tree when there is none.
async fn open_format(parts: &StoreParts, keys: Keys, settings: &Settings) -> Result<Format> {
    let drawn = &Format { hash_key: [parts.env.random_u64(), parts.env.random_u64()] };
    transact(&*parts.kv, &parts.env, "open of the tree", |kv| {
        Box::pin(async move {
            if let Some(format) = kv.get(&keys.format()).await? {
                return Format::decode(&format);
            }
            let root = root(parts.env.wall(), settings.root_owner);
            kv.set(&keys.format(), &drawn.encode());
            kv.set(&keys.inode(root.id), &root.encode());
            kv.add(&keys.inode_count(), 1);
            for account in accounts(root.quota, root.uid, root.gid) {
                kv.add(&keys.usage(account)[1], 1);
            }
            kv.max(&keys.counted_to(), u64::MAX);
            Ok(drawn.clone())
        })
    })
    .await
}

fn root(now: Timestamp, (uid, gid): (u32, u32)) -> Inode {
    Inode {
        id: InodeId::ROOT,
        mode: 0o755,
        uid,
        gid,
        parent: InodeId::ROOT,
        links: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        body: Body::Directory(Directory { mtime_set: now, wish: LayoutWish::default() }),
        quota: InodeId(0),
        counted: true,
    }
}
