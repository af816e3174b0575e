//! The bodies of chunk requests and answers.
//!
//! Every body begins with a u16 version; fields follow in the order of the struct, little-endian.
//! Payloads travel beside the body in the frame; their checksums are here: one CRC32C for each block
//! of the chunk's 4 KiB grid that the payload touches, the first and last of which may be partial.

use crate::CAPABILITY_BYTES;
use kiln_types::{
    BLOCK_BYTES, CHUNK_BYTES_MAX, ChainId, ChainVersion, ChannelId, ChunkId, ChunkVersion,
    ClientId, Code, Consistency, Decoder, DiskId, Encoder, Error, Result, RetryKey, Sequence,
    TargetId, TruncateEpoch,
};

const VERSION: u16 = 1;

/// Most checksums that one message carries: those of the largest chunk.
const CHECKSUMS_MAX: usize = CHUNK_BYTES_MAX as usize / BLOCK_BYTES + 1;

/// What a frame asks for; its number is the frame's operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Operation {
    /// [`Read`] -> [`ReadDone`] and the bytes.
    Read = 1,
    /// [`Write`] and its bytes, from a client to the head -> [`WriteDone`].
    Write = 2,
    /// [`Forward`] and its bytes, from a replica to its successor -> [`WriteDone`].
    Forward = 3,
    /// [`Name`], from a replica to the commit point -> [`WriteDone`] with the committed version.
    CommittedVersion = 4,
    /// [`List`](crate::List), from a server or operator -> [`Listing`](crate::Listing).
    List = 5,
    /// [`Goodbye`]: a client ends and will not retry any more -> an empty body.
    Goodbye = 6,
    /// An empty body, from a server or operator -> [`Space`].
    Space = 7,
    /// [`List`](crate::List), from a server or operator -> [`Scrubbed`](crate::Scrubbed).
    Scrub = 8,
    /// [`Fill`](crate::Fill), from the commit point to the replica that it fills.
    Fill = 9,
    /// [`Install`](crate::Install) and the content, from the commit point to the replica that it fills.
    Install = 10,
    /// An empty body, from a server -> an empty body: whether it can be reached.
    Ping = 11,
    /// [`Name`], from a replica that lost it -> [`Copied`](crate::Copied) and the content of the
    /// committed version.
    Copy = 12,
    /// [`Read`], answered as a read is, but with [`Extents`](crate::Extents): which parts of the range
    /// are stored.
    Extents = 13,
}

impl Operation {
    /// Its name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Forward => "forward",
            Self::CommittedVersion => "committed version",
            Self::List => "list",
            Self::Goodbye => "goodbye",
            Self::Space => "space",
            Self::Scrub => "scrub",
            Self::Fill => "fill",
            Self::Install => "install",
            Self::Ping => "ping",
            Self::Copy => "copy",
            Self::Extents => "extents",
        }
    }

    /// The operation with this number.
    ///
    /// # Errors
    /// `Unsupported`.
    pub fn from_number(number: u16) -> Result<Self> {
        use Operation as O;
        [
            O::Read,
            O::Write,
            O::Forward,
            O::CommittedVersion,
            O::List,
            O::Goodbye,
            O::Space,
            O::Scrub,
            O::Fill,
            O::Install,
            O::Ping,
            O::Copy,
            O::Extents,
        ]
        .into_iter()
        .find(|operation| *operation as u16 == number)
        .ok_or_else(|| Error::new(Code::Unsupported, format!("operation {number} is not known")))
    }
}

