//! Quotas: whom an inode counts for, what a transaction changes of that, and what is allowed. No I/O.
//!
//! Every inode counts for its user, its group and the nearest directory with a quota above it, which its record
//! names (`Inode::quota`) and new inodes take over from the directory that they are made in. The [`Ledger`] of
//! a transaction sees each record as it is read and as it is put: what is charged follows from that, so that
//! no operation can forget it.

use crate::records::{Body, Inode};
use crate::store::trash::TRASHED;
use kiln_types::{Account, Code, Error, InodeId, QuotaLimits, Result, Usage};
use std::collections::BTreeMap;

/// What a writer may be given beyond what it asks for, at least and at most.
const STEP_MIN: u64 = 1 << 20;
const STEP_MAX: u64 = 64 << 20;

/// A change of an account's usage; wraps around as the counters do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Delta {
    pub(crate) bytes: i64,
    pub(crate) inodes: i64,
}

impl Delta {
    fn add(&mut self, bytes: i64, inodes: i64) {
        self.bytes = self.bytes.wrapping_add(bytes);
        self.inodes += inodes;
    }

    /// Whether it takes anything.
    pub(crate) fn grows(self) -> bool {
        self.bytes > 0 || self.inodes > 0
    }
}

/// What an inode counts, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Charge {
    quota: InodeId,
    uid: u32,
    gid: u32,
    bytes: u64,
    in_trash: bool,
}

impl Charge {
    fn of(inode: &Inode) -> Self {
        let bytes = match &inode.body {
            Body::File(file) => file.length,
            Body::Directory(_) | Body::Symlink { .. } | Body::Special(_) => 0,
        };
        let in_trash = inode.parent == TRASHED;
        Self { quota: inode.quota, uid: inode.uid, gid: inode.gid, bytes, in_trash }
    }
}

/// The accounts of an inode.
pub(crate) fn accounts(quota: InodeId, uid: u32, gid: u32) -> impl Iterator<Item = Account> {
    let directory = (quota != InodeId(0)).then_some(Account::Directory(quota));
    [Account::User(uid), Account::Group(gid)].into_iter().chain(directory)
}

/// What a transaction changes.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// What inodes count as they are stored, the newest last; `None`: they are not counted.
    seen: Vec<(InodeId, Option<Charge>)>,
    accounts: BTreeMap<Account, Posting>,
    /// The change of what is in the trash.
    pub(crate) trash: Delta,
}

/// The change of one account, and how much of it needs no leave any more.
#[derive(Clone, Copy, Debug, Default)]
struct Posting {
    change: Delta,
    allowed: Delta,
}

impl Ledger {
    /// A record was read.
    pub(crate) fn saw(&mut self, inode: &Inode) {
        self.seen.push((inode.id, inode.counted.then(|| Charge::of(inode))));
    }

    /// A record is put.
    pub(crate) fn put(&mut self, inode: &Inode) {
        self.replace(inode.id, Some(Charge::of(inode)));
    }

    /// A record is removed.
    pub(crate) fn drop(&mut self, inode: InodeId) {
        self.replace(inode, None);
    }

    fn replace(&mut self, inode: InodeId, now: Option<Charge>) {
        let last = self.seen.iter().rev().find(|(id, _)| *id == inode);
        let before = last.and_then(|(_, charge)| *charge);
        if before != now {
            self.post(before, -1);
            self.post(now, 1);
            self.seen.push((inode, now));
        }
    }

    fn post(&mut self, charge: Option<Charge>, sign: i64) {
        let Some(Charge { quota, uid, gid, bytes, in_trash }) = charge else { return };
        let bytes = (bytes as i64).wrapping_mul(sign);
        for account in accounts(quota, uid, gid) {
            self.accounts.entry(account).or_default().change.add(bytes, sign);
        }
        if in_trash {
            self.trash.add(bytes, sign);
        }
    }

    /// What was changed up to now is allowed, whatever the limits are.
    pub(crate) fn allow(&mut self) {
        for posting in self.accounts.values_mut() {
            posting.allowed = posting.change;
        }
    }

    /// The changes, and what of each has to be allowed.
    pub(crate) fn changes(&self) -> impl Iterator<Item = (Account, Delta, Delta)> {
        self.accounts.iter().map(|(account, Posting { change, allowed })| {
            let mut wanted = *change;
            wanted.add(allowed.bytes.wrapping_neg(), -allowed.inodes);
            (*account, *change, wanted)
        })
    }
}

/// Whether an account with that usage may change so; `wanted` is what of the change is asked for. What does not
/// grow is never refused.
///
/// # Errors
/// `QuotaExceeded`.
pub(crate) fn check(
    account: Account,
    limits: QuotaLimits,
    used: Usage,
    change: Delta,
    wanted: Delta,
) -> Result<()> {
    let fits = |limit: Option<u64>, used: u64, change: i64, wanted: i64| {
        let exceeds = |limit: u64| i128::from(used) + i128::from(change) > i128::from(limit);
        wanted <= 0 || !limit.is_some_and(exceeds)
    };
    if !fits(limits.inodes, used.inodes, change.inodes, wanted.inodes) {
        return Err(exceeded(account, "inodes", limits.inodes));
    }
    if !fits(limits.bytes, used.bytes, change.bytes, wanted.bytes) {
        return Err(exceeded(account, "bytes", limits.bytes));
    }
    Ok(())
}

/// The error for an account that has no room.
pub(crate) fn exceeded(account: Account, what: &str, limit: Option<u64>) -> Error {
    let limit = limit.unwrap_or(u64::MAX);
    let text = format!("the quota of {account} is used up: {limit} {what}");
    Error::new(Code::QuotaExceeded, text).with_hint("kiln quota list shows what is used")
}

/// How far a writer may write a file of `length` bytes when there is room for `left` more: to `end`, and some
/// steps further while there is much room, so that it seldom asks. What it was `promised` stays. `None`: `end` is
/// too far.
pub(crate) fn grant(length: u64, left: u64, end: u64, promised: u64) -> Option<u64> {
    let most = length.saturating_add(left).max(promised);
    let step = (left / 8).clamp(STEP_MIN, STEP_MAX);
    let wanted = end.max(length).max(promised);
    (end <= most).then(|| wanted.saturating_add(step).min(most))
}

/// Whether what moves between directories that count for these quotas would take more than itself from one to the
/// other: a tree, or a file that has names elsewhere.
pub(crate) fn is_bound(inode: &Inode, from: InodeId, to: InodeId) -> bool {
    let has_more = match inode.is_directory() {
        true => !has_own(inode),
        false => inode.links > 1,
    };
    from != to && has_more
}

/// Whether an inode is a directory that has a quota of its own.
pub(crate) fn has_own(inode: &Inode) -> bool {
    inode.quota == inode.id
}

#[cfg(test)]
#[path = "quota_tests.rs"]
mod tests;
