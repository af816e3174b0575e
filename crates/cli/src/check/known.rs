//! What the metadata says about the chunks of files.

use super::walk::all_files;
use crate::remote::Remote;
use kiln_rpc::convert::{floors_from, required};
use kiln_rpc::v1;
use kiln_types::{
    ChainId, ChunkId, Error, InodeId, Layout, Result, RoutingInfo, TreeId, TruncateEpoch,
};
use kiln_wire::Listed;
use std::collections::BTreeMap;
use std::ops::Range;

/// Files of one batch, give or take a page: so many are in memory at a time.
const BATCH: usize = 16 * 1024;
/// Files in one page.
const PAGE: u32 = 1024;

/// A file, or one that was removed and whose chunks are being collected.
pub(super) struct Known {
    pub(super) inode: InodeId,
    pub(super) epoch: TruncateEpoch,
    pub(super) layout: Layout,
    pub(super) removed: bool,
    dense_end: u64,
    floors: Vec<(u64, TruncateEpoch)>,
}

impl Known {
    fn of(message: v1::InodeChunks) -> Result<Self> {
        Ok(Self {
            inode: InodeId(message.inode),
            epoch: TruncateEpoch(message.epoch),
            layout: required(message.layout, "layout")?,
            removed: message.removed,
            dense_end: message.dense_end,
            floors: floors_from(&message.floors)?,
        })
    }

    /// How many bytes chunk `index` must have: those that were acknowledged to a writer.
    pub(super) fn needed(&self, index: u64) -> u32 {
        let chunk_bytes = u64::from(self.layout.chunk_bytes);
        let start = index.saturating_mul(chunk_bytes);
        self.dense_end.saturating_sub(start).min(chunk_bytes) as u32
    }

    /// How many bytes of a stored chunk count.
    pub(super) fn counted(&self, index: u64, listed: Option<&Listed>) -> u32 {
        let below = |(first, _): &&(u64, TruncateEpoch)| *first <= index;
        let floor = self.floors.iter().rev().find(below).map(|(_, epoch)| *epoch);
        let counts = |listed: &&Listed| floor.is_none_or(|floor| listed.epoch >= floor);
        listed.filter(counts).map_or(0, |listed| listed.length)
    }
}

/// All files whose ids are in a range.
pub(super) struct Batch {
    /// Where their chunks' ids lie.
    pub(super) range: (ChunkId, ChunkId),
    files: BTreeMap<InodeId, Known>,
    /// The ids that may have been given before the batch was read.
    ids: Ids,
    /// The chunks that must be there, for each chain.
    expected: BTreeMap<ChainId, Vec<Expected>>,
    /// Files of which nobody knows where their chunks are.
    pub(super) unplaced: Vec<(InodeId, Error)>,
}

/// Chunks of one file on one chain: `slots` of each round of `stripe`, below `count`.
struct Expected {
    inode: InodeId,
    slots: Vec<u64>,
    stripe: u64,
    count: u64,
}

impl Batch {
    /// The files behind `after`, and the last id that they cover; `None` when there are no more.
    pub(super) async fn read(
        remote: &Remote,
        routing: &RoutingInfo,
        after: InodeId,
    ) -> Result<(Self, Option<InodeId>)> {
        let ids = Ids::now(remote).await?;
        let (mut files, mut last) = (BTreeMap::new(), after);
        let is_end = loop {
            let request = v1::ListInodesRequest { after: last.0, limit: PAGE };
            let page = remote.client.meta().list_inodes(request).await?;
            for message in page.inodes {
                let known = Known::of(message)?;
                last = last.max(known.inode);
                files.insert(known.inode, known);
            }
            if page.end || files.len() >= BATCH {
                break page.end;
            }
        };
        let start = match after {
            InodeId(0) => all_files().0,
            InodeId(after) => ChunkId::file(TreeId::MAIN, InodeId(after + 1), 0),
        };
        let end = match is_end {
            true => all_files().1,
            false => ChunkId::file(TreeId::MAIN, InodeId(last.0 + 1), 0),
        };
        let (expected, unplaced) = (BTreeMap::new(), Vec::new());
        let mut batch = Self { range: (start, end), files, ids, expected, unplaced };
        batch.place(routing);
        Ok((batch, (!is_end).then_some(last)))
    }

    fn place(&mut self, routing: &RoutingInfo) {
        for known in self.files.values() {
            let count = known.layout.chunk_count(known.dense_end);
            if count == 0 {
                continue;
            }
            let chains = match routing.stripe(&known.layout) {
                Ok(chains) => chains,
                Err(error) => {
                    self.unplaced.push((known.inode, error));
                    continue;
                }
            };
            let (inode, stripe) = (known.inode, chains.len() as u64);
            for (slot, chain) in (0..count).zip(chains) {
                let of_chain = self.expected.entry(chain).or_default();
                match of_chain.last_mut() {
                    Some(same) if same.inode == inode => same.slots.push(slot),
                    _ => of_chain.push(Expected { inode, slots: vec![slot], stripe, count }),
                }
            }
        }
    }