/// A message body.
pub trait Body: Sized {
    /// Appends the fields.
    fn write(&self, to: &mut Encoder);
    /// Takes the fields.
    ///
    /// # Errors
    /// `Corrupt`.
    fn read(from: &mut Decoder<'_>) -> Result<Self>;
    /// What it is called in errors.
    const WHAT: &'static str;

    /// The body with its version in front.
    fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::new();
        to.u16(VERSION);
        self.write(&mut to);
        to.finish()
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// `Corrupt`, `ProtocolMismatch` for another version.
    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut from = Decoder::new(Self::WHAT, bytes);
        let version = from.u16()?;
        if version != VERSION {
            let text = format!("{}: version {version}, this build knows {VERSION}", Self::WHAT);
            return Err(Error::new(Code::ProtocolMismatch, text));
        }
        let body = Self::read(&mut from)?;
        from.finish()?;
        Ok(body)
    }
}

/// Which chunk, in which version of its chain as the sender knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// The chain.
    pub chain: ChainId,
    /// The version of the chain that the sender believes.
    pub chain_version: ChainVersion,
    /// The chunk.
    pub chunk: ChunkId,
}

/// Reads a range of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The chunk.
    pub name: Name,
    /// The first byte in the chunk.
    pub offset: u32,
    /// How many bytes; fewer come back when the chunk ends first.
    pub length: u32,
    /// A chunk of an older epoch does not count.
    pub floor: TruncateEpoch,
    /// What it may show of writes that are under way.
    pub consistency: Consistency,
    /// The right to read; empty between servers.
    pub capability: Vec<u8>,
}

/// The answer to a [`Read`]; the bytes are the frame's payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadDone {
    /// The version that was read.
    pub version: ChunkVersion,
    /// The chunk's length in bytes.
    pub chunk_length: u32,
    /// Checksums of the payload.
    pub checksums: Vec<u32>,
}

/// What a write changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Puts the payload at `offset`; a gap before it reads as zeros.
    Write {
        /// The first byte in the chunk.
        offset: u32,
        /// Checksums of the payload.
        checksums: Vec<u32>,
    },
    /// Cuts the chunk to `length`; a shorter one keeps its length. Creates the chunk if it is absent,
    /// so that its epoch refuses late writes.
    Truncate {
        /// Bytes that stay.
        length: u32,
    },
    /// Makes a range read as zeros and gives back the blocks that lie wholly in it. The chunk keeps its
    /// length, so that nothing changes beyond it. Creates the chunk if it is absent, so that the retry
    /// record comes to every replica: a late copy must not zero what was written since.
    Zero {
        /// The first byte in the chunk.
        offset: u32,
        /// How many bytes.
        length: u32,
    },
    /// Removes the chunk.
    Remove,
    /// The payload becomes the whole content.
    Replace {
        /// Checksums of the payload.
        checksums: Vec<u32>,
    },
}

/// A change of a chunk, as the client asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// What changes.
    pub change: Change,
    /// The inode's truncate epoch, under which the change is made.
    pub epoch: TruncateEpoch,
    /// Content of an older epoch does not count.
    pub floor: TruncateEpoch,
    /// The layout's chunk size in bytes: no change reaches beyond it.
    pub chunk_bytes: u32,
    /// Who asked; `None` for changes that are idempotent by themselves.
    pub retry: Option<RetryKey>,
}

/// A client's write, to the head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The chunk.
    pub name: Name,
    /// The change.
    pub update: Update,
    /// The right to write; empty from servers.
    pub capability: Vec<u8>,
}

/// An ordered write, from a replica to its successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The chunk.
    pub name: Name,
    /// The sender.
    pub from: TargetId,
    /// The version that the head gave.
    pub version: ChunkVersion,
    /// The committed version that it follows at the sender.
    pub previous: ChunkVersion,
    /// The change.
    pub update: Update,
}

/// The version that a write got, or that is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteDone {
    /// The version; [`ChunkVersion::NONE`] when nothing is committed.
    pub version: ChunkVersion,
}

/// A client incarnation that will not retry any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goodbye {
    /// The incarnation.
    pub client: ClientId,
}

