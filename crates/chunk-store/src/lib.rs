//! The chunk engine over a Disk: allocation, versions, checksums, recovery after a crash.
//!
//! One [`Store`] per disk. A disk is blocks of 4 KiB:
//!
//! - Blocks 0 and 1: two copies of the superblock, which names the oldest segment of the log
//!   (`superblock`).
//! - The log: segments of up to 1 MiB anywhere on the disk. Each batch names the segment that
//!   follows its own. It holds all metadata as records: versions of chunks, commits, discards,
//!   retry records, targets (`record`, `batch`).
//! - Data: each version of a chunk is a map of extents with one CRC32C for each block. Versions of
//!   a chunk share the blocks that a write left alone; holes take no space (`group`, `write`).
//! - Nothing else: which blocks are free is in memory only, and worked out at open (`space`,
//!   `open`).
//!
//! A log rather than a tree, because a change then costs one small sequential write that many
//! callers share, and one sync covers it and its data (`committer`); and because what is lost in a
//! crash can only be its end (`replay`). Cleaning copies what is still needed from its oldest
//! segment to its end (`clean`).
//!
//! Memory: about 55 bytes a chunk for the index, 32 MiB for each TiB of disk for the allocator, and
//! a cache of descriptors of fixed size. A read of any size costs at most one more block of I/O
//! when its descriptor is not cached (two for chunks above 1 MiB).
//!
//! Space: the disk is cut into zones of up to 1 MiB. A file may have less space than its size, so a
//! zone is *backed* before it is used. Writers leave a reserve of the disk, and as much of the file
//! system beneath; the log keeps segments of its own. So what makes space (removals, truncations,
//! cleaning) is never refused.
//!
//! Invariants:
//! - What was acknowledged is in a synced batch, and so is all data that it names.
//! - A block is handed out only when the record that dropped it is durable and no reader that began
//!   before is left; so neither a crash nor a reader meets a block with someone else's data.
//! - The order of the log is the order of decisions; a copy never lies behind what supersedes it.
//! - Every block is verified when it is read, also when it is merged into a new one.
//! - After an error of the log's writes or syncs the store answers nothing but `DiskFailed`.
//!
//! What decays is found by checksums, and never takes more with it than it must: a block its chunk,
//! a record of the log the certainty about the disk's targets (`damage`). Another replica's copy
//! heals it (`install`).
//!
//! Known limit: what the log's end says is known only from what follows it. Rot that strikes the very
//! last batch or its data, within 50 ms before a crash, looks like a write that was torn, and the
//! loss of all batches from one on looks like a crash before it.
#![forbid(unsafe_code)]

mod api;
mod batch;
mod cache;
mod clean;
mod committer;
mod core;
mod damage;
mod data;
mod extent;
mod group;
mod index;
mod install;
mod join;
mod locks;
mod open;
mod read;
mod record;
mod replay;
mod retries;
mod rules;
mod space;
mod state;
mod store;
mod superblock;
mod targets;
mod verify;
mod write;

pub use api::{
    Change, ChunkCopy, ChunkExtents, ChunkRead, ChunkStat, Held, Identity, Install, Options,
    RetryRecord, TargetRecord, Update, Usage, Verification, VersionStat, Which,
};
pub use store::Store;

/// Bytes of state that an owner may keep with a target.
pub const STATE_BYTES_MAX: usize = 256;
