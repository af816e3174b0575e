//! Locks of the file system in memory. A lock that overlaps others of its owner replaces them whole.

use kiln_client_fuse::Interrupt;
use kiln_types::{Code, InodeId, Lock, LockFamily, LockOwner, LockRange, Result};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

#[derive(Default)]
pub(crate) struct Locks {
    held: Mutex<Vec<(InodeId, LockOwner, Lock)>>,
    changed: Notify,
    waiting: AtomicUsize,
    interrupted: AtomicUsize,
}

impl Locks {
    /// How many wait, and how many waits a signal ended.
    pub(crate) fn waits(&self) -> (usize, usize) {
        (self.waiting.load(Ordering::SeqCst), self.interrupted.load(Ordering::SeqCst))
    }

    pub(super) fn in_the_way(&self, inode: InodeId, owner: LockOwner, lock: Lock) -> Option<Lock> {
        let held = self.held.lock();
        let mut others = held.iter().filter(|(on, by, _)| *on == inode && *by != owner);
        others.find(|(_, _, other)| other.excludes(&lock)).map(|(_, _, other)| *other)
    }

    fn try_lock(&self, inode: InodeId, owner: LockOwner, lock: Lock) -> bool {
        let free = self.in_the_way(inode, owner, lock).is_none();
        if free {
            self.unlock(inode, owner, lock.family, lock.range);
            self.held.lock().push((inode, owner, lock));
        }
        free
    }

    pub(super) async fn lock(
        &self,
        inode: InodeId,
        owner: LockOwner,
        lock: Lock,
        wait: Option<Interrupt>,
    ) -> Result<()> {
        let Some(mut interrupt) = wait else {
            let locked = self.try_lock(inode, owner, lock);
            return if locked { Ok(()) } else { Err(Code::Locked.into()) };
        };
        loop {
            let changed = self.changed.notified();
            if self.try_lock(inode, owner, lock) {
                return Ok(());
            }
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let is_told = tokio::select! {
                biased;
                _ = &mut interrupt => true,
                () = changed => false,
            };
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            if is_told {
                self.interrupted.fetch_add(1, Ordering::SeqCst);
                return Err(Code::Interrupted.into());
            }
        }
    }

    pub(super) fn unlock(
        &self,
        inode: InodeId,
        owner: LockOwner,
        family: LockFamily,
        range: LockRange,
    ) {
        let ends = |on: InodeId, by: LockOwner, lock: &Lock| {
            on == inode && by == owner && lock.family == family && lock.range.overlaps(&range)
        };
        self.held.lock().retain(|(on, by, lock)| !ends(*on, *by, lock));
        self.changed.notify_waiters();
    }
}
