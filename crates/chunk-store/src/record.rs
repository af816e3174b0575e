//! The records of the log.
//!
//! A record is: CRC32C u32 (of all that follows), type u8, version u8, length u16 (of all of it,
//! without padding), body. It never straddles a block, so that one block of I/O brings it, and
//! begins at a multiple of 32 bytes. All numbers are little-endian. Type 0 ends a block.

use crate::api::VersionStat;
use crate::extent::{Position, RECORD_ALIGN};
use crate::group::{GROUP_BYTES, Group};
use kiln_types::{
    BLOCK_BYTES, CHUNK_BYTES_MAX, ChainId, ChainVersion, ChannelId, ChunkId, ChunkVersion,
    ClientId, Decoder, Encoder, Error, Result, RetryKey, Sequence, TargetId, Timestamp,
    TruncateEpoch, crc32c,
};
use std::sync::Arc;

const HEADER_BYTES: usize = 8;
const RECORD_VERSION: u8 = 1;

/// A chunk of one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) target: TargetId,
    pub(crate) chunk: ChunkId,
}

/// One version of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) version: ChunkVersion,
    pub(crate) previous: ChunkVersion,
    pub(crate) epoch: TruncateEpoch,
    pub(crate) length: u32,
    pub(crate) removed: bool,
    /// When it was written: how long a tombstone stays counts from here.
    pub(crate) time: Timestamp,
    pub(crate) retry: Option<RetryKey>,
    pub(crate) parts: Vec<Part>,
}

/// Where a group's map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Nothing is mapped.
    Hole,
    /// In the chunk's own record: the only part of a chunk of at most 1 MiB.
    Inline(Arc<Group>),
    /// In a record of its own.
    Stored(Position),
}

/// How a chunk's record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Flags {
    pub(crate) committed: bool,
    /// The record establishes the retry record of its key. A copy made by cleaning does not: the
    /// retry record may be dropped long before the chunk.
    pub(crate) remembers: bool,
    /// The blocks of the chunk that were written together with the record: first and count.
    /// Recovery verifies them where no later batch proves that they reached the disk.
    pub(crate) fresh: (u16, u16),
}

/// What a target's record keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetBody {
    pub(crate) target: TargetId,
    pub(crate) chain: ChainId,
    pub(crate) version_max: ChunkVersion,
    pub(crate) state: Vec<u8>,
    /// See [`crate::TargetRecord::damaged`]; a byte that is there only when it is set.
    pub(crate) damaged: bool,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// A version of a chunk.
    Put { key: Key, head: Head, flags: Flags },
    /// A part of a chunk of more than 1 MiB; always before the `Put` that names its position.
    Part { key: Key, index: u16, group: Arc<Group> },
    /// The pending version is committed.
    Commit { key: Key, version: ChunkVersion },
    /// The pending version is dropped; its retry record says then that the write before it is over.
    Discard { key: Key, version: ChunkVersion },
    /// A retry record that outlived the chunk record which it came with.
    Retry { key: Key, retry: RetryKey, version: ChunkVersion },
    /// All retry records of a client are dropped.
    Forget { client: ClientId },
    /// All retry records of a target are dropped.
    ForgetRetries { target: TargetId },
    /// Nothing is known of the chunk any more.
    Drop { key: Key },
    /// A target exists.
    Target(TargetBody),
    /// A target and everything of it is gone.
    RemoveTarget { target: TargetId },
}

mod kind {
    pub(super) const PUT: u8 = 1;
    pub(super) const PART: u8 = 2;
    pub(super) const COMMIT: u8 = 3;
    pub(super) const DISCARD: u8 = 4;
    pub(super) const RETRY: u8 = 5;
    pub(super) const FORGET: u8 = 6;
    pub(super) const TARGET: u8 = 7;
    pub(super) const REMOVE_TARGET: u8 = 8;
    pub(super) const FORGET_RETRIES: u8 = 9;
    pub(super) const DROP: u8 = 10;
}

mod flag {
    pub(super) const COMMITTED: u8 = 1;
    pub(super) const REMOVED: u8 = 2;
    pub(super) const RETRY: u8 = 4;
    pub(super) const REMEMBERS: u8 = 8;
    pub(super) const PARTS: u8 = 16;
    pub(super) const ALL: u8 = 31;
}

impl Head {
    /// Whether there is content to read for a reader with this floor.
    pub(crate) fn visible(&self, floor: TruncateEpoch) -> bool {
        !self.removed && self.epoch >= floor
    }

