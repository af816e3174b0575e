//! What servers and operators ask about the chunks of a replica: lists, and whether they are intact.

use crate::message::{Body, read_chunk, read_count, read_version, write_version};
use kiln_types::{ChainId, ChunkId, ChunkVersion, Decoder, Encoder, Result, TruncateEpoch};

/// Most chunks that one [`List`] answer carries.
pub const LIST_LIMIT_MAX: u32 = 4096;

/// Lists the chunks of a chain at the server's replica of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// The chain.
    pub chain: ChainId,
    /// The first id.
    pub from: ChunkId,
    /// The end, exclusive.
    pub to: ChunkId,
    /// Most chunks in the answer, at most [`LIST_LIMIT_MAX`].
    pub limit: u32,
}

/// A chunk in a [`Listing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its committed version.
    pub version: ChunkVersion,
    /// Its epoch.
    pub epoch: TruncateEpoch,
    /// Its length in bytes.
    pub length: u32,
    /// Whether a newer version is pending.
    pub pending: bool,
}

/// The answer to a [`List`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Chunks with content, in order of their ids.
    pub chunks: Vec<Listed>,
    /// The last chunk that was looked at: the next page begins behind it. `None`: the range is done.
    pub last: Option<ChunkId>,
}

/// A chunk whose content does not match its checksums, or cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// The chunk.
    pub chunk: ChunkId,
    /// The first byte in the chunk of the first block of which that is so.
    pub offset: u32,
}

/// The answer to a scrub: chunks were read to verify them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scrubbed {
    /// How many chunks were read.
    pub chunks: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Those that are damaged, in order of their ids.
    pub damaged: Vec<Damaged>,
    /// As in a [`Listing`].
    pub last: Option<ChunkId>,
}

pub(crate) fn write_last(to: &mut Encoder, last: Option<ChunkId>) {
    to.bytes(last.as_ref().map_or(&[], |chunk| chunk.as_bytes()));
}

pub(crate) fn read_last(from: &mut Decoder<'_>) -> Result<Option<ChunkId>> {
    match from.bytes(ChunkId::BYTES)? {
        [] => Ok(None),
        id => read_chunk(&mut Decoder::new("chunk id", id)).map(Some),
    }
}

impl Body for List {
    const WHAT: &'static str = "list request";

    fn write(&self, to: &mut Encoder) {
        to.u64(self.chain.0).raw(self.from.as_bytes()).raw(self.to.as_bytes());
        to.u32(self.limit);
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self {
            chain: ChainId(from.u64()?),
            from: read_chunk(from)?,
            to: read_chunk(from)?,
            limit: from.u32()?,
        })
    }
}

impl Body for Listing {
    const WHAT: &'static str = "listing";

    fn write(&self, to: &mut Encoder) {
        to.u32(self.chunks.len() as u32);
        for listed in &self.chunks {
            to.raw(listed.chunk.as_bytes());
            write_version(to, listed.version);
            to.u64(listed.epoch.0).u32(listed.length).u8(u8::from(listed.pending));
        }
        write_last(to, self.last);
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        let count = read_count(from, LIST_LIMIT_MAX as usize)?;
        let chunk = |from: &mut Decoder<'_>| {
            Ok(Listed {
                chunk: read_chunk(from)?,
                version: read_version(from)?,
                epoch: TruncateEpoch(from.u64()?),
                length: from.u32()?,
                pending: from.u8()? != 0,
            })
        };
        let chunks = (0..count).map(|_| chunk(from)).collect::<Result<_>>()?;
        Ok(Self { chunks, last: read_last(from)? })
    }
}

impl Body for Scrubbed {
    const WHAT: &'static str = "scrub answer";

    fn write(&self, to: &mut Encoder) {
        to.u32(self.chunks).u64(self.bytes).u32(self.damaged.len() as u32);
        for damaged in &self.damaged {
            to.raw(damaged.chunk.as_bytes()).u32(damaged.offset);
        }
        write_last(to, self.last);
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        let (chunks, bytes) = (from.u32()?, from.u64()?);
        let count = read_count(from, LIST_LIMIT_MAX as usize)?;
        let damaged = |_| Ok(Damaged { chunk: read_chunk(from)?, offset: from.u32()? });
        let damaged = (0..count).map(damaged).collect::<Result<_>>()?;
        Ok(Self { chunks, bytes, damaged, last: read_last(from)? })
    }
}
