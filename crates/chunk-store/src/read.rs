//! Reading data and descriptors. A reader holds a lease instead of a lock: see `space`.

use crate::api::{ChunkExtents, ChunkRead, ChunkStat, Held, Which};
use crate::cache::{Cached, Piece};
use crate::core::{Core, mismatch};
use crate::extent::{Extent, Position};
use crate::group::{GROUP_BLOCKS, Group};
use crate::index::Slot;
use crate::join::join_all;
use crate::record::{Head, Key, Record, read_record};
use crate::rules::grid;
use crate::space::Lease;
use crate::state::Target;
use crate::write::corrupt_block;
use kiln_memory::Bytes;
use kiln_types::{
    BLOCK_BYTES, ChunkId, ChunkVersion, Code, Error, Result, TargetId, TruncateEpoch, crc32c,
};
use std::ops::Range;
use std::sync::Arc;

/// Blocks of log that are read at once for a list.
const LIST_RUN: u64 = 32;
/// Reads of log blocks under way at once for a list.
const LIST_DEPTH: usize = 16;

/// A chunk, its committed version and its pending one, as a list begins with.
type Listed = (ChunkId, Option<Slot>, Option<Arc<Head>>);

fn absent(key: Key) -> Error {
    Error::new(Code::ChunkNotFound, format!("target {}: no chunk {}", key.target, key.chunk))
}

/// Where a block range of a chunk lies, part by part.
struct Plan {
    /// Map, first block in it, end.
    parts: Vec<(Arc<Group>, u32, u32)>,
    runs: Vec<Extent>,
}

impl Plan {
    async fn of(
        core: &Core,
        key: Key,
        head: &Head,
        blocks: (u32, u32),
        lease: &Lease,
    ) -> Result<Self> {
        let mut plan = Self { parts: Vec::new(), runs: Vec::new() };
        let (mut at, end) = blocks;
        while at < end {
            let index = at / GROUP_BLOCKS;
            let start = index * GROUP_BLOCKS;
            let stop = end.min(start + GROUP_BLOCKS);
            let group = core.part(key, head, index as usize, lease).await?;
            for (_, extent) in group.runs(at - start, stop - start) {
                match plan.runs.last_mut() {
                    Some(last) if last.is_hole() && extent.is_hole() => last.count += extent.count,
                    Some(last) if !last.is_hole() && last.end() == extent.start => {
                        last.count += extent.count;
                    }
                    _ => plan.runs.push(extent),
                }
            }
            plan.parts.push((group, at - start, stop - start));
            at = stop;
        }
        Ok(plan)
    }

    /// Checks every block; the checksums of all blocks otherwise.
    fn verify(&self, key: Key, first: u32, bytes: &[u8]) -> Result<Vec<u32>> {
        let mut crcs = Vec::with_capacity(bytes.len() / BLOCK_BYTES);
        let (mut rest, mut number) = (bytes, first);
        let zeros = crc32c(&[0; BLOCK_BYTES]);
        for (group, from, to) in &self.parts {
            let (part, behind) = rest.split_at((to - from) as usize * BLOCK_BYTES);
            if let Some(bad) = mismatch(group, *from, part) {
                return Err(corrupt_block(key, number + bad - from));
            }
            for (start, extent) in group.runs(*from, *to) {
                let blocks = start..start + extent.count;
                crcs.extend(
                    blocks.map(|block| if extent.is_hole() { zeros } else { group.crc(block) }),
                );
            }
            (rest, number) = (behind, number + to - from);
        }
        Ok(crcs)
    }
}

/// What a reader asks for.
pub(crate) struct Request {
    pub(crate) key: Key,
    pub(crate) which: Which,
    pub(crate) offset: u32,
    pub(crate) length: u32,
    pub(crate) floor: TruncateEpoch,
}