/// One disk of a [`Space`] answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// The disk.
    pub disk: DiskId,
    /// Its size in bytes.
    pub capacity: u64,
    /// Bytes in use, metadata included.
    pub used: u64,
    /// Bytes that writers may still take of the disk; its reserve is not among them.
    pub free: u64,
    /// Free bytes that need no space of the file system beneath.
    pub backed: u64,
    /// The file system that gives the disk its space: its name, the same for all disks on it, and
    /// the bytes that it may still give to all of them. Nothing for a disk that has all its space.
    pub beneath: Option<(u128, u64)>,
}

/// The answer to [`Operation::Space`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// The server's disks.
    pub disks: Vec<DiskSpace>,
}

pub(crate) fn write_version(to: &mut Encoder, version: ChunkVersion) {
    to.u64(version.chain.0).u64(version.counter);
}

pub(crate) fn read_version(from: &mut Decoder<'_>) -> Result<ChunkVersion> {
    Ok(ChunkVersion { chain: ChainVersion(from.u64()?), counter: from.u64()? })
}

pub(crate) fn read_chunk(from: &mut Decoder<'_>) -> Result<ChunkId> {
    ChunkId::from_bytes(from.array()?)
}

pub(crate) fn write_retry(to: &mut Encoder, retry: &RetryKey) {
    to.u128(retry.client.0).u32(retry.channel.0).u64(retry.sequence.0);
}

pub(crate) fn read_retry(from: &mut Decoder<'_>) -> Result<RetryKey> {
    Ok(RetryKey {
        client: ClientId(from.u128()?),
        channel: ChannelId(from.u32()?),
        sequence: Sequence(from.u64()?),
    })
}

pub(crate) fn write_checksums(to: &mut Encoder, checksums: &[u32]) {
    to.u32(checksums.len() as u32);
    for checksum in checksums {
        to.u32(*checksum);
    }
}

pub(crate) fn read_count(from: &mut Decoder<'_>, limit: usize) -> Result<usize> {
    let count = from.u32()? as usize;
    if count > limit {
        return Err(Error::corrupt(format!("{count} elements, at most {limit} allowed")));
    }
    Ok(count)
}

pub(crate) fn read_checksums(from: &mut Decoder<'_>) -> Result<Vec<u32>> {
    let count = read_count(from, CHECKSUMS_MAX)?;
    (0..count).map(|_| from.u32()).collect()
}

impl Body for Name {
    const WHAT: &'static str = "chunk name";

    fn write(&self, to: &mut Encoder) {
        to.u64(self.chain.0).u64(self.chain_version.0).raw(self.chunk.as_bytes());
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self {
            chain: ChainId(from.u64()?),
            chain_version: ChainVersion(from.u64()?),
            chunk: read_chunk(from)?,
        })
    }
}

impl Body for Read {
    const WHAT: &'static str = "read request";

    fn write(&self, to: &mut Encoder) {
        self.name.write(to);
        to.u32(self.offset).u32(self.length).u64(self.floor.0).u8(self.consistency as u8);
        to.bytes(&self.capability);
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self {
            name: Name::read(from)?,
            offset: from.u32()?,
            length: from.u32()?,
            floor: TruncateEpoch(from.u64()?),
            consistency: {
                let number = from.u8()?;
                Consistency::from_number(number).ok_or_else(|| {
                    Error::corrupt(format!("a read of consistency {number}, which is not known"))
                })?
            },
            capability: from.bytes(CAPABILITY_BYTES)?.to_vec(),
        })
    }
}

impl Body for ReadDone {
    const WHAT: &'static str = "read answer";

    fn write(&self, to: &mut Encoder) {
        write_version(to, self.version);
        to.u32(self.chunk_length);
        write_checksums(to, &self.checksums);
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self {
            version: read_version(from)?,
            chunk_length: from.u32()?,
            checksums: read_checksums(from)?,
        })
    }
}

impl Body for Update {
    const WHAT: &'static str = "update";

