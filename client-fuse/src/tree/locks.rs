//! Advisory locks, shared with all other mounts.
//!
//! Who has locked sees what others did before they unlocked: unlocking brings what was written to the cluster,
//! and locking drops what others made untrue.

use crate::filesystem::{Handle, Interrupt};
use crate::tree::Tree;
use crate::tree::open_inode::OpenInode;
use kiln_types::{Attr, Code, Error, Lock, LockFamily, LockOwner, LockRange, Result};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::time::Duration;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, RwLock};

/// A waiter tries again after this time, whatever it has heard.
const RETRY: Duration = Duration::from_secs(2);

/// Who may hold locks on an inode through this mount, and through which handles.
///
/// The kernel names an owner by an address: a file opened now may have the name of one whose locks are about to
/// end. So owners take locks beside each other, and end alone.
#[derive(Default)]
pub(crate) struct Owners {
    owners: Mutex<HashSet<(LockFamily, LockOwner, Handle)>>,
    turn: RwLock<()>,
    unlocked: Notify,
}

impl Owners {
    fn note(&self, family: LockFamily, owner: LockOwner, handle: Handle) {
        self.owners.lock().insert((family, owner, handle));
    }

    fn has(&self, family: LockFamily, owner: LockOwner) -> bool {
        self.owners.lock().iter().any(|known| (known.0, known.1) == (family, owner))
    }

    fn forget(&self, family: LockFamily, owner: LockOwner) {
        self.owners.lock().retain(|known| (known.0, known.1) != (family, owner));
    }

    fn used_by(&self, handle: Handle) -> bool {
        self.owners.lock().iter().any(|known| known.2 == handle)
    }

    /// Forgets a handle: the owners that have no other one.
    fn leave(&self, handle: Handle) -> Vec<(LockFamily, LockOwner)> {
        let mut owners = self.owners.lock();
        let through: Vec<_> = owners.extract_if(|known| known.2 == handle).collect();
        let left = through.into_iter().map(|known| (known.0, known.1));
        left.filter(|left| !owners.iter().any(|known| (known.0, known.1) == *left)).collect()
    }

    /// When locks end, from now on.
    pub(crate) fn unlocked(&self) -> Notified<'_> {
        self.unlocked.notified()
    }

    /// Locks ended, here or elsewhere: whoever waits tries again.
    pub(crate) fn wake(&self) {
        self.unlocked.notify_waiters();
    }
}

/// See [`crate::FileSystem::get_lock`].
pub(crate) async fn get(
    tree: &Tree,
    handle: Handle,
    owner: LockOwner,
    lock: Lock,
) -> Result<Option<Lock>> {
    tree.handles.file(handle)?.open.io().lock_holder(owner, lock).await
}

/// See [`crate::FileSystem::set_lock`].
pub(crate) async fn set(
    tree: &Tree,
    handle: Handle,
    owner: LockOwner,
    lock: Lock,
    mut wait: Option<Interrupt>,
) -> Result<()> {
    let file = tree.handles.file(handle)?;
    let open = &file.open;
    loop {
        let unlocked = open.locks.unlocked();
        let turn = open.locks.turn.read().await;
        open.locks.note(lock.family, owner, handle);
        let locked = open.io().lock(owner, lock, wait.is_some()).await?;
        drop(turn);
        if let Some(attr) = locked {
            revalidate(tree, open, attr).await;
            return Ok(());
        }
        let Some(interrupt) = &mut wait else {
            return Err(Error::new(Code::Locked, "somebody else holds a lock that excludes it"));
        };
        tokio::select! {
            biased;
            Ok(()) = interrupt => {
                return Err(Error::new(Code::Interrupted, "a signal ended the wait for a lock"));
            }
            () = until(tree, unlocked) => {}
        }
    }
}

/// Waits until it is time to try again.
pub(crate) async fn until(tree: &Tree, unlocked: Notified<'_>) {
    // Late: it may have been missed.
    let _ = tree.env.timeout(tree.env.jittered(RETRY), "a lock", unlocked).await;
}

/// See [`crate::FileSystem::unlock`].
pub(crate) async fn unlock(
    tree: &Tree,
    open: &OpenInode,
    owner: LockOwner,
    family: LockFamily,
    range: LockRange,
) -> Result<()> {
    if !open.locks.has(family, owner) {
        return Ok(());
    }
    // An error of writing is told by fsync and close.
    if let Ok(Some(attr)) = open.push().await {
        tree.nodes.changed_here(&attr, true);
    }
    let _turn = open.locks.turn.write().await;
    end(open, owner, family, range).await?;
    if range == LockRange::ALL {
        open.locks.forget(family, owner);
    }
    Ok(())
}

async fn end(
    open: &OpenInode,
    owner: LockOwner,
    family: LockFamily,
    range: LockRange,
) -> Result<()> {
    let ended = open.io().unlock(owner, family, range).await;
    open.locks.wake();
    ended
}

/// A descriptor of `owner` is closed: its fcntl(2) locks on the file end.
pub(crate) async fn end_owner(tree: &Tree, open: &OpenInode, owner: LockOwner) -> Result<()> {
    unlock(tree, open, owner, LockFamily::Posix, LockRange::ALL).await
}

/// The last descriptor of a handle is closed, and what was written through it pushed: the locks of its open file
/// description end. Those of processes ended when they closed theirs.
pub(crate) async fn end_handle(open: &OpenInode, handle: Handle) {
    if !open.locks.used_by(handle) {
        return;
    }
    let _turn = open.locks.turn.write().await;
    for (family, owner) in open.locks.leave(handle) {
        if let Err(error) = end(open, owner, family, LockRange::ALL).await {
            let inode = open.inode();
            tracing::warn!(%inode, %error, "a lock stays until this mount has closed the file");
        }
    }
}

/// The owner of a lock sees what others wrote before: as with an open, but the pages are gone at once.
pub(crate) async fn revalidate(tree: &Tree, open: &OpenInode, attr: Attr) {
    let attr = tree.nodes.newest(attr);
    let (same_content, same_attributes) = tree.nodes.opens_same(&attr);
    let shown = tree.shown(attr.inode);
    open.learn(attr);
    if !same_content {
        open.content().invalidate();
        // Without an answer there is no kernel (any more).
        let _ = tree.kernel.drop_content(shown).await;
    }
    if !same_attributes {
        tree.kernel.drop_attributes(shown);
    }
}
