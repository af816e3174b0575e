//! Locks beside a table of bytes, and what watchers hear of them.

use super::{Code, Run, code_of};
use crate::LockArgs;
use crate::tests::{abandon, root};
use kiln_types::{InodeId, Lock, LockFamily, LockMode, LockOwner, LockRange};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes that the model knows; the last one stands for all behind it.
const BYTES: u64 = 5;

/// Inode, family, byte, client and owner.
type Byte = (InodeId, LockFamily, u64, usize, u64);

#[derive(Default)]
pub(super) struct Locks {
    held: BTreeMap<Byte, LockMode>,
    /// Where somebody was told to wait.
    awaited: BTreeSet<InodeId>,
    /// Of which inodes a watcher heard that locks ended; of all when it heard that something was lost.
    pub(super) heard: BTreeSet<InodeId>,
    pub(super) heard_all: bool,
}

impl Run {
    fn any_lock(&mut self) -> (u64, Lock) {
        let (one, other) = (self.rng.u64(..BYTES), self.rng.u64(..BYTES));
        let last = Some(one.max(other)).filter(|last| *last < BYTES - 1).unwrap_or(u64::MAX);
        let lock = Lock {
            family: *self.rng.choice(&[LockFamily::Flock, LockFamily::Posix]).expect("one"),
            mode: *self.rng.choice(&[LockMode::Shared, LockMode::Exclusive]).expect("one"),
            range: LockRange { start: one.min(other), last },
            pid: 5,
        };
        (self.rng.u64(1..3), lock)
    }

    /// A client holds locks only on what it has open.
    pub(super) fn end_closed(&mut self) {
        let open: BTreeSet<_> = self.open.iter().map(|file| (file.inode, file.client)).collect();
        let awaited = &mut self.locks.awaited;
        self.locks.held.retain(|byte, _| {
            let is_open = open.contains(&(byte.0, byte.3));
            is_open || {
                awaited.remove(&byte.0);
                false
            }
        });
    }

    /// Locks, unlocks or asks through an open file.
    pub(super) async fn lock(&mut self) {
        let Some(at) = self.any_open(false) else { return };
        let (client, inode, session) =
            (self.open[at].client, self.open[at].inode, self.open[at].session);
        let (owner, lock) = self.any_lock();
        let args = LockArgs { inode, session, owner: LockOwner(owner), lock };
        let bytes = (lock.range.start..=lock.range.last.min(BYTES - 1))
            .map(|byte| (inode, lock.family, byte, client, owner));
        let bytes: Vec<Byte> = bytes.collect();
        let meets = |byte: &Byte, held: &Byte| {
            (byte.0, byte.1, byte.2) == (held.0, held.1, held.2)
                && (byte.3, byte.4) != (held.3, held.4)
        };
        let excluded = self.locks.held.iter().any(|(held, mode)| {
            let both_shared = (*mode, lock.mode) == (LockMode::Shared, LockMode::Shared);
            !both_shared && bytes.iter().any(|byte| meets(byte, held))
        });
        let change = self.change(client, &root());
        let had: Vec<_> = bytes.iter().filter_map(|byte| self.locks.held.get(byte)).collect();
        let (had_any, had_exclusive) = (!had.is_empty(), had.contains(&&LockMode::Exclusive));
        let (what, wait) = (self.rng.u8(..6), self.rng.bool());
        let mut released = false;
        match what {
            0 => {
                let id = self.clients[client].id;
                let who = root();
                let got = insist!(self, s => async { s.lock_holder(&who, id, &args).await });
                assert_eq!(got.map(|held| held.is_some()), Ok(excluded), "{}", self.recent());
            }
            1 => {
                let done = insist!(self, s => async { s.unlock(&change, &args).await });
                self.locks.held.retain(|byte, _| !bytes.contains(byte));
                released = had_any;
                self.expect(format!("unlock {client} {args:?}"), &done, Ok(()));
            }
            _ => {
                let done = insist!(self, s => async { s.lock(&change, &args, wait).await });
                let taken = done.as_ref().map(Option::is_some);
                assert_eq!(taken, Ok(!excluded), "{args:?}: {}", self.recent());
                if !excluded {
                    self.locks.held.extend(bytes.iter().map(|byte| (*byte, lock.mode)));
                    released = had_exclusive && lock.mode == LockMode::Shared;
                } else if lock.family == LockFamily::Flock {
                    self.locks.held.retain(|byte, _| !bytes.contains(byte));
                    released = had_any;
                }
                self.expect(format!("lock {client} {args:?} {wait}"), &done, Ok(()));
            }
        }
        if released && self.locks.awaited.remove(&inode) {
            self.hear().await;
            let heard = self.locks.heard_all || self.locks.heard.contains(&inode);
            assert!(heard, "nobody is told that {inode} was unlocked: {}", self.recent());
        }
        if what > 1 && excluded && wait {
            self.locks.awaited.insert(inode);
        }
        (self.locks.heard, self.locks.heard_all) = Default::default();
    }
}