pub(crate) async fn read(core: &Core, request: Request) -> Result<ChunkRead> {
    let Request { key, which, offset, length, floor } = request;
    let (head, lease) = find(core, key, which).await?;
    if !head.visible(floor) {
        return Err(absent(key));
    }
    let end = offset.saturating_add(length).min(head.length);
    let answer = |bytes, checksums| ChunkRead {
        version: head.version,
        epoch: head.epoch,
        chunk_length: head.length,
        bytes,
        checksums,
    };
    if offset >= end {
        return Ok(answer(Bytes::empty(), Vec::new()));
    }
    let size = BLOCK_BYTES as u32;
    let (first, last) = (offset / size, end.div_ceil(size));
    let plan = Plan::of(core, key, &head, (first, last), &lease).await?;
    let whole = core.read_runs(&plan.runs).await?.freeze();
    let mut crcs = plan.verify(key, first, &whole)?;
    drop(lease);
    let at = (offset - first * size) as usize;
    let bytes = whole.slice(at..at + (end - offset) as usize);
    let pieces = grid(offset, &bytes);
    // The edges cover less than the blocks whose checksums are stored.
    for index in [0, pieces.len() - 1] {
        if pieces[index].len() < BLOCK_BYTES {
            crcs[index] = crc32c(pieces[index]);
        }
    }
    Ok(answer(bytes, crcs))
}

/// Which parts of the range are stored. Only descriptors are read.
pub(crate) async fn extents(core: &Core, request: Request) -> Result<ChunkExtents> {
    let Request { key, which, offset, length, floor } = request;
    let (head, lease) = find(core, key, which).await?;
    if !head.visible(floor) {
        return Err(absent(key));
    }
    let (version, chunk_length) = (head.version, head.length);
    let end = offset.saturating_add(length).min(chunk_length);
    let mut data: Vec<Range<u32>> = Vec::new();
    if offset < end {
        let size = BLOCK_BYTES as u32;
        let (first, last) = (offset / size, end.div_ceil(size));
        let plan = Plan::of(core, key, &head, (first, last), &lease).await?;
        let mut at = first;
        for run in plan.runs {
            let (from, to) = ((at * size).max(offset), ((at + run.count) * size).min(end));
            at += run.count;
            match data.last_mut() {
                _ if run.is_hole() => {}
                Some(last) if last.end == from => last.end = to,
                _ => data.push(from..to),
            }
        }
    }
    Ok(ChunkExtents { version, chunk_length, data })
}

/// The descriptor of the version that a reader wants.
async fn find(core: &Core, key: Key, which: Which) -> Result<(Arc<Head>, Lease)> {
    let (slot, lease) = {
        let state = core.state.lock();
        let target = state.target(key.target)?;
        let lease = core.space.lease();
        if let (Which::Version(version), Some(pending)) = (which, target.pending.get(&key.chunk))
            && pending.head.version == version
        {
            return Ok((Arc::clone(&pending.head), lease));
        }
        (target.index.get(&key.chunk), lease)
    };
    let slot = slot.ok_or_else(|| absent(key))?;
    if slot.removed && which == Which::Committed {
        return Err(absent(key));
    }
    let head = core.head(key, slot.position, &lease).await?;
    match which {
        Which::Version(version) if head.version != version => Err(absent(key)),
        _ => Ok((head, lease)),
    }
}

pub(crate) async fn stat(core: &Core, key: Key) -> Result<ChunkStat> {
    core.state.lock().target(key.target)?;
    let standing = core.any_standing(key).await?;
    Ok(ChunkStat {
        committed: standing.committed.map(|(_, head)| head.stat()),
        pending: standing.pending.map(|head| head.stat()),
        damaged: standing.damaged.map(|(_, version)| version),
    })
}

pub(crate) async fn list(
    core: &Core,
    target: TargetId,
    from: ChunkId,
    to: ChunkId,
    limit: usize,
) -> Result<Vec<(ChunkId, ChunkStat)>> {
    let (listed, lease) = {
        let state = core.state.lock();
        (merged(state.target(target)?, from, to, limit), core.space.lease())
    };
    let wanted: Vec<(Key, Position)> = listed
        .iter()
        .filter_map(|(chunk, slot, _)| Some((Key { target, chunk: *chunk }, (*slot)?.position)))
        .collect();
    let mut heads = heads(core, &wanted, &lease).await?.into_iter();
    let stats = listed.into_iter().map(|(chunk, slot, pending)| {
        let head = slot.and_then(|_| heads.next().flatten());
        let damaged = slot.filter(|_| head.is_none()).map(|s| s.version().unwrap_or_default());
        let (committed, pending) = (head.map(|head| head.stat()), pending.map(|head| head.stat()));
        (chunk, ChunkStat { committed, pending, damaged })
    });
    Ok(stats.collect())
}

