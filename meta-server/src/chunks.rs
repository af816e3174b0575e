//! What the metadata server asks of the storage servers.

use async_trait::async_trait;
use kiln_types::{ChainId, InodeId, Layout, Result, TreeId, TruncateEpoch};
use std::collections::BTreeSet;
use std::ops::Range;

/// A file as storage knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkFile {
    /// The tree.
    pub tree: TreeId,
    /// The inode.
    pub inode: InodeId,
    /// Its placement.
    pub layout: Layout,
}

/// Chunks to remove: those of a range of a file with an epoch below one. Each is decided by its
/// chain, so that a chunk which a writer has just renewed stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The file.
    pub file: ChunkFile,
    /// Indexes; `u64::MAX` as the end: to the last one that is stored.
    pub range: Range<u64>,
    /// The first epoch that stays.
    pub below: TruncateEpoch,
}

/// The space of all storage servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ChunkSpace {
    /// Bytes in use and those that can still be written, divided by the number of replicas.
    pub total_bytes: u64,
    /// Bytes that can still be written, divided by the number of replicas.
    pub free_bytes: u64,
}

/// Chunk operations on behalf of the metadata server. Each is idempotent, may be repeated at any
/// time by any server, and ends within its own deadline.
#[async_trait]
pub trait ChunkService: Send + Sync + 'static {
    /// Cuts chunk `index` to `length` bytes and gives it `epoch`. A chunk below `floor` counts as
    /// absent; an absent one is made, empty, so that late writes of older epochs are refused. A
    /// chunk of a later epoch stays as it is: this was carried out before, and the chunk was
    /// written since.
    ///
    /// # Errors
    /// What the chain answers; it is unknown then whether the chunk was cut.
    async fn truncate_chunk(
        &self,
        file: &ChunkFile,
        index: u64,
        length: u32,
        epoch: TruncateEpoch,
        floor: TruncateEpoch,
    ) -> Result<()>;

    /// The chains that may hold chunks of files with `layout`.
    ///
    /// # Errors
    /// `UnknownMember` when its chain table is not known yet.
    fn chains(&self, layout: &Layout) -> Result<BTreeSet<ChainId>>;

    /// Carries out removals, in the order of their inodes, on one chain. Says of each how it went;
    /// what a failed one left stays for the next try.
    async fn remove_chunks(&self, chain: ChainId, removals: &[Removal]) -> Vec<Result<()>>;

    /// Settles what a dead writer left pending and says where the file ends: one past the last byte
    /// of the chunks that count under `floors` (as in [`Attr::floors`](kiln_types::Attr)).
    ///
    /// # Errors
    /// What a chain answers.
    async fn stored_end(&self, file: &ChunkFile, floors: &[(u64, TruncateEpoch)]) -> Result<u64>;

    /// The space of all storage servers.
    ///
    /// # Errors
    /// When too few answer to tell.
    async fn space(&self) -> Result<ChunkSpace>;
}