    /// Positions of the parts that have records of their own.
    pub(crate) fn stored(&self) -> impl Iterator<Item = Position> + '_ {
        self.parts.iter().filter_map(|part| match part {
            Part::Stored(position) => Some(*position),
            Part::Hole | Part::Inline(_) => None,
        })
    }

    /// The part `index`; what is behind the last one is a hole.
    pub(crate) fn part(&self, index: usize) -> Part {
        self.parts.get(index).cloned().unwrap_or(Part::Hole)
    }

    /// Log cost of the parts that `other` does not share.
    pub(crate) fn stored_cost_not_in(&self, other: &Self) -> u64 {
        let own = self.parts.iter().enumerate().map(|(index, part)| match part {
            Part::Stored(position) if other.part(index) != *part => position.cost(),
            Part::Hole | Part::Inline(_) | Part::Stored(_) => 0,
        });
        own.sum()
    }

    /// Log cost of the parts at these positions.
    pub(crate) fn stored_cost_of(&self, positions: &[Position]) -> u64 {
        self.stored().filter(|part| positions.contains(part)).map(Position::cost).sum()
    }

    /// Bytes of memory that it takes, about.
    pub(crate) fn memory(&self) -> usize {
        let inline = self.parts.iter().map(|part| match part {
            Part::Inline(group) => 64 + group.memory(),
            Part::Hole | Part::Stored(_) => 0,
        });
        160 + self.parts.len() * size_of::<Part>() + inline.sum::<usize>()
    }

    pub(crate) fn stat(&self) -> VersionStat {
        VersionStat {
            version: self.version,
            epoch: self.epoch,
            length: self.length,
            removed: self.removed,
            retry: self.retry,
        }
    }

    fn encode(&self, flags: Flags, out: &mut Encoder) {
        let inline = match self.parts.as_slice() {
            [Part::Inline(group)] => Some(group),
            _ => None,
        };
        let bits = [
            (flags.committed, flag::COMMITTED),
            (self.removed, flag::REMOVED),
            (self.retry.is_some(), flag::RETRY),
            (flags.remembers, flag::REMEMBERS),
            (inline.is_none(), flag::PARTS),
        ];
        out.u8(bits.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum());
        encode_version(self.version, out);
        encode_version(self.previous, out);
        out.u64(self.epoch.0).u32(self.length).u64(self.time.0 as u64);
        out.u16(flags.fresh.0).u16(flags.fresh.1);
        if let Some(retry) = &self.retry {
            encode_retry(retry, out);
        }
        match inline {
            Some(group) => group.encode(out),
            None => {
                out.u16(self.parts.len() as u16);
                for part in &self.parts {
                    out.u64(match part {
                        Part::Stored(position) => position.word(),
                        Part::Hole | Part::Inline(_) => 0,
                    });
                }
            }
        }
    }

    fn decode(from: &mut Decoder<'_>) -> Result<(Self, Flags)> {
        let bits = from.u8()?;
        let has = |bit| bits & bit != 0;
        if bits & !flag::ALL != 0 {
            return Err(Error::corrupt(format!("chunk record: unknown flags {bits:#x}")));
        }
        let (version, previous) = (decode_version(from)?, decode_version(from)?);
        let (epoch, length, time) = (from.u64()?, from.u32()?, from.u64()?);
        let fresh = (from.u16()?, from.u16()?);
        let retry = if has(flag::RETRY) { Some(decode_retry(from)?) } else { None };
        let parts = if has(flag::PARTS) {
            (0..from.u16()?).map(|_| decode_part(from)).collect::<Result<Vec<Part>>>()?
        } else {
            vec![Part::Inline(Arc::new(Group::decode(from)?))]
        };
        if length > CHUNK_BYTES_MAX || parts.len() > (CHUNK_BYTES_MAX / GROUP_BYTES) as usize {
            return Err(Error::corrupt(format!("chunk record: {length} bytes")));
        }
        let head = Self {
            version,
            previous,
            epoch: TruncateEpoch(epoch),
            length,
            removed: has(flag::REMOVED),
            time: Timestamp(time as i64),
            retry,
            parts,
        };
        let flags =
            Flags { committed: has(flag::COMMITTED), remembers: has(flag::REMEMBERS), fresh };
        Ok((head, flags))
    }
}

fn decode_part(from: &mut Decoder<'_>) -> Result<Part> {
    let position = Position::from_word(from.u64()?)?;
    Ok(if position == Position::NOWHERE { Part::Hole } else { Part::Stored(position) })
}

fn encode_version(version: ChunkVersion, out: &mut Encoder) {
    out.u64(version.chain.0).u64(version.counter);
}

fn decode_version(from: &mut Decoder<'_>) -> Result<ChunkVersion> {
    Ok(ChunkVersion { chain: ChainVersion(from.u64()?), counter: from.u64()? })
}

fn encode_retry(retry: &RetryKey, out: &mut Encoder) {
    out.u128(retry.client.0).u32(retry.channel.0).u64(retry.sequence.0);
}

fn decode_retry(from: &mut Decoder<'_>) -> Result<RetryKey> {
    Ok(RetryKey {
        client: ClientId(from.u128()?),
        channel: ChannelId(from.u32()?),
        sequence: Sequence(from.u64()?),
    })
}

fn encode_key(key: &Key, out: &mut Encoder) {
    out.u64(key.target.0).raw(key.chunk.as_bytes());
}

fn decode_key(from: &mut Decoder<'_>) -> Result<Key> {
    Ok(Key { target: TargetId(from.u64()?), chunk: ChunkId::from_bytes(from.array()?)? })
}

