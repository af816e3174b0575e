//! Preparing a new version: merge, write the data blocks, queue the record.
//!
//! Only touched blocks are written, to new places; the others are shared with the version before.
//! What is left of a block that is touched in part is read and verified first, so that decay is
//! never signed anew. The future runs as a task of its own: a caller that goes away does not stop
//! it half-way.

use crate::api::{Change, Update};
use crate::core::{Core, Standing, mismatch};
use crate::data::{Data, place};
use crate::extent::Extent;
use crate::group::{GROUP_BLOCKS, GROUP_BYTES, Group, Mapped};
use crate::record::{Flags, Head, Key, Part, Record};
use crate::rules::{Verdict, check, grid, judge};
use crate::space::Priority;
use crate::state::Effect;
use kiln_memory::{Buffer, Bytes};
use kiln_telemetry::{Phase, phase};
use kiln_types::{BLOCK_BYTES, ChunkVersion, Code, Error, Result, TargetId, crc32c};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Writes up to this size are copied into one piece; larger ones are written from the caller's
/// memory.
const COPY_MAX: usize = 64 << 10;

/// How often, and how long, a change waits on a full disk for what commits and cleaning give back.
pub(crate) const TRIES: u32 = 80;
const WAIT: Duration = Duration::from_millis(25);

pub(crate) async fn prepare(core: Arc<Core>, target: TargetId, update: Update) -> Result<()> {
    check(&update)?;
    let key = Key { target, chunk: update.chunk };
    for _ in 0..TRIES {
        if attempt(&core, key, &update).await? {
            return Ok(());
        }
        wait_for_space(&core).await?;
    }
    Err(core.space.full())
}

/// Waits a little for what others give back when their commits are durable; the caller holds
/// nothing that could keep it.
pub(crate) async fn wait_for_space(core: &Core) -> Result<()> {
    core.barrier().await?;
    core.env.sleep(WAIT).await;
    Ok(())
}

/// `false`: there is no space now, but there may be soon: the write only replaces blocks, or the log
/// is being cleaned.
async fn attempt(core: &Core, key: Key, update: &Update) -> Result<bool> {
    let (_gate, _chunk) = phase(&core.env, Phase::Queue, async {
        let gate = core.gate.read().await;
        (gate, core.chunks.lock(key).await)
    })
    .await;
    let standing = core.standing(key).await?;
    let committed = standing.committed.as_ref().map(|(_, head)| head.as_ref());
    let pending = standing.pending.as_ref().map(|head| head.version);
    match judge(committed, pending, update)? {
        Verdict::Done => Ok(true),
        Verdict::Commit => {
            commit(core, key, update.version)?;
            core.barrier().await.map(|()| true)
        }
        Verdict::Proceed => put(core, key, &standing, update).await,
    }
}

/// Stores a version that may follow what is here, and drops a pending one in the same step. The
/// caller holds the chunk's lock. `false` as in [`attempt`].
pub(crate) async fn put(
    core: &Core,
    key: Key,
    standing: &Standing,
    update: &Update,
) -> Result<bool> {
    let (data, draft) = Draft::plan(core, key, standing, update).await?;
    let Some(space) = draft.take_space(core, key, standing).await? else { return Ok(false) };
    let written = draft.write(core, key, standing, update, data, &space).await;
    if let Err(error) = &written {
        // After a failed sync the disk's content is unknown: its blocks stay as they are.
        if error.code() != Code::Cancelled && core.state.lock().failed.is_none() {
            core.space.give(&space);
        }
    }
    written.map(|()| true)
}

/// Makes a pending version the committed one, in memory at once, on disk with a later batch.
///
/// # Errors
/// `VersionMismatch` when it is not pending.
pub(crate) fn commit(core: &Core, key: Key, version: ChunkVersion) -> Result<()> {
    let mut state = core.state.lock();
    state.target(key.target)?;
    state.undecided(key, version)?;
    let dropped = state.commit_pending(key, &core.cache).unwrap_or_default();
    state.submit(crate::state::Submission {
        records: vec![Record::Commit { key, version }],
        links: Vec::new(),
        effect: Effect::Committed { dropped },
        done: None,
    });
    drop(state);
    core.committer.notify_one();
    Ok(())
}

