//! The metadata server: a POSIX tree over transactional kv.
//!
//! [`Store`] is the file system: every operation is one serializable transaction over
//! [`kiln_kv::Kv`] (`store/`, one file for each group), and every change is applied once through
//! retries and changes of server, since its answer is recorded in the transaction that applies it.
//! The store keeps nothing in memory that another server would need, so any number of servers run
//! over one kv. [`Keeper`] works in the background: it lets go of what was in the trash for long enough, removes what
//! was in removed trees and the chunks of removed files, counts for new quotas what was there before, and retires
//! silent clients. [`Service`] is the shell that speaks to clients, [`run`] the whole server.
//!
//! Invariants:
//! - an inode record exists as long as the inode has a name or an open session, or is in the trash; what it stored is
//!   named by a garbage record from the transaction that drops it until its chunks are gone;
//! - a write under an old truncate epoch never makes a file longer, and nobody gets the right to
//!   write under a new epoch before the truncation's last chunk is cut;
//! - an inode id is given once.
#![forbid(unsafe_code)]

mod access;
mod check;
mod chunks;
mod collector;
mod counter;
mod dispatch;
mod expirer;
mod holds;
mod keeper;
mod keys;
mod locks;
mod moving;
mod name;
mod placement;
mod pruner;
mod quota;
mod records;
mod removal;
mod rounds;
mod server;
mod service;
mod storage;
mod store;
mod sweeper;
mod tx;
mod watch;

pub use check::{Checked, Checker, Finding, Kind};
pub use chunks::{ChunkFile, ChunkService, ChunkSpace, Removal};
pub use keeper::Keeper;
pub use moving::{Mover, Progress, Replace, dump_head};
pub use name::NAME_BYTES_MAX;
pub use placement::{Table, Tables};
pub use records::{FLOORS_MAX, TARGET_BYTES_MAX, XATTR_BYTES_MAX};
pub use server::run;
pub use service::Service;
pub use storage::StorageChunks;
pub use store::{
    Change, CloseArgs, CreateArgs, InodeChunks, LENGTH_MAX, Listed, LockArgs, OpenArgs, Opened,
    QuotaChange, RenameArgs, Renewal, Report, SetAttrArgs, SetTime, Settings, Store, StoreParts,
    Who, Written, XattrMode,
};

pub use watch::Changes;

use std::fmt;

/// An open file: drawn by the server that opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u128);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests;