impl Record {
    fn kind(&self) -> u8 {
        match self {
            Self::Put { .. } => kind::PUT,
            Self::Part { .. } => kind::PART,
            Self::Commit { .. } => kind::COMMIT,
            Self::Discard { .. } => kind::DISCARD,
            Self::Retry { .. } => kind::RETRY,
            Self::Forget { .. } => kind::FORGET,
            Self::Target(_) => kind::TARGET,
            Self::RemoveTarget { .. } => kind::REMOVE_TARGET,
            Self::ForgetRetries { .. } => kind::FORGET_RETRIES,
            Self::Drop { .. } => kind::DROP,
        }
    }

    /// The record in bytes, padded.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new();
        out.u32(0).u8(self.kind()).u8(RECORD_VERSION).u16(0);
        match self {
            Self::Put { key, head, flags } => {
                encode_key(key, &mut out);
                head.encode(*flags, &mut out);
            }
            Self::Part { key, index, group } => {
                encode_key(key, &mut out);
                out.u16(*index);
                group.encode(&mut out);
            }
            Self::Commit { key, version } | Self::Discard { key, version } => {
                encode_key(key, &mut out);
                encode_version(*version, &mut out);
            }
            Self::Retry { key, retry, version } => {
                encode_key(key, &mut out);
                encode_retry(retry, &mut out);
                encode_version(*version, &mut out);
            }
            Self::Forget { client } => {
                out.u128(client.0);
            }
            Self::Target(body) => {
                out.u64(body.target.0).u64(body.chain.0);
                encode_version(body.version_max, &mut out);
                out.bytes(&body.state);
                if body.damaged {
                    out.u8(1);
                }
            }
            Self::RemoveTarget { target } | Self::ForgetRetries { target } => {
                out.u64(target.0);
            }
            Self::Drop { key } => encode_key(key, &mut out),
        }
        let mut bytes = out.finish();
        let length = bytes.len();
        bytes[6..8].copy_from_slice(&(length as u16).to_le_bytes());
        let crc = crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes.resize(length.next_multiple_of(RECORD_ALIGN), 0);
        bytes
    }

    fn decode_body(kind: u8, body: &[u8]) -> Result<Self> {
        let mut from = Decoder::new("log record", body);
        let record = match kind {
            kind::PUT => {
                let key = decode_key(&mut from)?;
                let (head, flags) = Head::decode(&mut from)?;
                Self::Put { key, head, flags }
            }
            kind::PART => Self::Part {
                key: decode_key(&mut from)?,
                index: from.u16()?,
                group: Arc::new(Group::decode(&mut from)?),
            },
            kind::COMMIT => {
                Self::Commit { key: decode_key(&mut from)?, version: decode_version(&mut from)? }
            }
            kind::DISCARD => {
                Self::Discard { key: decode_key(&mut from)?, version: decode_version(&mut from)? }
            }
            kind::RETRY => Self::Retry {
                key: decode_key(&mut from)?,
                retry: decode_retry(&mut from)?,
                version: decode_version(&mut from)?,
            },
            kind::FORGET => Self::Forget { client: ClientId(from.u128()?) },
            kind::TARGET => Self::Target(TargetBody {
                target: TargetId(from.u64()?),
                chain: ChainId(from.u64()?),
                version_max: decode_version(&mut from)?,
                state: from.bytes(crate::STATE_BYTES_MAX)?.to_vec(),
                damaged: from.left() > 0 && from.u8()? == 1,
            }),
            kind::REMOVE_TARGET => Self::RemoveTarget { target: TargetId(from.u64()?) },
            kind::FORGET_RETRIES => Self::ForgetRetries { target: TargetId(from.u64()?) },
            kind::DROP => Self::Drop { key: decode_key(&mut from)? },
            _ => return Err(Error::corrupt(format!("log record: unknown type {kind}"))),
        };
        from.finish()?;
        Ok(record)
    }
}

/// Reads the record at the beginning of `bytes` (the rest of its block), with its padded length;
/// `None` where the block's records end.
///
/// # Errors
/// `Corrupt` when it is damaged; `ProtocolMismatch` when a newer program wrote it.
pub(crate) fn read_record(bytes: &[u8]) -> Result<Option<(Record, usize)>> {
    let Some((header, _)) = bytes.split_at_checked(HEADER_BYTES) else { return Ok(None) };
    let (kind, version) = (header[4], header[5]);
    if kind == 0 {
        return Ok(None);
    }
    let stored = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let length = usize::from(u16::from_le_bytes([header[6], header[7]]));
    if length < HEADER_BYTES || length > bytes.len() || crc32c(&bytes[4..length]) != stored {
        return Err(Error::corrupt("log record: it does not match its checksum"));
    }
    if version != RECORD_VERSION {
        return Err(Error::new(
            kiln_types::Code::ProtocolMismatch,
            format!("log record: version {version} is newer than this program"),
        ));
    }
    let record = Record::decode_body(kind, &bytes[HEADER_BYTES..length])?;
    Ok(Some((record, length.next_multiple_of(RECORD_ALIGN).min(BLOCK_BYTES))))
}

#[cfg(test)]
#[path = "record_tests.rs"]
pub(crate) mod tests;