/// Drops a pending version.
pub(crate) async fn discard(core: Arc<Core>, key: Key, version: ChunkVersion) -> Result<()> {
    let _gate = core.gate.read().await;
    let _chunk = core.chunks.lock(key).await;
    let is_pending = {
        let mut state = core.state.lock();
        state.target(key.target)?;
        state.pending_mut(key, version).is_some()
    };
    if is_pending {
        let records = vec![Record::Discard { key, version }];
        let effect = Effect::Discarded { key, version };
        return core.change(key, Some(version), records, Vec::new(), effect).await;
    }
    if core.standing(key).await?.committed_version() == version {
        let why = format!("chunk {}: version {version} is committed", key.chunk);
        return Err(Error::new(Code::VersionMismatch, why));
    }
    Ok(())
}

/// What a version will be.
struct Draft {
    /// The version that it is built on, if that counts.
    base: Option<Arc<Head>>,
    removed: bool,
    length: u32,
    /// The chunk's blocks that are new: first and count, and how many of them need places.
    first: u32,
    count: u32,
    mapped: u32,
    hint: Option<u64>,
    priority: Priority,
}

impl Draft {
    async fn plan(
        core: &Core,
        key: Key,
        standing: &Standing,
        update: &Update,
    ) -> Result<(Data, Self)> {
        let committed = standing.committed.as_ref().map(|(_, head)| head);
        let visible = committed.filter(|head| head.visible(update.floor)).cloned();
        let base = if matches!(update.change, Change::Replace { .. } | Change::Remove) {
            None
        } else {
            visible
        };
        let old_length = base.as_ref().map_or(0, |head| head.length);
        let merge = Merge { core, key, base: base.as_deref(), standing };
        let (data, length, priority) = match &update.change {
            Change::Write { bytes, .. } | Change::Replace { bytes, .. } if bytes.is_empty() => {
                (Data::none(), old_length, Priority::Maker)
            }
            Change::Write { offset, bytes, checksums } => {
                let end = offset + bytes.len() as u32;
                let data = merge.write(*offset, bytes, checksums, old_length.max(end)).await?;
                (data, old_length.max(end), Priority::Writer)
            }
            Change::Replace { bytes, checksums } => {
                let length = bytes.len() as u32;
                let data = merge.write(0, bytes, checksums, length).await?;
                (data.with_holes(), length, Priority::Writer)
            }
            Change::Truncate { length } if *length < old_length => {
                (merge.cut(*length).await?, *length, Priority::Maker)
            }
            Change::Truncate { .. } => (Data::none(), old_length, Priority::Maker),
            Change::Zero { offset, length } => {
                let end = offset.saturating_add(*length).min(old_length);
                (merge.zero(*offset, end, old_length).await?, old_length, Priority::Maker)
            }
            Change::Remove => (Data::none(), 0, Priority::Maker),
        };
        let first = data.first;
        let before = match first.checked_sub(1) {
            Some(before) => merge.block(before).await?.block,
            None => 0,
        };
        let draft = Self {
            removed: matches!(update.change, Change::Remove),
            length,
            first,
            count: data.crcs.len() as u32,
            mapped: data.mapped(),
            hint: (before != 0).then_some(before + 1),
            priority,
            base,
        };
        Ok((data, draft))
    }

    /// `None`: there is no space, but there may be soon.
    async fn take_space(
        &self,
        core: &Core,
        key: Key,
        standing: &Standing,
    ) -> Result<Option<Vec<Extent>>> {
        if self.mapped == 0 {
            return Ok(Some(Vec::new()));
        }
        let refused = |taken: &Result<_>| matches!(taken, Err(e) if e.code() == Code::NoSpace);
        let taken = core.take_space(self.mapped, self.hint, self.priority).await;
        if !refused(&taken) {
            return taken.map(Some);
        }
        if core.is_log_being_cleaned() {
            return Ok(None);
        }
        if self.priority != Priority::Writer || !self.renews(core, key, standing).await? {
            return taken.map(Some);
        }
        let taken = core.take_space(self.mapped, self.hint, Priority::Renewer).await;
        if refused(&taken) { Ok(None) } else { taken.map(Some) }
    }

