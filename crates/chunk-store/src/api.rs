//! What callers hand in and get back.

use kiln_memory::Bytes;
use kiln_types::{
    ChainId, ChunkId, ChunkVersion, ClusterId, DiskId, RetryKey, TargetId, TruncateEpoch,
};
use std::ops::Range;
use std::time::Duration;

pub use kiln_types::{Held, RetryRecord};

/// Whose store a disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The disk, drawn when it is formatted.
    pub disk: DiskId,
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
}

/// What an operator may tune.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory for chunk descriptors that were read lately, in bytes.
    pub cache_bytes: usize,
    /// How much the log may hold beyond twice what is live before it is cleaned, in bytes; at most
    /// a sixteenth of the disk.
    pub log_slack_bytes: u64,
    /// How long a removed chunk's version is remembered, so that a replica that was away learns of
    /// it.
    pub tombstone_retention: Duration,
    /// Space that only removes, truncations, cleaning and, most of it, writes that replace
    /// stored blocks may use, in bytes; at most a sixteenth of the disk is kept. As much is left to
    /// others of the file system beneath.
    pub reserve_bytes: u64,
    /// A planted defect, for the test that must find it: acknowledge without syncing the disk.
    #[doc(hidden)]
    pub skip_sync: bool,
    /// Give free space back to the disk, in pieces of 1 MiB.
    pub discard: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            log_slack_bytes: 64 << 20,
            tombstone_retention: Duration::from_secs(3 * 24 * 3600),
            reserve_bytes: 64 << 20,
            discard: true,
            skip_sync: false,
        }
    }
}

/// A replica that lives on this disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetRecord {
    /// The target.
    pub target: TargetId,
    /// Its chain.
    pub chain: ChainId,
    /// The highest version that the target ever held.
    pub version_max: ChunkVersion,
    /// What the owner keeps with the target, at most [`crate::STATE_BYTES_MAX`] bytes.
    pub state: Vec<u8>,
    /// Records were lost: chunks may be missing, or older than what was acknowledged. Nothing is
    /// answered from the target until [`crate::Store::accept_damage`].
    pub damaged: bool,
}

/// A new version of a chunk.
#[derive(Clone, Debug)]
pub struct Update {
    /// The chunk.
    pub chunk: ChunkId,
    /// The new version.
    pub version: ChunkVersion,
    /// The committed version that it follows; `NONE` after nothing and after a removal.
    pub previous: ChunkVersion,
    /// The truncate epoch that the new version carries.
    pub epoch: TruncateEpoch,
    /// Content of an older epoch than this counts as absent.
    pub floor: TruncateEpoch,
    /// How large the chunk may become: the layout's chunk size.
    pub chunk_bytes: u32,
    /// What changes.
    pub change: Change,
    /// Who asked, to be remembered in the same atomic step.
    pub retry: Option<RetryKey>,
    /// Commit in the same atomic step.
    pub commit: bool,
}

/// How a version differs from the one before. Checksums: one CRC32C for each 4 KiB of the chunk
/// that the bytes touch; the first and the last may cover less.
#[derive(Clone, Debug)]
pub enum Change {
    /// Bytes at an offset; a gap before them reads as zeros.
    Write {
        /// Where they begin in the chunk.
        offset: u32,
        /// The bytes.
        bytes: Bytes,
        /// Their checksums.
        checksums: Vec<u32>,
    },
    /// Cut to a length. A chunk that is shorter keeps its length and takes the epoch; an absent one
    /// becomes an empty chunk that carries it.
    Truncate {
        /// The new length in bytes.
        length: u32,
    },
    /// A range reads as zeros; blocks that lie wholly in it become holes. The chunk keeps its length; an
    /// absent one becomes an empty chunk.
    Zero {
        /// Where the range begins in the chunk.
        offset: u32,
        /// How many bytes it has.
        length: u32,
    },
    /// No content any more; the version is remembered.
    Remove,
    /// The whole content becomes this.
    Replace {
        /// The content.
        bytes: Bytes,
        /// Its checksums.
        checksums: Vec<u32>,
    },
}