    /// The file that a chunk is of.
    pub(super) fn file_of(&self, chunk: ChunkId) -> Option<(&Known, u64)> {
        let (tree, inode, index) = chunk.as_file()?;
        let known = self.files.get(&inode).filter(|_| tree == TreeId::MAIN)?;
        Some((known, index))
    }

    /// Whether the file of a chunk was made, if ever, before the batch was read.
    pub(super) fn may_know(&self, chunk: ChunkId) -> bool {
        chunk.as_file().is_none_or(|(_, inode, _)| self.ids.has(inode))
    }

    pub(super) fn len(&self) -> u64 {
        self.files.values().filter(|known| !known.removed).count() as u64
    }

    /// The chunks that a chain must have, in order.
    pub(super) fn expected(&self, chain: ChainId) -> impl Iterator<Item = ChunkId> + '_ {
        self.expected.get(&chain).into_iter().flatten().flat_map(|expected| {
            let Expected { inode, slots, stripe, count } = expected;
            let rounds = (0..*count).step_by(usize::try_from(*stripe).unwrap_or(usize::MAX));
            let indexes = rounds.flat_map(|first| slots.iter().map(move |slot| first + slot));
            let indexes = indexes.filter(|index| index < count);
            indexes.map(|index| ChunkId::file(TreeId::MAIN, *inode, index))
        })
    }
}

/// What the metadata says of one inode now.
pub(super) async fn find(remote: &Remote, inode: InodeId) -> Result<Option<Known>> {
    let request = v1::ListInodesRequest { after: inode.0.saturating_sub(1), limit: 1 };
    let page = remote.client.meta().list_inodes(request).await?;
    let found = page.inodes.into_iter().find(|message| message.inode == inode.0);
    found.map(Known::of).transpose()
}

/// The ids that the metadata knows to have given.
pub(super) struct Ids {
    end: InodeId,
    /// But for these: they may have been given behind a backup that was put back.
    lost: Vec<Range<u64>>,
}

impl Ids {
    pub(super) async fn now(remote: &Remote) -> Result<Self> {
        let request = v1::ListInodesRequest { after: u64::MAX, limit: 1 };
        let reply = remote.client.meta().list_inodes(request).await?;
        let lost = reply.lost.iter().map(|ids| ids.first..ids.end).collect();
        Ok(Self { end: InodeId(reply.next_inode), lost })
    }

    pub(super) fn has(&self, inode: InodeId) -> bool {
        inode < self.end && !self.lost.iter().any(|ids| ids.contains(&inode.0))
    }
}

/// A path that leads to an inode, if one is known.
pub(super) async fn path_of(remote: &Remote, inode: InodeId) -> Result<Option<String>> {
    let reply = remote.client.meta().path_of(v1::PathRequest { inode: inode.0 }).await?;
    let shown = || String::from_utf8_lossy(&reply.path).into_owned();
    Ok((!reply.path.is_empty()).then(shown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_types::Redundancy;

    fn known(chunk_bytes: u32, dense_end: u64) -> Known {
        let layout = Layout {
            table: 1.into(),
            table_version: 1,
            chunk_bytes,
            stripe: 3,
            base: 0,
            seed: 7,
            redundancy: Redundancy::Replicated,
        };
        let (inode, epoch) = (InodeId(300), TruncateEpoch(4));
        let floors = vec![(2, TruncateEpoch(4))];
        Known { inode, epoch, layout, removed: false, dense_end, floors }
    }

    #[test]
    fn what_must_be_there_ends_with_the_dense_end() {
        let size = 1 << 16;
        let file = known(size, 2 * u64::from(size) + 5);
        let needed: Vec<u32> = (0..4).map(|index| file.needed(index)).collect();
        assert_eq!(needed, [size, size, 5, 0]);
        assert_eq!(file.needed(u64::MAX), 0);
    }

    #[test]
    fn every_chunk_is_expected_once_on_its_chain_in_order() {
        let chains = [4, 5, 4].map(ChainId);
        for count in 0..12 {
            let slots = |chain| (0..3).filter(move |slot| chains[*slot as usize] == chain);
            let expected = |chain| Expected {
                inode: InodeId(300),
                slots: slots(chain).filter(|slot| *slot < count).collect(),
                stripe: 3,
                count,
            };
            let expected = [4, 5].map(ChainId).map(|chain| (chain, vec![expected(chain)]));
            let range = (ChunkId::MIN, ChunkId::MAX);
            let (files, unplaced) = (BTreeMap::new(), Vec::new());
            let (ids, expected) = (Ids { end: InodeId(0), lost: Vec::new() }, expected.into());
            let batch = Batch { range, files, ids, expected, unplaced };
            let mut all = Vec::new();
            for chain in [4, 5].map(ChainId) {
                let found: Vec<_> = batch.expected(chain).collect();
                assert!(found.is_sorted());
                all.extend(found.iter().filter_map(|chunk| chunk.as_file()).map(|file| file.2));
            }
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
    }
}
