//! The superblock: whose store this is, and where its log begins.
//!
//! Two copies, in blocks 0 and 1; the one with the higher sequence number counts. A change is
//! written to one copy and made durable, then to the other: a crash damages at most one, and so may
//! decay. A copy fits in one sector of 512 bytes, the rest of its block is zeros. Numbers are
//! little-endian:
//!
//! | bytes | content |
//! | --- | --- |
//! | 0..8 | `KILNDISK` |
//! | 8..10, 10..12 | type (1: chunk store), version |
//! | 12..16 | bytes that follow and are covered by the CRC |
//! | 16..20 | CRC32C of bytes 20.. |
//! | 20..28 | sequence number |
//! | 28..44, 44..60 | disk id, cluster id |
//! | 60..68, 68..72 | blocks of the disk, blocks of a zone |
//! | 72..80, 80..84 | the log's oldest segment: first block, blocks |
//! | 84..92 | the sequence number of its first batch |

use crate::api::Identity;
use crate::extent::{BLOCK, Extent};
use kiln_disk::Disk;
use kiln_memory::{Buffer, Bytes};
use kiln_types::{
    BLOCK_BYTES, ClusterId, Code, Context, Decoder, DiskId, Encoder, Error, Result, crc32c,
};
use std::sync::Arc;

const MAGIC: [u8; 8] = *b"KILNDISK";
const TYPE: u16 = 1;
const VERSION: u16 = 1;
const BODY_AT: usize = 20;
const BODY_BYTES: usize = 72;

/// Blocks at the beginning of the disk that hold the two copies.
pub(crate) const SUPERBLOCKS: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) sequence: u64,
    pub(crate) identity: Identity,
    pub(crate) blocks: u64,
    pub(crate) zone_blocks: u32,
    pub(crate) head: Extent,
    pub(crate) head_sequence: u64,
}

impl Superblock {
    fn encode(&self) -> Bytes {
        let mut out = Encoder::new();
        out.u64(self.sequence).u128(self.identity.disk.0).u128(self.identity.cluster.0);
        out.u64(self.blocks).u32(self.zone_blocks);
        out.u64(self.head.start).u32(self.head.count).u64(self.head_sequence);
        let body = out.finish();
        let mut out = Encoder::new();
        out.raw(&MAGIC).u16(TYPE).u16(VERSION).u32(BODY_BYTES as u32).u32(crc32c(&body)).raw(&body);
        let mut block = Buffer::zeroed(BLOCK_BYTES);
        let bytes = out.finish();
        block[..bytes.len()].copy_from_slice(&bytes);
        block.freeze()
    }

    /// # Errors
    /// `Corrupt` when these are not the bytes of a superblock; `ProtocolMismatch` when a newer
    /// program wrote them.
    fn decode(block: &[u8]) -> Result<Self> {
        let mut from = Decoder::new("superblock", &block[..BODY_AT + BODY_BYTES]);
        if from.array::<8>()? != MAGIC {
            return Err(Error::corrupt("the disk holds something else than a kiln chunk store")
                .with_hint(
                    "to use it for kiln, zero its first 8 KiB; what it holds is lost then",
                ));
        }
        let (kind, version, bytes, crc) = (from.u16()?, from.u16()?, from.u32()?, from.u32()?);
        if kind != TYPE || version != VERSION {
            return Err(Error::new(
                Code::ProtocolMismatch,
                format!("superblock: type {kind} version {version} is not known to this program"),
            )
            .with_hint("use the program that wrote it, or a newer one"));
        }
        if bytes as usize != BODY_BYTES || crc32c(&block[BODY_AT..BODY_AT + BODY_BYTES]) != crc {
            return Err(Error::corrupt("superblock: it does not match its checksum"));
        }
        Ok(Self {
            sequence: from.u64()?,
            identity: Identity { disk: DiskId(from.u128()?), cluster: ClusterId(from.u128()?) },
            blocks: from.u64()?,
            zone_blocks: from.u32()?,
            head: Extent { start: from.u64()?, count: from.u32()? },
            head_sequence: from.u64()?,
        })
    }

    /// The newest copy; `None` on a blank disk.
    pub(crate) async fn read(disk: &Arc<dyn Disk>) -> Result<Option<Self>> {
        Ok(Self::read_copies(disk).await?.map(|(newest, _)| newest))
    }

    /// The newest copy, and whether the other one says the same. If it does not, it must not stay: it
    /// may name a segment that is not the log's any more.
    pub(crate) async fn read_copies(disk: &Arc<dyn Disk>) -> Result<Option<(Self, bool)>> {
        if disk.capacity() < SUPERBLOCKS * BLOCK {
            return Ok(None);
        }
        let bytes = disk.read(0, Buffer::zeroed(2 * BLOCK_BYTES)).await.context("superblock")?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let (first, second) = bytes.split_at(BLOCK_BYTES);
        match (Self::decode(first), Self::decode(second)) {
            (Ok(a), Ok(b)) => {
                let same = (a.head, a.head_sequence) == (b.head, b.head_sequence);
                Ok(Some((if a.sequence > b.sequence { a } else { b }, same)))
            }
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(Some((one, false))),
            (Err(error), Err(other)) => {
                let newer = other.code() == Code::ProtocolMismatch;
                Err(if newer { other } else { error })
            }
        }
    }

    /// Writes both copies, each made durable before the next.
    pub(crate) async fn write(&mut self, disk: &Arc<dyn Disk>) -> Result<()> {
        for _ in 0..SUPERBLOCKS {
            self.sequence += 1;
            let slot = self.sequence % SUPERBLOCKS;
            disk.write(slot * BLOCK, self.encode()).await.context("superblock")?;
            disk.sync().await.context("superblock")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn superblocks_come_back_and_damage_is_noticed(
            numbers in any::<(u64, u64, u64, u32, u64, u32)>(),
            ids in any::<(u128, u128)>(),
            at in 0usize..BODY_AT + BODY_BYTES,
            bit in 0u8..8,
        ) {
            let superblock = Superblock {
                sequence: numbers.0,
                identity: Identity { disk: DiskId(ids.0), cluster: ClusterId(ids.1) },
                blocks: numbers.1,
                zone_blocks: numbers.3,
                head: Extent { start: numbers.2, count: numbers.5 },
                head_sequence: numbers.4,
            };
            let mut bytes = superblock.encode().to_vec();
            prop_assert_eq!(Superblock::decode(&bytes).unwrap(), superblock);
            bytes[at] ^= 1 << bit;
            prop_assert!(Superblock::decode(&bytes).is_err());
        }
    }
}