/// Which version a reader wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The committed one.
    Committed,
    /// This one, committed or pending.
    Version(ChunkVersion),
}

/// What a read returns.
#[derive(Clone, Debug)]
pub struct ChunkRead {
    /// The version that was read.
    pub version: ChunkVersion,
    /// Its truncate epoch.
    pub epoch: TruncateEpoch,
    /// The length of the whole chunk in bytes.
    pub chunk_length: u32,
    /// The bytes; fewer than asked for at the end of the chunk.
    pub bytes: Bytes,
    /// One CRC32C for each 4 KiB block of the chunk that the bytes touch.
    pub checksums: Vec<u32>,
}

/// What a look at the extents of a chunk returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkExtents {
    /// The version that was looked at.
    pub version: ChunkVersion,
    /// The length of the whole chunk in bytes.
    pub chunk_length: u32,
    /// The byte ranges that are stored, in order, at least 4 KiB apart; what lies between is zeros.
    pub data: Vec<Range<u32>>,
}

/// What is known of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ChunkStat {
    /// The committed version, a tombstone included.
    pub committed: Option<VersionStat>,
    /// The pending version.
    pub pending: Option<VersionStat>,
    /// The committed version, when its descriptor cannot be read; `NONE` if not even the version is
    /// known. An install heals it.
    pub damaged: Option<ChunkVersion>,
}

/// What is known of one version of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionStat {
    /// The version.
    pub version: ChunkVersion,
    /// Its truncate epoch.
    pub epoch: TruncateEpoch,
    /// Its length in bytes; 0 when removed.
    pub length: u32,
    /// Whether it is a tombstone.
    pub removed: bool,
    /// Who wrote it.
    pub retry: Option<RetryKey>,
}

impl ChunkStat {
    /// Which versions are here.
    pub fn held(&self) -> Held {
        Held {
            committed: self.committed.map(|stat| stat.version).or(self.damaged).unwrap_or_default(),
            pending: self.pending.map(|stat| stat.version),
        }
    }
}

/// What a chunk is made, whatever it is here: a copy of another replica's.
#[derive(Clone, Debug)]
pub struct Install {
    /// The chunk.
    pub chunk: ChunkId,
    /// What must be here now, so that a late copy of an install does no harm.
    pub expected: Held,
    /// `None`: the source knows nothing of the chunk, and it is forgotten here as well.
    pub copy: Option<ChunkCopy>,
}

/// A committed version as another replica has it.
#[derive(Clone, Debug)]
pub struct ChunkCopy {
    /// The version.
    pub version: ChunkVersion,
    /// Its truncate epoch.
    pub epoch: TruncateEpoch,
    /// All its bytes, with one CRC32C for each 4 KiB of them; `None` when it is a tombstone.
    pub content: Option<(Bytes, Vec<u32>)>,
}

/// How the disk is used.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes of the disk.
    pub capacity_bytes: u64,
    /// Bytes that data and metadata occupy.
    pub used_bytes: u64,
    /// Bytes that writers may still take; the reserve is not among them.
    pub free_bytes: u64,
    /// Of the free bytes, those for which the file system beneath has given the space already.
    pub backed_bytes: u64,
    /// Bytes that the metadata log occupies.
    pub metadata_bytes: u64,
    /// Chunks that are known, tombstones included.
    pub chunks: u64,
    /// Bytes of memory that the index of the chunks takes, about.
    pub index_bytes: u64,
    /// Bytes of data of each target; blocks that versions share count once.
    pub targets: Vec<(TargetId, u64)>,
}

/// What a check of a store against itself found.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Verification {
    /// Chunks that were looked at.
    pub chunks: u64,
    /// Blocks that are in use and belong to nobody.
    pub leaked_blocks: u64,
    /// Everything else that is wrong, in words.
    pub problems: Vec<String>,
}

impl Verification {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.leaked_blocks == 0 && self.problems.is_empty()
    }
}
