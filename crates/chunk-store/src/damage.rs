//! When the log is damaged: what was lost, and how a store goes on without it.
//!
//! A batch of the log that cannot be read although it was durable takes with it what it said: new
//! versions, commits, removals, of chunks that nobody knows any more. So everything on the disk may
//! be older than what was acknowledged. The store opens, since nearly all of it is right, and fills
//! the gap from the other replicas with the least work:
//!
//! - Every target of the disk is damaged: it answers nothing until its owner has written down that
//!   it has to be filled, see [`crate::Store::accept_damage`]. Then its versions are compared with
//!   another replica's, and the few that differ are installed. Retry records are taken from there.
//!   Where the lost version was a repair, the version is equal and blocks of it may be wrong: reads
//!   say so, and a scrub repairs it.
//! - Versions that cannot all be right are dropped at once, for good: two chunks that claim the same
//!   block (the older claim was given up by a lost record, and it is not known which that is), and
//!   chunks whose maps are gone. After that the store is consistent.
//! - The log is cleaned until the damaged batches are gone. If the store is opened before that, all
//!   this happens again, which does no harm.
//!
//! A store does not open when nothing shows where the log goes on, or when the only record of a
//! target is lost. Such a disk is formatted anew, and its targets are filled as new ones.
//!
//! A descriptor that decays while the store is open makes one chunk damaged: it cannot be read or
//! written, and [`crate::ChunkStat`] says so; an install heals it. Data that decays is found by its
//! checksum when it is read, and healed by [`crate::Store::repair`].

use crate::core::Core;
use crate::extent::{Extent, Position};
use crate::group::Group;
use crate::open::scan;
use crate::record::{Head, Key, Part, Record};
use crate::state::{Effect, Submission};
use crate::superblock::SUPERBLOCKS;
use kiln_types::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Records of one submission: a few KiB, well below a batch.
const TOGETHER: usize = 64;

/// Who says that blocks are his; `None` is the log.
type Claim = (Extent, Option<Key>);

/// Makes a store consistent again whose log was damaged, and queues the records that say so. `next`
/// is the segment after the log's last one.
pub(crate) async fn settle(core: &Core, batches: &[(u64, u32)], next: Extent) -> Result<()> {
    let (claims, mut dropped) = chunk_claims(core, batches).await?;
    let structures = {
        let state = core.state.lock();
        let log = state.segments.iter().map(|segment| segment.extent).chain([next]);
        let superblocks = Extent::new(0, SUPERBLOCKS as u32);
        log.chain([superblocks]).map(|extent| (extent, None)).collect::<Vec<Claim>>()
    };
    dropped.extend(contested([structures, claims].concat(), core.shape.blocks));
    let mut state = core.state.lock();
    tracing::error!(
        disk = %core.disk.describe(), batches = ?state.lost, dropped = dropped.len(),
        "records of the chunk store's log were lost: its targets have to be filled anew"
    );
    let mut records = Vec::new();
    for key in dropped {
        let Some(target) = state.targets.get_mut(&key.target) else { continue };
        target.index.remove(&key.chunk);
        let pending = target.pending.get(&key.chunk).map(|pending| pending.head.version);
        if let Some(version) = pending {
            state.take_pending(key, version);
            records.push(Record::Discard { key, version });
        }
        records.push(Record::Drop { key });
    }
    for (id, target) in &mut state.targets {
        target.damaged = true;
        records.push(Record::Target(target.body(*id)));
    }
    while !records.is_empty() {
        let rest = records.split_off(TOGETHER.min(records.len()));
        let records = std::mem::replace(&mut records, rest);
        let (links, effect, done) = (Vec::new(), Effect::Target, None);
        state.submit(Submission { records, links, effect, done });
    }
    Ok(())
}

/// Which blocks the chunks have, and the chunks with maps that are not there.
async fn chunk_claims(core: &Core, batches: &[(u64, u32)]) -> Result<(Vec<Claim>, BTreeSet<Key>)> {
    let mut claims = Vec::new();
    let mut parts: BTreeMap<Position, Key> = BTreeMap::new();
    let mut of_head = |key: Key, head: &Head| {
        for part in &head.parts {
            match part {
                Part::Inline(group) => claims.extend(of_group(key, group)),
                Part::Stored(position) => {
                    parts.insert(*position, key);
                }
                Part::Hole => {}
            }
        }
    };
    scan(core, batches, |position, record| {
        let Record::Put { key, head, .. } = record else { return Ok(()) };
        let state = core.state.lock();
        let slot = state.targets.get(&key.target).and_then(|t| t.index.get(&key.chunk));
        if slot.is_some_and(|slot| slot.position == position) {
            of_head(key, &head);
        }
        Ok(())
    })
    .await?;
    for (target, found) in &core.state.lock().targets {
        for (chunk, pending) in &found.pending {
            of_head(Key { target: *target, chunk: *chunk }, &Arc::clone(&pending.head));
        }
    }
    scan(core, batches, |position, record| {
        let Record::Part { key, group, .. } = record else { return Ok(()) };
        if parts.get(&position) == Some(&key) {
            parts.remove(&position);
            claims.extend(of_group(key, &group));
        }
        Ok(())
    })
    .await?;
    Ok((claims, parts.into_values().collect()))
}

fn of_group(key: Key, group: &Group) -> impl Iterator<Item = Claim> + '_ {
    group.extents().iter().filter(|e| !e.is_hole()).map(move |extent| (*extent, Some(key)))
}

/// The chunks whose blocks somebody else claims too, or that lie beyond the disk.
fn contested(mut claims: Vec<Claim>, blocks: u64) -> BTreeSet<Key> {
    claims.sort_unstable();
    let mut contested: BTreeSet<Key> = BTreeSet::new();
    let mut farthest: Option<Claim> = None;
    for (extent, owner) in claims {
        if extent.end() > blocks {
            contested.extend(owner);
        }
        let (end, before) = farthest.map_or((0, None), |(before, owner)| (before.end(), owner));
        if extent.start < end && owner != before {
            contested.extend(owner.into_iter().chain(before));
        }
        if extent.end() > end {
            farthest = Some((extent, owner));
        }
    }
    contested
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_types::{ChunkId, InodeId, TargetId, TreeId};

    #[test]
    fn whoever_shares_a_block_is_contested() {
        let key = |index| {
            let chunk = ChunkId::file(TreeId(1), InodeId(1), index);
            Some(Key { target: TargetId(1), chunk })
        };
        let claims = [
            (Extent::new(0, 2), None),
            (Extent::new(10, 10), key(1)),
            (Extent::new(12, 12), key(1)),
            (Extent::new(13, 1), key(2)),
            (Extent::new(23, 2), key(3)),
            (Extent::new(25, 5), key(4)),
            (Extent::new(30, 64), None),
            (Extent::new(40, 1), key(5)),
            (Extent::new(98, 3), key(6)),
        ];
        let expected: BTreeSet<Key> = [1, 2, 3, 5, 6].into_iter().filter_map(key).collect();
        assert_eq!(contested(claims.to_vec(), 100), expected);
    }
}
