//! Versions of chains, chunks and truncations.

use crate::{ChannelId, ChunkId, ClientId, Sequence};
use std::fmt;

/// A version of a chain's membership; every change of it increments this.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct ChainVersion(pub u64);

impl fmt::Display for ChainVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl ChainVersion {
    /// The version after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A version of a chunk: the chain version in which the head ordered the write, then a counter that
/// the head counts for the whole chain. It travels unchanged through forward, retry and resync, and
/// never goes back for a chunk id, also across remove and recreate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ChunkVersion {
    /// The chain version at ordering.
    pub chain: ChainVersion,
    /// The chain's counter at ordering; grows with each write that the chain orders.
    pub counter: u64,
}

impl ChunkVersion {
    /// The version of a chunk that was never written.
    pub const NONE: Self = Self { chain: ChainVersion(0), counter: 0 };

    /// The first version that a head may give in chain version `chain` after `self`.
    #[must_use]
    pub fn successor_in(self, chain: ChainVersion) -> Self {
        assert!(chain >= self.chain, "chain versions never go back: {chain} after {}", self.chain);
        Self { chain, counter: self.counter + 1 }
    }
}

impl fmt::Display for ChunkVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.chain, self.counter)
    }
}

/// Counts the shrinking truncations of an inode. Writes carry it, chunks store it, and storage
/// refuses an older one than the chunk's.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct TruncateEpoch(pub u64);

impl TruncateEpoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for TruncateEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Who asked for a write, so that a retry of it is applied once: a client has at most one write
/// outstanding on each of its channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RetryKey {
    /// The client incarnation.
    pub client: ClientId,
    /// Its channel.
    pub channel: ChannelId,
    /// The write's number on the channel.
    pub sequence: Sequence,
}
/// A write that is remembered of a client's channel, so that a retry of it gets the same answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryRecord {
    /// Who asked, with the write's number.
    pub key: RetryKey,
    /// The chunk that it changed.
    pub chunk: ChunkId,
    /// The version that it got; `NONE` when it is only known to be over, since the one after it was
    /// discarded.
    pub version: ChunkVersion,
}

/// Which versions a replica holds of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The committed one, a removal's included; [`ChunkVersion::NONE`] if nothing is known.
    pub committed: ChunkVersion,
    /// The pending one.
    pub pending: Option<ChunkVersion>,
}

/// Which versions a replica holds of a range of chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldPage {
    /// Chunks of which something is known, removals included, in order of their ids.
    pub chunks: Vec<(ChunkId, Held)>,
    /// The last chunk that was looked at: the next page begins behind it. `None`: the range is done.
    pub last: Option<ChunkId>,
}

impl HeldPage {
    /// A page of `chunks`, of which at most `limit` were asked for.
    pub fn new(chunks: Vec<(ChunkId, Held)>, limit: usize) -> Self {
        let full = chunks.len() >= limit;
        let last = chunks.last().map(|(chunk, _)| *chunk).filter(|_| full);
        Self { chunks, last }
    }
}

impl Held {
    /// Nothing is known of the chunk.
    pub const NOTHING: Self = Self { committed: ChunkVersion::NONE, pending: None };
}
