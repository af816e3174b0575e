//! Addresses on the disk: runs of blocks, and places of records in the log.

use kiln_types::{BLOCK_BYTES, Error, Result};

/// A block in bytes, as disk offsets count.
pub(crate) const BLOCK: u64 = BLOCK_BYTES as u64;

/// A run of neighbouring blocks; start 0 is a hole, since block 0 is a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Extent {
    pub(crate) start: u64,
    pub(crate) count: u32,
}

const COUNT_BITS: u32 = 20;
const START_MAX: u64 = (1 << (64 - COUNT_BITS)) - 1;

impl Extent {
    pub(crate) fn new(start: u64, count: u32) -> Self {
        debug_assert!(start <= START_MAX && count >> COUNT_BITS == 0);
        Self { start, count }
    }

    pub(crate) fn is_hole(self) -> bool {
        self.start == 0
    }

    pub(crate) fn end(self) -> u64 {
        self.start + u64::from(self.count)
    }

    /// The disk offset in bytes.
    pub(crate) fn offset(self) -> u64 {
        self.start * BLOCK
    }

    pub(crate) fn bytes(self) -> u64 {
        u64::from(self.count) * BLOCK
    }

    pub(crate) fn pack(self) -> u64 {
        self.start << COUNT_BITS | u64::from(self.count)
    }

    pub(crate) fn unpack(word: u64) -> Self {
        Self { start: word >> COUNT_BITS, count: (word & ((1 << COUNT_BITS) - 1)) as u32 }
    }
}

/// Appends one block (0: a hole) to a list of runs.
pub(crate) fn push_block(extents: &mut Vec<Extent>, block: u64) {
    match extents.last_mut() {
        Some(last) if last.is_hole() && block == 0 => last.count += 1,
        Some(last) if !last.is_hole() && block != 0 && last.end() == block => last.count += 1,
        _ => extents.push(Extent::new(block, 1)),
    }
}

/// How many blocks of disk the runs occupy.
pub(crate) fn blocks_of(extents: &[Extent]) -> u64 {
    extents.iter().filter(|e| !e.is_hole()).map(|e| u64::from(e.count)).sum()
}

/// Records begin at multiples of this, so that a place and a length fit in one word.
pub(crate) const RECORD_ALIGN: usize = 32;

/// Where a record lies: its byte address, and its length in units of [`RECORD_ALIGN`]; 0 is
/// nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Position(u64);

const ADDRESS_BITS: u32 = 56;
/// The highest bit of a packed position belongs to the index.
const UNITS_MASK: u64 = 0x7f;

impl Position {
    pub(crate) const NOWHERE: Self = Self(0);

    pub(crate) fn new(address: u64, bytes: usize) -> Self {
        debug_assert!(address >> ADDRESS_BITS == 0 && bytes.is_multiple_of(RECORD_ALIGN));
        Self(address | ((bytes / RECORD_ALIGN) as u64 & UNITS_MASK) << ADDRESS_BITS)
    }

    /// The byte address on the disk.
    pub(crate) fn address(self) -> u64 {
        self.0 & ((1 << ADDRESS_BITS) - 1)
    }

    /// The block that holds the whole record.
    pub(crate) fn block(self) -> u64 {
        self.address() / BLOCK
    }

    /// Where the record begins in its block.
    pub(crate) fn within(self) -> usize {
        (self.address() % BLOCK) as usize
    }

    /// How long the record is, padding included.
    pub(crate) fn bytes(self) -> u64 {
        (self.0 >> ADDRESS_BITS & UNITS_MASK) * RECORD_ALIGN as u64
    }

    /// What the record costs of the log, with its share of the gaps at the ends of blocks; at most.
    pub(crate) fn cost(self) -> u64 {
        BLOCK.checked_div(self.bytes()).map_or(0, |records| BLOCK / records)
    }

    pub(crate) fn word(self) -> u64 {
        self.0
    }

    /// The inverse of [`Self::word`], for words that were made here.
    pub(crate) fn from_packed(word: u64) -> Self {
        Self(word)
    }

    /// # Errors
    /// `Corrupt` when it reaches over the end of its block.
    pub(crate) fn from_word(word: u64) -> Result<Self> {
        let position = Self(word & !(1 << 63));
        let end = position.within() as u64 + position.bytes();
        let fits = end <= BLOCK && position.address().is_multiple_of(RECORD_ALIGN as u64);
        if fits { Ok(position) } else { Err(Error::corrupt(format!("no place: {word:#x}"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_hold_extents_and_positions() {
        let extent = Extent::new(0xfff_1234_5678, 0xf_ffff);
        assert_eq!(Extent::unpack(extent.pack()), extent);
        let position = Position::new(0xff_1234_5678_9000, 4064);
        assert_eq!((position.within(), position.bytes()), (0, 4064));
        assert_eq!(Position::from_word(position.word()).unwrap(), position);
        assert!(Position::from_word(Position::new(0x9020, 4064).word()).is_ok());
        assert!(Position::from_word(Position::new(0x9040, 4064).word()).is_err());
    }

    #[test]
    fn neighbours_merge() {
        let mut extents = Vec::new();
        for block in [5, 6, 0, 0, 7, 9, 10] {
            push_block(&mut extents, block);
        }
        let expected = [(5, 2), (0, 2), (7, 1), (9, 2)].map(|(s, c)| Extent::new(s, c));
        assert_eq!(extents, expected);
        assert_eq!(blocks_of(&extents), 5);
    }
}
