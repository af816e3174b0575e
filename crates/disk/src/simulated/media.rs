//! What a simulated disk stores: for each block, what is durable and what may still be lost.

use crate::range::BLOCK;
use kiln_env::Env;
use kiln_types::BLOCK_BYTES;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a disk writes as a whole or not at all.
const SECTOR_BYTES: usize = 512;
const SECTORS: usize = BLOCK_BYTES / SECTOR_BYTES;

type Block = [u8; BLOCK_BYTES];
/// A block's content; `None` is zeros.
type Content = Option<Arc<Block>>;

#[derive(Default)]
struct Cell {
    durable: Content,
    /// Later contents in the order of writing, each with its number.
    unsynced: Vec<(u64, Content)>,
}

/// What becomes of the unsynced contents.
#[derive(Clone, Copy)]
enum Fate {
    Lost,
    Kept,
    /// Each block shows one of its contents.
    TornBetweenBlocks,
    /// Each sector shows one of its contents.
    TornInBlocks,
}

#[derive(Default)]
pub(super) struct Media {
    cells: BTreeMap<u64, Cell>,
    /// Blocks with unsynced contents.
    unsynced: BTreeSet<u64>,
    /// Blocks that take space on the file system.
    allocated: BTreeSet<u64>,
    /// How many blocks the file system has room for.
    room: Option<u64>,
    written: u64,
}

impl Media {
    pub(super) fn set_room(&mut self, bytes: u64) {
        self.room = Some(bytes / BLOCK);
    }

    /// Bytes that the file system has left, if there is one.
    pub(super) fn room_left(&self) -> Option<u64> {
        self.room.map(|room| room.saturating_sub(self.allocated.len() as u64) * BLOCK)
    }

    /// Takes space for a range, from its start on, as far as there is room; returns the bytes that
    /// have space.
    pub(super) fn allocate(&mut self, offset: u64, length: usize) -> usize {
        let first = offset / BLOCK;
        let blocks = length as u64 / BLOCK;
        for block in first..first + blocks {
            let full = self.room.is_some_and(|room| self.allocated.len() as u64 >= room);
            if full && !self.allocated.contains(&block) {
                return ((block - first) * BLOCK) as usize;
            }
            self.allocated.insert(block);
        }
        length
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) {
        for (block, into) in (offset / BLOCK..).zip(buffer.chunks_exact_mut(BLOCK_BYTES)) {
            match self.cells.get(&block).and_then(Cell::latest) {
                Some(content) => into.copy_from_slice(&content[..]),
                None => into.fill(0),
            }
        }
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (block, from) in (offset / BLOCK..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
            let mut content = [0; BLOCK_BYTES];
            content.copy_from_slice(from);
            self.push(block, Some(Arc::new(content)));
        }
    }

    /// Writes a random choice of the sectors: how far an operation came that is not over, or
    /// failed.
    pub(super) fn write_some_sectors(&mut self, env: &Env, offset: u64, bytes: &[u8]) {
        for (block, from) in (offset / BLOCK..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
            let chosen = env.random_u64();
            let before = self.cells.get(&block).and_then(Cell::latest);
            let mut content = before.map_or([0; BLOCK_BYTES], |content| **content);
            for sector in (0..SECTORS).filter(|sector| chosen >> sector & 1 == 1) {
                let range = sector_range(sector);
                content[range.clone()].copy_from_slice(&from[range]);
            }
            self.push(block, Some(Arc::new(content)));
        }
    }

    /// Frees the space of a range; each block then reads as zeros or as before.
    pub(super) fn discard(&mut self, env: &Env, offset: u64, length: u64) {
        for block in offset / BLOCK..(offset + length) / BLOCK {
            self.allocated.remove(&block);
            if self.cells.contains_key(&block) && env.random_below(2) == 0 {
                self.push(block, None);
            }
        }
    }

    fn push(&mut self, block: u64, content: Content) {
        self.written += 1;
        self.cells.entry(block).or_default().unsynced.push((self.written, content));
        self.unsynced.insert(block);
    }

    /// Everything that is written up to now has a number up to this one.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Makes durable what has a number up to `written`.
    pub(super) fn sync(&mut self, written: u64) {
        let cells = &mut self.cells;
        self.unsynced.retain(|block| {
            let Some(cell) = cells.get_mut(block) else { return false };
            let covered = cell.unsynced.partition_point(|(number, _)| *number <= written);
            if let Some((_, content)) = cell.unsynced.drain(..covered).next_back() {
                cell.durable = content;
            }
            let clean = cell.unsynced.is_empty();
            if clean && cell.durable.is_none() {
                cells.remove(block);
            }
            !clean
        });
    }

    /// Decides at random what is left of everything unsynced.
    pub(super) fn settle(&mut self, env: &Env) {
        let fate = match env.random_below(8) {
            0 => Fate::Lost,
            1 => Fate::Kept,
            2..=3 => Fate::TornBetweenBlocks,
            _ => Fate::TornInBlocks,
        };
        for block in std::mem::take(&mut self.unsynced) {
            if let Some(cell) = self.cells.get_mut(&block) {
                cell.settle(fate, env.random_u64());
            }
        }
    }

    /// The blocks that are not zeros as nobody wrote them.
    pub(super) fn blocks(&self) -> Vec<u64> {
        self.cells.keys().copied().collect()
    }

    pub(super) fn flip_bit(&mut self, offset: u64, bit: u8) {
        let cell = self.cells.entry(offset / BLOCK).or_default();
        let at = (offset % BLOCK) as usize;
        let contents = cell.unsynced.iter_mut().map(|(_, content)| content);
        for content in contents.chain([&mut cell.durable]) {
            let block = content.get_or_insert_with(|| Arc::new([0; BLOCK_BYTES]));
            Arc::make_mut(block)[at] ^= 1 << (bit % 8);
        }
    }
}

impl Cell {
    fn latest(&self) -> Option<&Arc<Block>> {
        self.unsynced.last().map_or(&self.durable, |(_, content)| content).as_ref()
    }

    fn settle(&mut self, fate: Fate, random: u64) {
        let choices = self.unsynced.len() as u64 + 1;
        let pick = |byte: u64| (((random >> (8 * byte)) & 0xff) * choices) >> 8;
        let settled = match fate {
            Fate::Lost => self.content(0),
            Fate::Kept => self.content(choices - 1),
            Fate::TornBetweenBlocks => self.content(pick(0)),
            Fate::TornInBlocks => {
                let mut mixed = [0; BLOCK_BYTES];
                for sector in 0..SECTORS {
                    if let Some(content) = self.content(pick(sector as u64)) {
                        let range = sector_range(sector);
                        mixed[range.clone()].copy_from_slice(&content[range]);
                    }
                }
                Some(Arc::new(mixed))
            }
        };
        self.durable = settled;
        self.unsynced.clear();
    }

    /// The durable content is number 0, the unsynced ones follow.
    fn content(&self, number: u64) -> Content {
        match number.checked_sub(1) {
            None => self.durable.clone(),
            Some(at) => self.unsynced[at as usize].1.clone(),
        }
    }
}

fn sector_range(sector: usize) -> std::ops::Range<usize> {
    sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES
}