pub(crate) async fn versions(
    core: &Core,
    target: TargetId,
    from: ChunkId,
    to: ChunkId,
    limit: usize,
) -> Result<Vec<(ChunkId, Held)>> {
    let (listed, lease) = {
        let state = core.state.lock();
        (merged(state.target(target)?, from, to, limit), core.space.lease())
    };
    let on_disk = |slot: &Slot| slot.version().is_none();
    let wanted: Vec<(Key, Position)> = listed
        .iter()
        .filter_map(|(chunk, slot, _)| Some((Key { target, chunk: *chunk }, (*slot)?)))
        .filter_map(|(key, slot)| on_disk(&slot).then_some((key, slot.position)))
        .collect();
    let mut heads = heads(core, &wanted, &lease).await?.into_iter();
    let versions = listed.into_iter().map(|(chunk, slot, pending)| {
        let version = slot.and_then(|slot| {
            slot.version().or_else(|| heads.next().flatten().map(|head| head.version))
        });
        let committed = version.unwrap_or(ChunkVersion::NONE);
        (chunk, Held { committed, pending: pending.map(|head| head.version) })
    });
    Ok(versions.collect())
}

/// Committed and pending chunks in `[from, to)`, in order, at most `limit`.
fn merged(target: &Target, from: ChunkId, to: ChunkId, limit: usize) -> Vec<Listed> {
    if from >= to {
        return Vec::new();
    }
    let mut committed = target.index.range(from, to).peekable();
    let mut pending = target.pending.range(from..to).peekable();
    let mut listed = Vec::new();
    while listed.len() < limit {
        let next = match (committed.peek(), pending.peek()) {
            (Some((a, _)), Some((b, _))) => (*a).min(**b),
            (Some((a, _)), None) => *a,
            (None, Some((b, _))) => **b,
            (None, None) => break,
        };
        let slot = committed.next_if(|(chunk, _)| *chunk == next);
        let head = pending.next_if(|(chunk, _)| **chunk == next);
        let head = head.map(|(_, pending)| Arc::clone(&pending.head));
        listed.push((next, slot.map(|(_, slot)| slot), head));
    }
    listed
}

/// Many descriptors: from the cache, the others in the order of the log, neighbours in one read.
/// `None` for those that cannot be read.
async fn heads(
    core: &Core,
    wanted: &[(Key, Position)],
    _: &Lease,
) -> Result<Vec<Option<Arc<Head>>>> {
    let mut found: Vec<Option<Arc<Head>>> = Vec::with_capacity(wanted.len());
    let mut missing = Vec::new();
    for (at, (key, position)) in wanted.iter().enumerate() {
        found.push(match core.cache.get(*key, Piece::Head, *position) {
            Some(Cached::Head(head)) => Some(head),
            _ => {
                missing.push((position.block(), at));
                None
            }
        });
    }
    missing.sort_unstable();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (block, _) in &missing {
        match runs.last_mut() {
            Some((start, end)) if *block < *end + 4 && *block < *start + LIST_RUN => {
                *end = block + 1
            }
            _ => runs.push((*block, block + 1)),
        }
    }
    let mut missing = missing.into_iter().peekable();
    for group in runs.chunks(LIST_DEPTH) {
        let reads = group.iter().map(|(start, end)| async move {
            core.read_runs(&[Extent::new(*start, (end - start) as u32)]).await
        });
        for ((start, end), bytes) in group.iter().zip(join_all(reads).await) {
            let bytes = bytes?;
            while let Some((block, at)) = missing.next_if(|(block, _)| block < end) {
                let (key, position) = wanted[at];
                let from = (block - start) as usize * BLOCK_BYTES;
                let record = read_record(&bytes[from + position.within()..from + BLOCK_BYTES]);
                found[at] = match record {
                    Ok(Some((Record::Put { key: owner, head, .. }, _))) if owner == key => {
                        Some(Arc::new(head))
                    }
                    _ => None,
                };
            }
        }
    }
    Ok(found)
}
