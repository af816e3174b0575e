//! Where a group of up to 256 blocks of a chunk lies on the disk, and what each block must hash to.

use crate::extent::{Extent, push_block};
use kiln_types::{BLOCK_BYTES, Decoder, Encoder, Error, Result};

/// Blocks of a group; a chunk up to this size has its group in its own record.
pub(crate) const GROUP_BLOCKS: u32 = 256;
/// Bytes of chunk that a group covers.
pub(crate) const GROUP_BYTES: u32 = GROUP_BLOCKS * BLOCK_BYTES as u32;

/// A part of a chunk version. Blocks on disk are always whole, with zeros behind the chunk's end,
/// and a checksum covers the whole block. What is not mapped is zeros.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Group {
    extents: Vec<Extent>,
    /// One for each mapped block and hole; 0 for holes.
    crcs: Vec<u32>,
}

/// One block of a group: its place (0: a hole) and its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Mapped {
    pub(crate) block: u64,
    pub(crate) crc: u32,
}

impl Group {
    /// The group with these blocks.
    pub(crate) fn of(blocks: &[Mapped]) -> Self {
        debug_assert!(blocks.len() <= GROUP_BLOCKS as usize);
        let covered = blocks.iter().rposition(|b| b.block != 0).map_or(0, |last| last + 1);
        let mut group = Self { extents: Vec::new(), crcs: Vec::with_capacity(covered) };
        for mapped in &blocks[..covered] {
            push_block(&mut group.extents, mapped.block);
            group.crcs.push(if mapped.block == 0 { 0 } else { mapped.crc });
        }
        group
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    pub(crate) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// All blocks, up to the last mapped one.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Mapped> + '_ {
        let places = self.extents.iter().flat_map(|e| {
            (0..u64::from(e.count)).map(|at| if e.is_hole() { 0 } else { e.start + at })
        });
        places.zip(&self.crcs).map(|(block, crc)| Mapped { block, crc: *crc })
    }

    /// All blocks, in an array of the group's full size.
    pub(crate) fn expand(&self) -> Vec<Mapped> {
        let mut blocks: Vec<Mapped> = self.blocks().collect();
        blocks.resize(GROUP_BLOCKS as usize, Mapped::default());
        blocks
    }

    /// The runs that cover the blocks `from..to`: (first block in the group, extent), holes
    /// included.
    pub(crate) fn runs(&self, from: u32, to: u32) -> Vec<(u32, Extent)> {
        let mut runs = Vec::new();
        let mut at = 0;
        for extent in &self.extents {
            let (start, end) = (at.max(from), (at + extent.count).min(to));
            if start < end {
                let disk = if extent.is_hole() { 0 } else { extent.start + u64::from(start - at) };
                runs.push((start, Extent::new(disk, end - start)));
            }
            at += extent.count;
        }
        if at.max(from) < to {
            runs.push((at.max(from), Extent::new(0, to - at.max(from))));
        }
        runs
    }

    /// The checksum of a block; 0 for a hole.
    pub(crate) fn crc(&self, block: u32) -> u32 {
        self.crcs.get(block as usize).copied().unwrap_or(0)
    }

    pub(crate) fn get(&self, block: u32) -> Mapped {
        match self.runs(block, block + 1).first() {
            Some((_, extent)) => Mapped { block: extent.start, crc: self.crc(block) },
            None => Mapped::default(),
        }
    }

    /// The blocks that `self` uses and `other` does not. A block that both use is at the same place
    /// in both, because blocks are shared between versions of one chunk only.
    pub(crate) fn blocks_not_in(&self, other: &Self, out: &mut Vec<Extent>) {
        let mut others = other.blocks().map(|mapped| mapped.block);
        for mapped in self.blocks() {
            let shared = others.next() == Some(mapped.block);
            if mapped.block != 0 && !shared {
                push_block(out, mapped.block);
            }
        }
    }

    /// Bytes of memory that it takes, about.
    pub(crate) fn memory(&self) -> usize {
        64 + size_of::<Extent>() * self.extents.capacity() + 4 * self.crcs.capacity()
    }

    pub(crate) fn encode(&self, out: &mut Encoder) {
        out.u16(self.extents.len() as u16).u16(self.crcs.len() as u16);
        self.extents.iter().for_each(|extent| {
            out.u64(extent.pack());
        });
        self.crcs.iter().for_each(|crc| {
            out.u32(*crc);
        });
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        let (extents, blocks) = (from.u16()?, from.u16()?);
        let extents = (0..extents)
            .map(|_| from.u64().map(Extent::unpack))
            .collect::<Result<Vec<Extent>>>()?;
        let crcs = (0..blocks).map(|_| from.u32()).collect::<Result<Vec<u32>>>()?;
        let covered: u64 = extents.iter().map(|e| u64::from(e.count)).sum();
        let whole = covered == u64::from(blocks) && blocks <= GROUP_BLOCKS as u16;
        if !whole || extents.iter().any(|e| e.count == 0) {
            return Err(Error::corrupt("a chunk's runs and checksums do not fit together"));
        }
        Ok(Self { extents, crcs })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn any_group() -> impl Strategy<Value = Group> {
        let block = prop_oneof![
            1 => Just(Mapped::default()),
            3 => (1u64..1000, any::<u32>()).prop_map(|(block, crc)| Mapped { block, crc }),
        ];
        proptest::collection::vec(block, 0..=GROUP_BLOCKS as usize).prop_map(|b| Group::of(&b))
    }

    proptest! {
        #[test]
        fn runs_cover_what_blocks_say(group in any_group(), from in 0u32..256, count in 0u32..256) {
            let to = (from + count).min(GROUP_BLOCKS);
            let expanded = group.expand();
            let mut at = from;
            for (start, extent) in group.runs(from, to) {
                prop_assert_eq!(start, at);
                for block in 0..extent.count {
                    let at_disk = extent.start + u64::from(block);
                    let expected = if extent.is_hole() { 0 } else { at_disk };
                    prop_assert_eq!(expanded[at as usize].block, expected);
                    prop_assert_eq!(group.get(at), expanded[at as usize]);
                    at += 1;
                }
            }
            prop_assert_eq!(at, to.max(from));
            prop_assert_eq!(Group::of(&expanded), group);
        }
    }
}