    /// Whether every block that is written replaces one, so that no space is used in the end.
    async fn renews(&self, core: &Core, key: Key, standing: &Standing) -> Result<bool> {
        let Some(base) = &self.base else { return Ok(false) };
        let end = self.first + self.count;
        for index in self.first / GROUP_BLOCKS..=(end - 1) / GROUP_BLOCKS {
            let group = core.part(key, base, index as usize, &standing.lease).await?;
            let start = index * GROUP_BLOCKS;
            let blocks = self.first.max(start)..end.min(start + GROUP_BLOCKS);
            if blocks.into_iter().any(|block| group.get(block - start).block == 0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn write(
        &self,
        core: &Core,
        key: Key,
        standing: &Standing,
        update: &Update,
        data: Data,
        space: &[Extent],
    ) -> Result<()> {
        let pieces = core.write_all(place(&data.pieces, space));
        phase(&core.env, Phase::DiskWrite, pieces).await?;
        let (mut head, written) = self.head(core, key, standing, update, &data, space).await?;
        let committed = standing.committed.as_ref().map(|(_, head)| head.as_ref());
        let footprint = core.footprint(key, committed, &head, &written, &standing.lease).await?;
        let mut records: Vec<Record> = standing.discard(key).into_iter().collect();
        let mut links = Vec::new();
        if let [part @ Part::Hole] = head.parts.as_mut_slice() {
            *part = Part::Inline(written.get(&0).cloned().unwrap_or_default());
        } else {
            let groups = written.into_iter().filter(|(_, group)| !group.is_empty());
            for (index, group) in groups {
                links.push(records.len());
                records.push(Record::Part { key, index: index as u16, group });
            }
        }
        let links = links.into_iter().map(|part| (part, records.len())).collect();
        let flags = Flags {
            committed: update.commit,
            remembers: update.retry.is_some(),
            fresh: (self.first as u16, self.count as u16),
        };
        records.push(Record::Put { key, head, flags });
        let effect = Effect::Install { committed: update.commit, footprint };
        core.change(key, standing.held().pending, records, links, effect).await
    }

    /// The descriptor, and the maps of the parts that need a new record.
    async fn head(
        &self,
        core: &Core,
        key: Key,
        standing: &Standing,
        update: &Update,
        data: &Data,
        space: &[Extent],
    ) -> Result<(Head, BTreeMap<usize, Arc<Group>>)> {
        let count = self.length.div_ceil(GROUP_BYTES) as usize;
        let base_parts = self.base.as_ref().map_or(0, |head| head.parts.len());
        let new = data.map(space);
        let blocks = self.length.div_ceil(BLOCK_BYTES as u32);
        let mut written = BTreeMap::new();
        let mut parts = Vec::with_capacity(count);
        for index in 0..count {
            let start = index as u32 * GROUP_BLOCKS;
            let (from, to) =
                (self.first.max(start), (self.first + self.count).min(start + GROUP_BLOCKS));
            let old = self.base.as_ref().map_or(Part::Hole, |head| head.part(index));
            let cut = index + 1 == count && blocks < start + GROUP_BLOCKS;
            let reshaped = (count == 1) != (base_parts == 1);
            let untouched = from >= to && !(cut && self.shrinks()) && !reshaped;
            if untouched && !matches!(old, Part::Inline(_)) {
                parts.push(old);
                continue;
            }
            let mut map = match &self.base {
                Some(base) => core.part(key, base, index, &standing.lease).await?.expand(),
                None => Group::default().expand(),
            };
            for block in from..to {
                let at = (block - self.first) as usize;
                map[(block - start) as usize] = new[at];
            }
            map.truncate((blocks - start) as usize);
            written.insert(index, Arc::new(Group::of(&map)));
            parts.push(Part::Hole);
        }
        let head = Head {
            version: update.version,
            previous: update.previous,
            epoch: update.epoch,
            length: self.length,
            removed: self.removed,
            time: core.env.wall(),
            retry: update.retry,
            parts,
        };
        Ok((head, written))
    }

    fn shrinks(&self) -> bool {
        self.base.as_ref().is_some_and(|base| self.length < base.length)
    }
}

/// Combines new bytes with what the touched blocks hold.
struct Merge<'a> {
    core: &'a Core,
    key: Key,
    base: Option<&'a Head>,
    standing: &'a Standing,
}

impl Merge<'_> {
    /// Where a block of the base lies.
    async fn block(&self, number: u32) -> Result<Mapped> {
        let Some(base) = self.base else { return Ok(Mapped::default()) };
        let index = (number / GROUP_BLOCKS) as usize;
        let group = self.core.part(self.key, base, index, &self.standing.lease).await?;
        Ok(group.get(number % GROUP_BLOCKS))
    }

    /// The content of a block of the base, verified; zeros for a hole.
    async fn old(&self, number: u32) -> Result<Buffer> {
        let mapped = self.block(number).await?;
        let block = self.core.read_runs(&[Extent::new(mapped.block, 1)]).await?;
        if mismatch(&Group::of(&[mapped]), 0, &block).is_some() {
            return Err(corrupt_block(self.key, number));
        }
        Ok(block)
    }

    /// The blocks of a write; `length` is the chunk's afterwards.
    async fn write(&self, offset: u32, bytes: &Bytes, crcs: &[u32], length: u32) -> Result<Data> {
        let size = BLOCK_BYTES as u32;
        let end = offset + bytes.len() as u32;
        let (first, last) = (offset / size, (end - 1) / size);
        let mut crcs = crcs.to_vec();
        let head = !offset.is_multiple_of(size);
        let tail = !end.is_multiple_of(size);
        let whole = bytes.len() / BLOCK_BYTES * BLOCK_BYTES;
        if !head && bytes.is_aligned() && (!tail || bytes.len() > COPY_MAX) {
            let mut pieces = vec![bytes.slice(0..whole)];
            if tail {
                let mut block = self.edge(last, end < length).await?;
                block[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
                replace_last(&mut crcs, crc32c(&block));
                pieces.push(block.freeze());
            }
            pieces.retain(|piece| !piece.is_empty());
            return Ok(Data::of(first, crcs, pieces));
        }
        let mut memory = self.core.pool.take(((last - first + 1) * size) as usize);
        let tail_at = ((last - first) * size) as usize;
        if head {
            memory[..BLOCK_BYTES].copy_from_slice(&self.edge(first, true).await?);
        }
        if tail && (!head || last > first) {
            memory[tail_at..].copy_from_slice(&self.edge(last, end < length).await?);
        }
        let at = (offset % size) as usize;
        memory[at..at + bytes.len()].copy_from_slice(bytes);
        if head {
            crcs[0] = crc32c(&memory[..BLOCK_BYTES]);
        }
        if tail {
            replace_last(&mut crcs, crc32c(&memory[tail_at..]));
        }
        debug_assert_eq!(crcs.len(), grid(offset, bytes).len());
        Ok(Data::of(first, crcs, vec![memory.freeze()]))
    }

    /// A block to be overwritten in part: the old one where bytes of it stay, else zeros.
    async fn edge(&self, number: u32, stays: bool) -> Result<Buffer> {
        if stays {
            return self.old(number).await;
        }
        let mut block = self.core.pool.take(BLOCK_BYTES);
        block.fill(0);
        Ok(block)
    }

    /// The last block of a chunk that is cut to `length`, with zeros behind the cut.
    async fn cut(&self, length: u32) -> Result<Data> {
        let size = BLOCK_BYTES as u32;
        let (number, keep) = (length / size, (length % size) as usize);
        if keep == 0 || self.block(number).await?.block == 0 {
            return Ok(Data::none());
        }
        let mut block = self.old(number).await?;
        block[keep..].fill(0);
        Ok(Data::of(number, vec![crc32c(&block)], vec![block.freeze()]))
    }

    /// The blocks of a range of zeros in a chunk of `length` bytes: all holes, but for those at its ends
    /// that keep some of their bytes.
    async fn zero(&self, offset: u32, end: u32, length: u32) -> Result<Data> {
        let size = BLOCK_BYTES as u32;
        if offset >= end {
            return Ok(Data::none());
        }
        let (first, last) = (offset / size, (end - 1) / size);
        let head = !offset.is_multiple_of(size);
        let tail = !end.is_multiple_of(size) && end < length;
        let mut edges = Vec::new();
        for number in [first, last] {
            let touched = number == first && head || number == last && tail;
            let twice = edges.iter().any(|(edge, _)| *edge == number);
            if !touched || twice || self.block(number).await?.block == 0 {
                continue;
            }
            let mut block = self.old(number).await?;
            let start = number * size;
            let zeros = offset.max(start) - start..end.min(start + size) - start;
            block[zeros.start as usize..zeros.end as usize].fill(0);
            edges.push((number, block.freeze()));
        }
        Ok(Data::zeros(first, last - first + 1, edges))
    }
}

fn replace_last(crcs: &mut [u32], crc: u32) {
    if let Some(last) = crcs.last_mut() {
        *last = crc;
    }
}

/// A block on disk that does not match its checksum.
pub(crate) fn corrupt_block(key: Key, number: u32) -> Error {
    kiln_telemetry::metrics::CHUNK_CORRUPT.increment();
    Error::new(
        Code::ChecksumMismatch,
        format!(
            "target {} chunk {}: the block at offset {} does not match its checksum",
            key.target,
            key.chunk,
            u64::from(number) * BLOCK_BYTES as u64
        ),
    )
    .with_hint("repair it from another replica")
}