    fn write(&self, to: &mut Encoder) {
        let (kind, number, checksums): (u8, u32, &[u32]) = match &self.change {
            Change::Write { offset, checksums } => (1, *offset, checksums),
            Change::Truncate { length } => (2, *length, &[]),
            Change::Remove => (3, 0, &[]),
            Change::Replace { checksums } => (4, 0, checksums),
            Change::Zero { offset, .. } => (5, *offset, &[]),
        };
        to.u8(kind).u32(number);
        write_checksums(to, checksums);
        if let Change::Zero { length, .. } = self.change {
            to.u32(length);
        }
        to.u64(self.epoch.0).u64(self.floor.0).u32(self.chunk_bytes);
        to.u8(u8::from(self.retry.is_some()));
        if let Some(retry) = self.retry {
            write_retry(to, &retry);
        }
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        let (kind, number) = (from.u8()?, from.u32()?);
        let checksums = read_checksums(from)?;
        let change = match kind {
            1 => Change::Write { offset: number, checksums },
            2 => Change::Truncate { length: number },
            3 => Change::Remove,
            4 => Change::Replace { checksums },
            5 => Change::Zero { offset: number, length: from.u32()? },
            _ => {
                let text = format!("a change of kind {kind}, which this build does not know");
                return Err(Error::new(Code::Unsupported, text));
            }
        };
        let (epoch, floor) = (TruncateEpoch(from.u64()?), TruncateEpoch(from.u64()?));
        let chunk_bytes = from.u32()?;
        let retry = match from.u8()? {
            0 => None,
            1 => Some(read_retry(from)?),
            other => return Err(Error::corrupt(format!("retry marker {other}"))),
        };
        Ok(Self { change, epoch, floor, chunk_bytes, retry })
    }
}

impl Body for Write {
    const WHAT: &'static str = "write request";

    fn write(&self, to: &mut Encoder) {
        self.name.write(to);
        self.update.write(to);
        to.bytes(&self.capability);
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self {
            name: Name::read(from)?,
            update: Update::read(from)?,
            capability: from.bytes(CAPABILITY_BYTES)?.to_vec(),
        })
    }
}

impl Body for Forward {
    const WHAT: &'static str = "forwarded write";

    fn write(&self, to: &mut Encoder) {
        self.name.write(to);
        to.u64(self.from.0);
        write_version(to, self.version);
        write_version(to, self.previous);
        self.update.write(to);
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self {
            name: Name::read(from)?,
            from: TargetId(from.u64()?),
            version: read_version(from)?,
            previous: read_version(from)?,
            update: Update::read(from)?,
        })
    }
}

impl Body for WriteDone {
    const WHAT: &'static str = "write answer";

    fn write(&self, to: &mut Encoder) {
        write_version(to, self.version);
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self { version: read_version(from)? })
    }
}

impl Body for Goodbye {
    const WHAT: &'static str = "goodbye";

    fn write(&self, to: &mut Encoder) {
        to.u128(self.client.0);
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self { client: ClientId(from.u128()?) })
    }
}

impl Body for Space {
    const WHAT: &'static str = "space answer";

    fn write(&self, to: &mut Encoder) {
        to.u32(self.disks.len() as u32);
        for disk in &self.disks {
            to.u128(disk.disk.0).u64(disk.capacity).u64(disk.used).u64(disk.free).u64(disk.backed);
            to.u8(u8::from(disk.beneath.is_some()));
            if let Some((id, free)) = disk.beneath {
                to.u128(id).u64(free);
            }
        }
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        let count = read_count(from, 1024)?;
        let disk = |from: &mut Decoder<'_>| {
            let (disk, capacity, used) = (DiskId(from.u128()?), from.u64()?, from.u64()?);
            let (free, backed) = (from.u64()?, from.u64()?);
            let beneath = match from.u8()? {
                0 => None,
                1 => Some((from.u128()?, from.u64()?)),
                other => return Err(Error::invalid(format!("space answer: flag {other}"))),
            };
            Ok(DiskSpace { disk, capacity, used, free, backed, beneath })
        };
        Ok(Self { disks: (0..count).map(|_| disk(from)).collect::<Result<_>>()? })
    }
}
