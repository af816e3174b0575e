//! How a replica is filled by its predecessor: the steps of a walk through its chunks, and copies.

use crate::listing::{LIST_LIMIT_MAX, read_last, write_last};
use crate::message::{
    Body, Name, read_checksums, read_chunk, read_count, read_retry, read_version, write_checksums,
    write_retry, write_version,
};
use kiln_types::{
    ChainId, ChainVersion, ChunkId, ChunkVersion, Decoder, Encoder, Error, Held, HeldPage, Result,
    RetryRecord, TargetId, TruncateEpoch,
};

/// A step of a walk, from the commit point to the syncing replica behind it -> [`HeldPage`] for
/// [`FillStep::Versions`], else an empty body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The chain.
    pub chain: ChainId,
    /// The version of the chain in which the replica is filled.
    pub chain_version: ChainVersion,
    /// The sender.
    pub from: TargetId,
    /// What to do.
    pub step: FillStep,
}

/// What one step of a walk asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FillStep {
    /// A walk begins: the receiver drops its retry records.
    Start {
        /// Tells this walk from others: drawn by the sender, forgotten when the receiver restarts.
        walk: u64,
    },
    /// Which versions it holds of the chunks between two bounds.
    Versions {
        /// The first.
        from: ChunkId,
        /// The end, exclusive.
        to: ChunkId,
        /// Most chunks in the answer, at most [`LIST_LIMIT_MAX`].
        limit: u32,
    },
    /// Retry records to remember, at most [`LIST_LIMIT_MAX`].
    Retries(Vec<RetryRecord>),
    /// All is the same now: the receiver is up-to-date, unless it has restarted since the start.
    Done {
        /// As it was at the start.
        walk: u64,
    },
}

/// Makes a chunk at the receiver what it is at the sender; the content is the payload -> an empty body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// The chunk.
    pub name: Name,
    /// The sender.
    pub from: TargetId,
    /// What the receiver must hold of it now.
    pub expected: Held,
    /// The sender's committed version; `None`: it knows nothing of the chunk.
    pub copy: Option<Copied>,
}

/// A committed version, without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The version.
    pub version: ChunkVersion,
    /// Its epoch.
    pub epoch: TruncateEpoch,
    /// Checksums of the content; `None`: the chunk was removed.
    pub checksums: Option<Vec<u32>>,
}

fn write_held(to: &mut Encoder, held: &Held) {
    write_version(to, held.committed);
    write_version(to, held.pending.unwrap_or(ChunkVersion::NONE));
}

fn read_held(from: &mut Decoder<'_>) -> Result<Held> {
    let (committed, pending) = (read_version(from)?, read_version(from)?);
    Ok(Held { committed, pending: Some(pending).filter(|pending| *pending != ChunkVersion::NONE) })
}

impl Body for Fill {
    const WHAT: &'static str = "fill step";

    fn write(&self, to: &mut Encoder) {
        to.u64(self.chain.0).u64(self.chain_version.0).u64(self.from.0);
        match &self.step {
            FillStep::Start { walk } => {
                to.u8(1).u64(*walk);
            }
            FillStep::Versions { from, to: end, limit } => {
                to.u8(2).raw(from.as_bytes()).raw(end.as_bytes()).u32(*limit);
            }
            FillStep::Retries(records) => {
                to.u8(3).u32(records.len() as u32);
                for record in records {
                    write_retry(to, &record.key);
                    to.raw(record.chunk.as_bytes());
                    write_version(to, record.version);
                }
            }
            FillStep::Done { walk } => {
                to.u8(4).u64(*walk);
            }
        }
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        let (chain, chain_version) = (ChainId(from.u64()?), ChainVersion(from.u64()?));
        let sender = TargetId(from.u64()?);
        let step = match from.u8()? {
            1 => FillStep::Start { walk: from.u64()? },
            2 => FillStep::Versions {
                from: ChunkId::bound(from.array()?),
                to: ChunkId::bound(from.array()?),
                limit: from.u32()?,
            },
            3 => {
                let count = read_count(from, LIST_LIMIT_MAX as usize)?;
                let record = |from: &mut Decoder<'_>| {
                    Ok(RetryRecord {
                        key: read_retry(from)?,
                        chunk: read_chunk(from)?,
                        version: read_version(from)?,
                    })
                };
                FillStep::Retries((0..count).map(|_| record(from)).collect::<Result<_>>()?)
            }
            4 => FillStep::Done { walk: from.u64()? },
            other => return Err(Error::corrupt(format!("fill step of unknown kind {other}"))),
        };
        Ok(Self { chain, chain_version, from: sender, step })
    }
}

impl Body for HeldPage {
    const WHAT: &'static str = "versions";

    fn write(&self, to: &mut Encoder) {
        to.u32(self.chunks.len() as u32);
        for (chunk, held) in &self.chunks {
            to.raw(chunk.as_bytes());
            write_held(to, held);
        }
        write_last(to, self.last);
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        let count = read_count(from, LIST_LIMIT_MAX as usize)?;
        let chunk = |from: &mut Decoder<'_>| Ok((read_chunk(from)?, read_held(from)?));
        let chunks = (0..count).map(|_| chunk(from)).collect::<Result<_>>()?;
        Ok(Self { chunks, last: read_last(from)? })
    }
}

impl Body for Install {
    const WHAT: &'static str = "copy of a chunk";

    fn write(&self, to: &mut Encoder) {
        self.name.write(to);
        to.u64(self.from.0);
        write_held(to, &self.expected);
        let Some(copy) = &self.copy else {
            to.u8(0);
            return;
        };
        to.u8(1);
        copy.write(to);
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        let (name, sender) = (Name::read(from)?, TargetId(from.u64()?));
        let expected = read_held(from)?;
        let copy = match from.u8()? {
            0 => None,
            1 => Some(Copied::read(from)?),
            other => return Err(Error::corrupt(format!("copy of unknown kind {other}"))),
        };
        Ok(Self { name, from: sender, expected, copy })
    }
}

impl Body for Copied {
    const WHAT: &'static str = "committed version";

    fn write(&self, to: &mut Encoder) {
        write_version(to, self.version);
        to.u64(self.epoch.0).u8(u8::from(self.checksums.is_some()));
        if let Some(checksums) = &self.checksums {
            write_checksums(to, checksums);
        }
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        let (version, epoch) = (read_version(from)?, TruncateEpoch(from.u64()?));
        let checksums = match from.u8()? {
            0 => None,
            1 => Some(read_checksums(from)?),
            other => return Err(Error::corrupt(format!("committed version: flag {other}"))),
        };
        Ok(Self { version, epoch, checksums })
    }
}
