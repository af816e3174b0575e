//! O_APPEND: each write lands behind all others, also of other mounts.
//!
//! A mount appends under a right that one client has at a time. It keeps it until another one wants it or the file
//! is closed; then it brings to the cluster what it has appended, so that the next one learns where the file ends.

use crate::tree::open_inode::OpenInode;
use crate::tree::{Tree, locks};
use kiln_memory::Bytes;
use kiln_types::{Attr, InodeId, Lock, LockFamily, LockMode, LockOwner, LockRange, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;

const RIGHT: Lock =
    Lock { family: LockFamily::Append, mode: LockMode::Exclusive, range: LockRange::ALL, pid: 0 };

/// The right to append to an inode that is open here.
pub(crate) struct Append {
    /// Nobody else's on this mount: what one that is closed lets go of late is not this one's.
    owner: LockOwner,
    /// Whoever holds this appends, or gives the right back; in the order in which they come.
    right: Mutex<Right>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Right {
    Elsewhere,
    /// It was asked for, and may be here.
    Asked,
    Here,
}

impl Append {
    pub(crate) fn new() -> Self {
        static OWNERS: AtomicU64 = AtomicU64::new(1);
        let owner = LockOwner(OWNERS.fetch_add(1, Ordering::Relaxed));
        Self { owner, right: Mutex::new(Right::Elsewhere) }
    }

    fn may_be_here(&self) -> bool {
        !self.right.try_lock().is_ok_and(|right| *right == Right::Elsewhere)
    }
}

/// Writes `bytes` where the file ends, which is returned.
pub(crate) async fn write(tree: &Tree, open: &OpenInode, bytes: Bytes) -> Result<u64> {
    let mut right = open.append.right.lock().await;
    if *right != Right::Here {
        *right = Right::Asked;
        let asked = ask(tree, open);
        let attr = match tree.io_timeout {
            Some(timeout) => {
                let asked = tree.env.timeout(timeout, "the right to append", asked);
                asked.await.flatten()?
            }
            None => asked.await?,
        };
        *right = Right::Here;
        locks::revalidate(tree, open, attr).await;
    }
    let end = open.content().length();
    open.content().write(end, bytes).await?;
    Ok(end)
}

/// Waits for the right.
async fn ask(tree: &Tree, open: &OpenInode) -> Result<Attr> {
    loop {
        let unlocked = open.locks.unlocked();
        if let Some(attr) = open.io().lock(open.append.owner, RIGHT, true).await? {
            return Ok(attr);
        }
        locks::until(tree, unlocked).await;
    }
}

/// Another client wants the right: it is given back soon.
pub(crate) fn give_back(tree: &Arc<Tree>, inode: InodeId) {
    let open = tree.nodes.open(inode);
    if let Some(open) = open.filter(|open| open.append.may_be_here()) {
        let (env, tree) = (tree.env.clone(), Arc::clone(tree));
        env.spawn("right to append", async move { end(&tree, &open).await }).detach();
    }
}

/// Gives the right back, if it may be here, after what was appended.
async fn end(tree: &Tree, open: &OpenInode) {
    let mut right = open.append.right.lock().await;
    if *right == Right::Elsewhere {
        return;
    }
    // An error of writing is told by fsync and close.
    if let Ok(Some(attr)) = open.push().await {
        tree.nodes.changed_here(&attr, true);
    }
    match open.io().unlock(open.append.owner, RIGHT.family, RIGHT.range).await {
        Ok(()) => *right = Right::Elsewhere,
        Err(error) => {
            let inode = open.inode();
            tracing::warn!(%inode, %error, "others cannot append until this mount lets go");
        }
    }
    open.locks.wake();
}
