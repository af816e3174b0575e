//! The chunk engine over a Disk: allocation, versions, checksums, recovery after a crash.
#![forbid(unsafe_code)]

mod api;
mod store;

pub use api::{
    Change, ChunkRead, ChunkStat, Identity, Options, RetryRecord, TargetRecord, Update, Usage,
    VersionStat, Which,
};
pub use store::Store;

/// Bytes of state that an owner may keep with a target.
pub const STATE_BYTES_MAX: usize = 256;
