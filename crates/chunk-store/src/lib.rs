//! The chunk engine over a Disk: allocation, versions, checksums, recovery after a crash.
#![forbid(unsafe_code)]

mod api;
mod batch;
mod cache;
mod clean;
mod committer;
mod core;
mod extent;
mod group;
mod index;
mod join;
mod locks;
mod open;
mod read;
mod record;
mod replay;
mod rules;
mod space;
mod state;
mod store;
mod superblock;
mod targets;
mod verify;
mod write;

pub use api::{
    Change, ChunkRead, ChunkStat, Identity, Options, RetryRecord, TargetRecord, Update, Usage,
    Verification, VersionStat, Which,
};
pub use store::Store;

/// Bytes of state that an owner may keep with a target.
pub const STATE_BYTES_MAX: usize = 256;
