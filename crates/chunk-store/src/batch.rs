//! Batches: what one group commit appends to the log.
//!
//! A batch is whole blocks: a header of 96 bytes, then records (see `record`). Numbers are
//! little-endian:
//!
//! | bytes | content |
//! | --- | --- |
//! | 0..4 | `KLB1` |
//! | 4..8 | CRC32C of all that follows |
//! | 8..10, 10..12 | version, bytes of the header |
//! | 12..16 | blocks of the batch |
//! | 16..32 | the disk id, so that another store's remains are not taken for ours |
//! | 32..40 | sequence number |
//! | 40..48 | every batch up to this sequence number, and all data before it, is durable |
//! | 48..52 | CRC of the batch before: what recovery cut off never fits behind a new batch |
//! | 52..56 | 0 |
//! | 56..64, 64..68 | the segment that follows this one: first block, blocks |
//! | 68..96 | 0 |

use crate::extent::{BLOCK, Extent, Position};
use crate::record::{Record, read_record};
use kiln_memory::{Buffer, Bytes};
use kiln_types::{BLOCK_BYTES, Code, Decoder, DiskId, Encoder, Error, Result, crc32c};

const MAGIC: [u8; 4] = *b"KLB1";
const VERSION: u16 = 1;
pub(crate) const HEADER_BYTES: usize = 96;
const COVERED_AT: usize = 8;

/// What a batch says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) disk: DiskId,
    pub(crate) sequence: u64,
    pub(crate) durable: u64,
    pub(crate) previous_crc: u32,
    pub(crate) next: Extent,
}

/// A batch that was read: its header, its own CRC, its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchFound {
    pub(crate) header: BatchHeader,
    pub(crate) crc: u32,
    pub(crate) blocks: u32,
}

/// Collects the records of a batch whose place on the disk is known.
pub(crate) struct BatchBuilder {
    buffer: Buffer,
    /// The batch's first block on the disk.
    start: u64,
    used: usize,
}

impl BatchBuilder {
    /// An empty batch at block `start`; it can grow as large as `buffer`, which is whole blocks.
    pub(crate) fn new(mut buffer: Buffer, start: u64) -> Self {
        buffer[..BLOCK_BYTES].fill(0);
        Self { buffer, start, used: HEADER_BYTES }
    }

    /// What to give to [`Self::back_to`].
    pub(crate) fn mark(&self) -> usize {
        self.used
    }

    /// Forgets the records that were pushed since.
    pub(crate) fn back_to(&mut self, mark: usize) {
        let end = mark.next_multiple_of(BLOCK_BYTES);
        self.buffer[mark..end].fill(0);
        self.used = mark;
    }

    /// Adds an encoded record; `None` when the batch is full.
    pub(crate) fn push(&mut self, record: &[u8]) -> Option<Position> {
        let mut at = self.used;
        if at % BLOCK_BYTES + record.len() > BLOCK_BYTES || at.is_multiple_of(BLOCK_BYTES) {
            at = at.next_multiple_of(BLOCK_BYTES);
            self.buffer.get_mut(at..at + BLOCK_BYTES)?.fill(0);
        }
        self.buffer[at..at + record.len()].copy_from_slice(record);
        self.used = at + record.len();
        Some(Position::new(self.start * BLOCK + at as u64, record.len()))
    }

    /// The batch as it goes to the disk, with its CRC.
    pub(crate) fn finish(mut self, header: &BatchHeader) -> (Bytes, u32) {
        self.buffer.truncate(self.used.next_multiple_of(BLOCK_BYTES));
        let blocks = (self.buffer.len() / BLOCK_BYTES) as u32;
        let mut out = Encoder::new();
        out.raw(&MAGIC).u32(0).u16(VERSION).u16(HEADER_BYTES as u16).u32(blocks);
        out.u128(header.disk.0).u64(header.sequence).u64(header.durable);
        out.u32(header.previous_crc).u32(0).u64(header.next.start).u32(header.next.count);
        let encoded = out.finish();
        self.buffer[..encoded.len()].copy_from_slice(&encoded);
        let crc = crc32c(&self.buffer[COVERED_AT..]);
        self.buffer[COVERED_AT - 4..COVERED_AT].copy_from_slice(&crc.to_le_bytes());
        (self.buffer.freeze(), crc)
    }
}

