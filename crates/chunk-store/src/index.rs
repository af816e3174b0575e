//! Where each chunk's record is, and its version: an ordered map that takes about 55 bytes a chunk.
//!
//! The chunks are in sorted leaves of up to 256 entries, found through a tree of the leaves' first
//! keys. The standard tree alone would take up to 90 bytes a chunk when ids arrive in order, as
//! files' do.

use crate::extent::Position;
use crate::record::Head;
use kiln_types::{ChainVersion, ChunkId, ChunkVersion};
use std::collections::BTreeMap;

const LEAF_MAX: usize = 256;
const LEAF_STEP: usize = 16;
const REMOVED: u64 = 1 << 63;

/// What the index says of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) position: Position,
    /// A tombstone.
    pub(crate) removed: bool,
    version: ShortVersion,
}

/// A version in one word, as nearly all fit: 24 bits of chain version, 40 of counter; 0: it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ShortVersion(u64);

const COUNTER_BITS: u32 = 40;
const COUNTER_MAX: u64 = (1 << COUNTER_BITS) - 1;

type Entry = (ChunkId, u64, ShortVersion);

#[derive(Default)]
pub(crate) struct Index {
    leaves: BTreeMap<ChunkId, Vec<Entry>>,
    length: usize,
}

impl ShortVersion {
    fn of(version: ChunkVersion) -> Self {
        let fits = version.chain.0 >> (64 - COUNTER_BITS) == 0 && version.counter <= COUNTER_MAX;
        Self(if fits { version.chain.0 << COUNTER_BITS | version.counter } else { 0 })
    }

    fn get(self) -> Option<ChunkVersion> {
        let chain = ChainVersion(self.0 >> COUNTER_BITS);
        (self.0 != 0).then_some(ChunkVersion { chain, counter: self.0 & COUNTER_MAX })
    }
}

impl Slot {
    /// The slot of a committed version whose record is at `position`.
    pub(crate) fn of(head: &Head, position: Position) -> Self {
        Self { position, removed: head.removed, version: ShortVersion::of(head.version) }
    }

    pub(crate) fn moved(self, position: Position) -> Self {
        Self { position, ..self }
    }

    /// The committed version; `None` when only its record says it.
    pub(crate) fn version(&self) -> Option<ChunkVersion> {
        self.version.get()
    }

    fn entry(self, chunk: ChunkId) -> Entry {
        let word = self.position.word() | if self.removed { REMOVED } else { 0 };
        (chunk, word, self.version)
    }

    fn from_entry((_, word, version): &Entry) -> Self {
        let position = Position::from_packed(word & !REMOVED);
        Self { position, removed: word & REMOVED != 0, version: *version }
    }
}

impl Index {
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    fn leaf(&self, chunk: &ChunkId) -> Option<&Vec<Entry>> {
        self.leaves.range(..=chunk).next_back().map(|(_, leaf)| leaf)
    }

    pub(crate) fn get(&self, chunk: &ChunkId) -> Option<Slot> {
        let leaf = self.leaf(chunk)?;
        let at = leaf.binary_search_by(|entry| entry.0.cmp(chunk)).ok()?;
        Some(Slot::from_entry(&leaf[at]))
    }

    /// Sets a chunk's slot; returns the one before.
    pub(crate) fn insert(&mut self, chunk: ChunkId, slot: Slot) -> Option<Slot> {
        let entry = slot.entry(chunk);
        let key = self.leaves.range(..=chunk).next_back().or_else(|| self.leaves.first_key_value());
        let Some(key) = key.map(|(key, _)| *key) else {
            self.leaves.insert(chunk, vec![entry]);
            self.length = 1;
            return None;
        };
        let leaf = self.leaves.get_mut(&key).expect("invariant: the key was just found");
        match leaf.binary_search_by(|entry| entry.0.cmp(&chunk)) {
            Ok(at) => {
                let old = std::mem::replace(&mut leaf[at], entry);
                return Some(Slot::from_entry(&old));
            }
            Err(at) => {
                if leaf.len() == leaf.capacity() {
                    leaf.reserve_exact(LEAF_STEP);
                }
                leaf.insert(at, entry);
                self.length += 1;
                if at == 0 {
                    self.rekey(key);
                }
            }
        }
        self.split(if chunk < key { chunk } else { key });
        None
    }

    /// The first leaf got an entry before its key.
    fn rekey(&mut self, key: ChunkId) {
        if let Some(leaf) = self.leaves.remove(&key) {
            self.leaves.insert(leaf[0].0, leaf);
        }
    }

