//! Advisory locks of open files. They are kept in kv as open files are, so that any server gives them, none
//! forgets them, and they end with the last open file that their client has of the inode.

use crate::SessionId;
use crate::keys::inode_of_lock;
use crate::locks::{Held, Locks};
use crate::store::{Change, Outcome, Store, Who};
use crate::tx::Tx;
use kiln_types::{Attr, ClientId, Code, Error, InodeId, Lock, LockFamily, LockOwner, Result};

/// Inodes with locks of one client in one page.
const PAGE: usize = 256;

/// A lock that a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockArgs {
    /// The file.
    pub inode: InodeId,
    /// The client's open file.
    pub session: SessionId,
    /// Who wants it, among the owners of this client.
    pub owner: LockOwner,
    /// What to lock, or to unlock.
    pub lock: Lock,
}

impl LockArgs {
    fn of(&self, client: ClientId) -> Held {
        Held { client, owner: self.owner, lock: self.lock }
    }
}

impl Store {
    /// Locks; what the owner held of the range is replaced. `None` when somebody else's lock excludes it; with
    /// `wait` watchers are told then when that may have changed, and who holds the right to append that it is
    /// wanted.
    ///
    /// As on a local file system, flock(2) gives up the lock that it cannot convert.
    ///
    /// # Errors
    /// `StaleHandle` when it is not open, `NoLocks`, `NoSpace`, or what kv reports.
    pub async fn lock(&self, change: &Change, args: &LockArgs, wait: bool) -> Result<Option<Attr>> {
        let answer =
            self.change(change, "lock", &|tx| Box::pin(lock(tx, change.client, args, wait))).await;
        match answer {
            Ok(answer) => Ok(answer.attr),
            Err(error) if error.code() == Code::Locked => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Unlocks what the owner holds in the family and range of `args.lock`.
    ///
    /// # Errors
    /// `NoLocks` when the rest of a lock would be one lock too many, or what kv reports.
    pub async fn unlock(&self, change: &Change, args: &LockArgs) -> Result<()> {
        self.change(change, "unlock", &|tx| {
            Box::pin(async move {
                let mut locks = Standing::of(tx, args.inode, change.client).await?;
                if locks.now.unlock(&args.of(change.client))? {
                    locks.released();
                    locks.put(tx);
                }
                Ok(Outcome::done())
            })
        })
        .await?;
        Ok(())
    }

    /// Somebody else's lock that excludes `args.lock`, and whether an owner of the same client holds it.
    ///
    /// # Errors
    /// `StaleHandle` when it is not open, or what kv reports.
    pub async fn lock_holder(
        &self,
        who: &Who,
        client: ClientId,
        args: &LockArgs,
    ) -> Result<Option<(Lock, bool)>> {
        self.transact("lock holder", &|tx| {
            Box::pin(async move {
                tx.check_client(client, &who.credential).await?;
                tx.session(client, args.session, args.inode).await?;
                let locks: Option<Locks> = tx.get(&tx.keys.locks(args.inode)).await?;
                let holder = locks.as_ref().and_then(|locks| locks.conflict(&args.of(client)));
                Ok(holder.map(|held| (held.lock, held.client == client)))
            })
        })
        .await
    }

    /// Ends all locks of a client. Whether there were any.
    pub(crate) async fn end_locks(&self, client: ClientId) -> Result<bool> {
        let mut any = false;
        loop {
            let ended = self
                .transact("end of locks", &|tx| {
                    Box::pin(async move {
                        let page = tx.range(tx.keys.locks_of(client), PAGE).await?;
                        for (key, _) in &page {
                            let mut locks = Standing::of(tx, inode_of_lock(key)?, client).await?;
                            if locks.now.end_client(client) {
                                locks.released();
                            }
                            locks.put(tx);
                            tx.kv.clear(key);
                        }
                        Ok(page.len())
                    })
                })
                .await?;
            any |= ended > 0;
            if ended < PAGE {
                return Ok(any);
            }
        }
    }
}

/// Ends what a client holds on an inode that it has not open any more.
pub(crate) async fn end_without_session(
    tx: &mut Tx<'_, '_>,
    client: ClientId,
    inode: InodeId,
) -> Result<()> {
    let mark = tx.keys.lock_of(client, inode);
    if tx.kv.get(&mark).await?.is_none() || tx.has_open(client, inode).await? {
        return Ok(());
    }
    let mut locks = Standing::of(tx, inode, client).await?;
    if locks.now.end_client(client) {
        locks.released();
    }
    locks.put(tx);
    tx.kv.clear(&mark);
    Ok(())
}

async fn lock(
    tx: &mut Tx<'_, '_>,
    client: ClientId,
    args: &LockArgs,
    wait: bool,
) -> Result<Outcome> {
    tx.session(client, args.session, args.inode).await?;
    // The lock ends with the last of them, after a restart of the server, too.
    tx.store_readers(args.inode, Some(client));
    let wanted = args.of(client);
    let mut locks = Standing::of(tx, args.inode, client).await?;
    if locks.now.conflict(&wanted).is_some() {
        let given_up = args.lock.family == LockFamily::Flock && locks.now.unlock(&wanted)?;
        if given_up {
            locks.released();
        }
        if !given_up && (!wait || locks.now.awaited) {
            return Err(Error::new(Code::Locked, "somebody else holds a lock that excludes it"));
        }
        locks.now.awaited |= wait;
        locks.put(tx);
        if args.lock.family == LockFamily::Append {
            tx.changes.append(args.inode);
        }
        return Ok(Outcome::done());
    }
    tx.room.clone()?;
    if locks.now.lock(&wanted)? {
        locks.released();
    }
    locks.put(tx);
    let inode = tx.inode(args.inode).await?;
    Ok(Outcome::from(tx.attr(&inode).await?))
}

/// The locks of an inode within a transaction of one client.
struct Standing {
    inode: InodeId,
    client: ClientId,
    had: bool,
    now: Locks,
    told: bool,
}

impl Standing {
    async fn of(tx: &mut Tx<'_, '_>, inode: InodeId, client: ClientId) -> Result<Self> {
        let now: Locks = tx.get(&tx.keys.locks(inode)).await?.unwrap_or_default();
        Ok(Self { inode, client, had: now.has(client), now, told: false })
    }

    /// Something can be locked that could not before: whoever waits is told.
    fn released(&mut self) {
        self.told |= std::mem::take(&mut self.now.awaited);
    }

    fn put(self, tx: &mut Tx<'_, '_>) {
        if self.told {
            tx.changes.unlocked(self.inode);
        }
        let key = tx.keys.locks(self.inode);
        match self.now.is_empty() {
            true => tx.kv.clear(&key),
            false => tx.put(&key, &self.now),
        }
        let mark = tx.keys.lock_of(self.client, self.inode);
        match (self.had, self.now.has(self.client)) {
            (false, true) => tx.kv.set(&mark, &[]),
            (true, false) => tx.kv.clear(&mark),
            _ => {}
        }
    }
}
