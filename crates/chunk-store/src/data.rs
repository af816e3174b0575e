//! New data of a version, and where its blocks go.

use crate::extent::Extent;
use crate::group::Mapped;
use kiln_memory::Bytes;
use kiln_types::{BLOCK_BYTES, crc32c};

/// New data of a version: whole blocks, from one block of the chunk on.
pub(crate) struct Data {
    pub(crate) first: u32,
    pub(crate) crcs: Vec<u32>,
    /// Memory of whole blocks, back to back, without those that are holes.
    pub(crate) pieces: Vec<Bytes>,
    /// Which of the blocks are holes; none of those behind the last one that is said here.
    holes: Vec<bool>,
}

impl Data {
    pub(crate) fn none() -> Self {
        Self::of(0, Vec::new(), Vec::new())
    }

    pub(crate) fn of(first: u32, crcs: Vec<u32>, pieces: Vec<Bytes>) -> Self {
        Self { first, crcs, pieces, holes: Vec::new() }
    }

    /// `count` holes, but for the blocks in `edges`.
    pub(crate) fn zeros(first: u32, count: u32, edges: Vec<(u32, Bytes)>) -> Self {
        let (mut crcs, mut holes) = (vec![0; count as usize], vec![true; count as usize]);
        for (number, block) in &edges {
            let at = (number - first) as usize;
            (crcs[at], holes[at]) = (crc32c(block), false);
        }
        Self { first, crcs, pieces: edges.into_iter().map(|(_, block)| block).collect(), holes }
    }

    /// Leaves blocks of zeros out: a copy of a chunk with holes has them too.
    pub(crate) fn with_holes(mut self) -> Self {
        let zeros = crc32c(&[0; BLOCK_BYTES]);
        if !self.crcs.contains(&zeros) {
            return self;
        }
        for piece in std::mem::take(&mut self.pieces) {
            let mut kept = 0;
            for (at, block) in (0..).step_by(BLOCK_BYTES).zip(piece.chunks(BLOCK_BYTES)) {
                let crc = self.crcs[self.holes.len()];
                let is_hole = crc == zeros && block.iter().all(|byte| *byte == 0);
                self.holes.push(is_hole);
                if is_hole {
                    self.pieces.extend((kept < at).then(|| piece.slice(kept..at)));
                    kept = at + BLOCK_BYTES;
                }
            }
            self.pieces.extend((kept < piece.len()).then(|| piece.slice(kept..piece.len())));
        }
        self
    }

    /// How many blocks need a place.
    pub(crate) fn mapped(&self) -> u32 {
        (self.crcs.len() - self.holes.iter().filter(|hole| **hole).count()) as u32
    }

    /// Where each block lies when its place is taken from `space`.
    pub(crate) fn map(&self, space: &[Extent]) -> Vec<Mapped> {
        let mut places = space.iter().flat_map(|extent| extent.start..extent.end());
        let mut place = |at: usize, crc: u32| match self.holes.get(at) {
            Some(true) => Mapped::default(),
            _ => Mapped { block: places.next().unwrap_or_default(), crc },
        };
        self.crcs.iter().enumerate().map(|(at, crc)| place(at, *crc)).collect()
    }
}

/// Pairs memory with blocks: both are runs, with different borders.
pub(crate) fn place(pieces: &[Bytes], space: &[Extent]) -> Vec<(u64, Bytes)> {
    let mut placed = Vec::new();
    let mut extents = space.iter().copied();
    let mut room: Option<Extent> = None;
    for piece in pieces {
        let mut at = 0;
        while at < piece.len() {
            let Some(extent) = room.take().or_else(|| extents.next()) else { return placed };
            let bytes = (extent.bytes() as usize).min(piece.len() - at);
            placed.push((extent.start, piece.slice(at..at + bytes)));
            at += bytes;
            let used = (bytes / BLOCK_BYTES) as u32;
            if used < extent.count {
                room = Some(Extent::new(extent.start + u64::from(used), extent.count - used));
            }
        }
    }
    placed
}