    fn split(&mut self, key: ChunkId) {
        let is_last = self.leaves.last_key_value().is_some_and(|(last, _)| *last == key);
        let Some(leaf) = self.leaves.get_mut(&key).filter(|leaf| leaf.len() > LEAF_MAX) else {
            return;
        };
        // Ids that arrive in order leave full leaves behind.
        let at = if is_last { LEAF_MAX } else { LEAF_MAX / 2 };
        let right = leaf.split_off(at);
        leaf.shrink_to_fit();
        self.leaves.insert(right[0].0, right);
    }

    pub(crate) fn remove(&mut self, chunk: &ChunkId) -> Option<Slot> {
        let (key, leaf) = self.leaves.range_mut(..=*chunk).next_back()?;
        let at = leaf.binary_search_by(|entry| entry.0.cmp(chunk)).ok()?;
        let entry = leaf.remove(at);
        self.length -= 1;
        let (key, emptied) = (*key, leaf.is_empty());
        if emptied {
            self.leaves.remove(&key);
        }
        Some(Slot::from_entry(&entry))
    }

    /// Entries in `[from, to)`, in order.
    pub(crate) fn range(
        &self,
        from: ChunkId,
        to: ChunkId,
    ) -> impl Iterator<Item = (ChunkId, Slot)> + '_ {
        let first = self.leaves.range(..=from).next_back().map_or(from, |(key, _)| *key);
        let leaves = (first < to).then(|| self.leaves.range(first..to));
        leaves.into_iter().flatten().flat_map(move |(_, leaf)| {
            let start = leaf.partition_point(|entry| entry.0 < from);
            let end = leaf.partition_point(|entry| entry.0 < to);
            leaf[start..end.max(start)].iter().map(|entry| (entry.0, Slot::from_entry(entry)))
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ChunkId, Slot)> + '_ {
        let entries = self.leaves.values().flatten();
        entries.map(|entry| (entry.0, Slot::from_entry(entry)))
    }

    /// Bytes of memory, about.
    pub(crate) fn memory(&self) -> usize {
        let leaves: usize =
            self.leaves.values().map(|leaf| leaf.capacity() * size_of::<Entry>() + 16).sum();
        leaves + self.leaves.len() * 2 * (size_of::<ChunkId>() + size_of::<Vec<Entry>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_types::{InodeId, TreeId};

    fn id(number: u64) -> ChunkId {
        ChunkId::file(TreeId(1), InodeId(number / 8), number % 8)
    }

    fn slot(random: &mut fastrand::Rng) -> Slot {
        let position = Position::new(random.u64(1..1 << 40) * 4096, 64);
        let bits = (random.u32(1..32), random.u32(1..50));
        let chain = ChainVersion(random.u64(0..1 << bits.0));
        let version = ChunkVersion { chain, counter: random.u64(0..1 << bits.1) };
        let slot = Slot { position, removed: random.bool(), version: ShortVersion::of(version) };
        assert!(slot.version().is_none_or(|short| short == version));
        assert_eq!(slot.version().is_none(), version == ChunkVersion::NONE || !fits(version));
        slot
    }

    fn fits(version: ChunkVersion) -> bool {
        version.chain.0 < 1 << 24 && version.counter < 1 << 40
    }

    #[test]
    fn agrees_with_the_standard_map() {
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut index, mut model) = (Index::default(), BTreeMap::new());
            for step in 0..6000_u64 {
                let spread = 1 + 2000 * (seed % 3);
                let number = if seed % 2 == 0 { random.u64(..spread) } else { step };
                if random.u8(..4) > 0 {
                    let slot = slot(&mut random);
                    assert_eq!(index.insert(id(number), slot), model.insert(id(number), slot));
                } else {
                    let number = random.u64(..spread.max(step));
                    assert_eq!(index.remove(&id(number)), model.remove(&id(number)));
                }
                assert_eq!(index.len(), model.len());
                assert_eq!(index.get(&id(number)), model.get(&id(number)).copied());
                if step % 50 == 0 {
                    let (from, to) = (id(random.u64(..spread)), id(random.u64(..spread + 2)));
                    let expected: Vec<_> = if from < to {
                        model.range(from..to).map(|(k, v)| (*k, *v)).collect()
                    } else {
                        Vec::new()
                    };
                    assert_eq!(index.range(from, to).collect::<Vec<_>>(), expected, "seed {seed}");
                }
            }
            assert!(index.iter().eq(model.iter().map(|(k, v)| (*k, *v))));
        }
    }

    #[test]
    fn a_chunk_takes_less_than_64_bytes() {
        let mut random = fastrand::Rng::with_seed(1);
        let orders: [Vec<u64>; 2] =
            [(0..100_000).collect(), (0..100_000).map(|_| random.u64(..)).collect()];
        for order in orders {
            let mut index = Index::default();
            order.iter().for_each(|number| {
                index.insert(id(*number), slot(&mut random));
            });
            let each = index.memory() / index.len();
            assert!(each < 64, "{each} bytes a chunk");
        }
    }
}