/// Reads the batch at the beginning of `bytes`; `None` when no whole batch of this disk is there.
///
/// # Errors
/// `ProtocolMismatch` when a newer program wrote it.
pub(crate) fn read_batch(bytes: &[u8], disk: DiskId) -> Result<Option<BatchFound>> {
    if bytes.len() < BLOCK_BYTES || bytes[..4] != MAGIC {
        return Ok(None);
    }
    let mut from = Decoder::new("log batch", &bytes[4..HEADER_BYTES]);
    let crc = from.u32()?;
    let (version, _header_bytes, blocks) = (from.u16()?, from.u16()?, from.u32()?);
    let found = BatchFound {
        header: BatchHeader {
            disk: DiskId(from.u128()?),
            sequence: from.u64()?,
            durable: from.u64()?,
            previous_crc: {
                let crc = from.u32()?;
                from.u32()?;
                crc
            },
            next: Extent { start: from.u64()?, count: from.u32()? },
        },
        crc,
        blocks,
    };
    let Some(batch) = bytes.get(..blocks as usize * BLOCK_BYTES) else { return Ok(None) };
    if batch.is_empty() || found.header.disk != disk || crc32c(&batch[COVERED_AT..]) != crc {
        return Ok(None);
    }
    if version != VERSION {
        return Err(Error::new(
            Code::ProtocolMismatch,
            format!("log batch: version {version} is not the version {VERSION} of this program"),
        ));
    }
    Ok(Some(found))
}

/// Calls `each` for every record of a batch that begins at block `start` of the disk.
///
/// # Errors
/// `Corrupt`, or what `each` returns.
pub(crate) fn for_each_record(
    batch: &[u8],
    start: u64,
    mut each: impl FnMut(Position, Record) -> Result<()>,
) -> Result<()> {
    for (index, block) in batch.chunks_exact(BLOCK_BYTES).enumerate() {
        let mut at = if index == 0 { HEADER_BYTES } else { 0 };
        while let Some((record, length)) = read_record(&block[at..])? {
            let address = (start + index as u64) * BLOCK + at as u64;
            each(Position::new(address, length), record)?;
            at += length;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::any_record;
    use proptest::prelude::*;

    const DISK: DiskId = DiskId(77);

    fn header() -> BatchHeader {
        let next = Extent { start: 900, count: 64 };
        BatchHeader { disk: DISK, sequence: 12, durable: 11, previous_crc: 3, next }
    }

    fn build(records: &[Record], blocks: usize) -> (Vec<(Position, Record)>, Bytes) {
        let mut buffer = Buffer::zeroed(blocks * BLOCK_BYTES);
        buffer.fill(0xee);
        let mut builder = BatchBuilder::new(buffer, 500);
        let mut placed = Vec::new();
        for record in records {
            let mark = builder.mark();
            let bytes = record.encode();
            builder.push(&bytes);
            builder.back_to(mark);
            if let Some(position) = builder.push(&bytes) {
                placed.push((position, record.clone()));
            }
        }
        (placed, builder.finish(&header()).0)
    }

    proptest! {
        #[test]
        fn batches_come_back(records in proptest::collection::vec(any_record(), 0..12)) {
            let (placed, bytes) = build(&records, 4);
            let found = read_batch(&bytes, DISK).unwrap().expect("whole");
            prop_assert_eq!(found.header, header());
            prop_assert_eq!(found.blocks as usize * BLOCK_BYTES, bytes.len());
            let mut read = Vec::new();
            for_each_record(&bytes, 500, |position, record| {
                read.push((position, record));
                Ok(())
            }).unwrap();
            prop_assert_eq!(read, placed);
            prop_assert_eq!(read_batch(&bytes, DiskId(78)).unwrap(), None);
        }

        #[test]
        fn damage_is_noticed(
            records in proptest::collection::vec(any_record(), 0..6),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let (_, bytes) = build(&records, 4);
            let mut flipped = bytes.to_vec();
            flipped[at.index(bytes.len())] ^= 1 << bit;
            prop_assert_eq!(read_batch(&flipped, DISK).unwrap(), None);
            prop_assert_eq!(read_batch(&bytes[..bytes.len() - BLOCK_BYTES], DISK).unwrap(), None);
        }
    }
}
