//! Opening: the log is read from its oldest segment on, then the use of the disk is worked out.
//!
//! A device may lose or tear anything that was written after the last sync. A batch is acknowledged
//! after a sync that followed its write, and the next batch is written after that sync and says so.
//! So every batch that a later one declares durable is whole, with all data before it. Of the
//! others (the last cycle's) each is checked: its own checksum, and the checksums of all blocks
//! that were written for its records. The first that fails was never acknowledged, because its sync
//! would have covered its data, and neither was anything after it: the log ends there. No durable
//! record names a block that such a cut-off change had written, because a block is handed out only
//! after the record that dropped it is durable.
//!
//! If something behind the end proves that the batch at the end was durable, that is no crash but
//! damage. The log is read on from the proof; what lies between is lost (see `damage`).
//!
//! The index needs no more than the order of the log: each record was queued in the order of
//! decisions, and copies that cleaning makes say what was true when they were queued.

use crate::api::Identity;
use crate::batch::{BatchFound, for_each_record, read_batch};
use crate::core::{mismatch, read_runs};
use crate::extent::{BLOCK, Extent, Position};
use crate::group::{GROUP_BLOCKS, Group};
use crate::index::Slot;
use crate::record::{Flags, Head, Key, Part, Record};
use crate::state::{Footprint, Pending, Remembered, Segment, State};
use crate::superblock::Superblock;
use kiln_disk::Disk;
use kiln_memory::{Bytes, Pool};
use kiln_types::{BLOCK_BYTES, Context, Error, Result};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// A batch that was found in the log.
#[derive(Clone)]
pub(crate) struct Batch {
    pub(crate) found: BatchFound,
    /// Its first block on the disk.
    pub(crate) start: u64,
    pub(crate) segment: Segment,
    pub(crate) bytes: Bytes,
}

/// How many segments are searched for where the log goes on behind damage. The batches of one sync
/// reach into two at most.
const SEGMENTS_AHEAD: usize = 6;

/// Reads batches from the head of the log on.
pub(crate) struct LogReader {
    disk: Arc<dyn Disk>,
    pool: Pool,
    identity: Identity,
    segment: Segment,
    bytes: Bytes,
    /// The next batch's place in the segment, in blocks.
    at: usize,
    sequence: u64,
    last: Option<BatchFound>,
}

impl LogReader {
    pub(crate) async fn new(
        disk: Arc<dyn Disk>,
        pool: Pool,
        identity: Identity,
        segment: Segment,
    ) -> Result<Self> {
        let bytes = read_segment(&disk, &pool, segment.extent).await?;
        let sequence = segment.first_sequence;
        Ok(Self { disk, pool, identity, segment, bytes, at: 0, sequence, last: None })
    }

    /// The batch at the reader's place, if it is the one that follows.
    fn here(&self, bytes: &Bytes, at: usize) -> Result<Option<BatchFound>> {
        let found = read_batch(&bytes[at * BLOCK_BYTES..], self.identity.disk)?;
        Ok(found.filter(|found| {
            let follows = self.last.is_none_or(|last| last.crc == found.header.previous_crc);
            found.header.sequence == self.sequence && follows
        }))
    }

    /// The next batch; `None` at the end of the log.
    pub(crate) async fn next(&mut self) -> Result<Option<Batch>> {
        let mut found = self.here(&self.bytes, self.at)?;
        if found.is_none() {
            let Some(last) = self.last else { return Ok(None) };
            let next = last.header.next;
            if next.is_hole() {
                return Ok(None);
            }
            let bytes = read_segment(&self.disk, &self.pool, next).await?;
            found = self.here(&bytes, 0)?;
            if found.is_some() {
                self.segment = Segment { extent: next, first_sequence: self.sequence };
                (self.bytes, self.at) = (bytes, 0);
            }
        }
        let Some(found) = found else { return Ok(None) };
        let from = self.at * BLOCK_BYTES;
        let batch = Batch {
            found,
            start: self.segment.extent.start + self.at as u64,
            segment: self.segment,
            bytes: self.bytes.slice(from..from + found.blocks as usize * BLOCK_BYTES),
        };
        self.at += found.blocks as usize;
        self.sequence += 1;
        self.last = Some(found);
        Ok(Some(batch))
    }

    /// The sequence number of the batch that it reads next.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Goes on behind damage: to the first batch behind the end that could only exist if the log had
    /// gone on durably. Returns the segments in between; `None` when there is no such batch: it is
    /// the end.
    pub(crate) async fn skip_damage(&mut self) -> Result<Option<Vec<Segment>>> {
        // Where to look, and what lies between: behind damage any batch may say where the log goes
        // on.
        let mut ahead = VecDeque::from([(self.segment, Vec::new())]);
        let last = self.last.map(|last| (self.unknown(last.header.next), Vec::new()));
        ahead.extend(last);
        for _ in 0..SEGMENTS_AHEAD {
            let Some((mut segment, passed)) = ahead.pop_front() else { break };
            let is_here = segment.extent == self.segment.extent;
            let bytes = match is_here {
                true => self.bytes.clone(),
                false => read_segment(&self.disk, &self.pool, segment.extent).await?,
            };
            for at in if is_here { self.at } else { 0 }..bytes.len() / BLOCK_BYTES {
                let found = read_batch(&bytes[at * BLOCK_BYTES..], self.identity.disk);
                let header = found.unwrap_or(None).map(|found| found.header);
                let Some(header) = header.filter(|h| h.sequence > self.sequence) else { continue };
                if header.durable >= self.sequence {
                    if at == 0 {
                        segment.first_sequence = header.sequence;
                    }
                    (self.segment, self.bytes, self.at) = (segment, bytes, at);
                    (self.sequence, self.last) = (header.sequence, None);
                    return Ok(Some(passed));
                }
                if !ahead.iter().any(|(known, _)| known.extent == header.next) {
                    let between = passed.iter().copied().chain((!is_here).then_some(segment));
                    ahead.push_back((self.unknown(header.next), between.collect()));
                }
            }
        }
        Ok(None)
    }

    /// A segment whose first batch is not known; it is not before the next one.
    fn unknown(&self, extent: Extent) -> Segment {
        Segment { extent, first_sequence: self.sequence }
    }
}

async fn read_segment(disk: &Arc<dyn Disk>, pool: &Pool, extent: Extent) -> Result<Bytes> {
    if extent.count == 0 || extent.end() > disk.capacity() / BLOCK {
        return Err(Error::corrupt("the log leads beyond the disk"));
    }
    let buffer = pool.take(extent.bytes() as usize);
    Ok(disk.read(extent.offset(), buffer).await.context("log")?.freeze())
}

/// The log, read and applied.
pub(crate) struct Replayed {
    pub(crate) state: State,
    /// The last batch.
    pub(crate) last: Batch,
    /// Place and blocks of every batch, oldest first.
    pub(crate) batches: Vec<(u64, u32)>,
}

/// Reads the log.
///
/// # Errors
/// `Corrupt` when acknowledged records are damaged; `DiskFailed`.
pub(crate) async fn replay(
    disk: &Arc<dyn Disk>,
    pool: &Pool,
    superblock: &Superblock,
) -> Result<Replayed> {
    let head = Segment { extent: superblock.head, first_sequence: superblock.head_sequence };
    let identity = superblock.identity;
    let mut reader = LogReader::new(Arc::clone(disk), pool.clone(), identity, head).await?;
    let mut state = State::new();
    let mut batches = Vec::new();
    let mut unproven: VecDeque<Batch> = VecDeque::new();
    let mut last = None;
    loop {
        let Some(batch) = reader.next().await? else {
            let damaged = reader.sequence();
            let Some(passed) = reader.skip_damage().await? else { break };
            state.segments.extend(passed);
            state.lost.push(damaged..reader.sequence());
            continue;
        };
        let durable = batch.found.header.durable;
        unproven.push_back(batch);
        while unproven.front().is_some_and(|b| b.found.header.sequence <= durable) {
            last = unproven.pop_front();
            last.iter().try_for_each(|batch| take(&mut state, &mut batches, batch))?;
        }
    }
    for batch in unproven {
        if !data_is_whole(disk, pool, &batch).await? {
            break;
        }
        take(&mut state, &mut batches, &batch)?;
        last = Some(batch);
    }
    let last = last.ok_or_else(|| {
        Error::corrupt("the log's first batch is damaged")
            .with_hint("rebuild this disk's targets from their other replicas")
    })?;
    match state.targets.iter().find(|(_, target)| target.position == Position::NOWHERE) {
        Some((target, _)) => {
            Err(Error::corrupt(format!("the log has no record of target {target}"))
                .with_hint("rebuild this disk's targets from their other replicas"))
        }
        None => Ok(Replayed { state, last, batches }),
    }
}

fn take(state: &mut State, batches: &mut Vec<(u64, u32)>, batch: &Batch) -> Result<()> {
    if state.segments.back() != Some(&batch.segment) {
        state.segments.push_back(batch.segment);
    }
    batches.push((batch.start, batch.found.blocks));
    for_each_record(&batch.bytes, batch.start, |position, record| {
        redo(state, position, record);
        Ok(())
    })
}

/// Whether all blocks that were written for the batch's records are what they should be.
async fn data_is_whole(disk: &Arc<dyn Disk>, pool: &Pool, batch: &Batch) -> Result<bool> {
    let mut parts: HashMap<Position, Arc<Group>> = HashMap::new();
    let mut fresh: Vec<(Arc<Group>, u32, u32)> = Vec::new();
    for_each_record(&batch.bytes, batch.start, |position, record| {
        match record {
            Record::Part { group, .. } => {
                parts.insert(position, group);
            }
            Record::Put { head, flags, .. } => fresh.extend(fresh_blocks(&head, flags, &parts)),
            _ => {}
        }
        Ok(())
    })?;
    for (group, from, to) in fresh {
        let runs: Vec<_> = group.runs(from, to).into_iter().map(|(_, extent)| extent).collect();
        let bytes = read_runs(disk, pool, &runs).await?;
        if mismatch(&group, from, &bytes).is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The parts of a chunk that were written with its record: map, first block, end.
fn fresh_blocks(
    head: &Head,
    flags: Flags,
    parts: &HashMap<Position, Arc<Group>>,
) -> Vec<(Arc<Group>, u32, u32)> {
    let (first, end) =
        (u32::from(flags.fresh.0), u32::from(flags.fresh.0) + u32::from(flags.fresh.1));
    let mut blocks = Vec::new();
    for (index, part) in (0..).zip(&head.parts) {
        let start = index * GROUP_BLOCKS;
        let (from, to) = (first.max(start), end.min(start + GROUP_BLOCKS));
        let group = match part {
            Part::Inline(group) => Some(group),
            Part::Stored(position) => parts.get(position),
            Part::Hole => None,
        };
        if let Some(group) = group.filter(|_| from < to) {
            blocks.push((Arc::clone(group), from - start, to - start));
        }
    }
    blocks
}

/// Applies one record, as its effect did when it became durable.
fn redo(state: &mut State, position: Position, record: Record) {
    match record {
        Record::Put { key, head, flags } => redo_put(state, position, key, head, flags),
        Record::Part { .. } => {}
        Record::Commit { key, version } => {
            let Some(target) = state.targets.get_mut(&key.target) else { return };
            let pending = target.pending.get(&key.chunk).filter(|p| p.head.version == version);
            let Some(pending) = pending else { return };
            let slot = Slot::of(&pending.head, pending.position);
            target.index.insert(key.chunk, slot);
            target.pending.remove(&key.chunk);
        }
        Record::Discard { key, version } => {
            state.take_pending(key, version);
        }
        Record::Retry { key, retry, version } => {
            state.remember_alone(key, retry, version, position);
        }
        Record::Forget { client } => state.forget_client(client),
        Record::ForgetRetries { target } => state.forget_retries_of(target),
        Record::Drop { key } => {
            if let Some(target) = state.targets.get_mut(&key.target) {
                target.index.remove(&key.chunk);
            }
        }
        Record::Target(body) => state.target_written(body, position),
        Record::RemoveTarget { target } => state.drop_target(target),
    }
}

fn redo_put(state: &mut State, position: Position, key: Key, head: Head, flags: Flags) {
    // Cleaning may have copied the target's record behind this one.
    let target = state.targets.entry(key.target).or_default();
    target.version_max = target.version_max.max(head.version);
    let (version, retry) = (head.version, head.retry);
    if flags.committed {
        target.index.insert(key.chunk, Slot::of(&head, position));
        if target.pending.get(&key.chunk).is_some_and(|p| p.head.version <= version) {
            target.pending.remove(&key.chunk);
        }
    } else {
        let footprint = Footprint::default();
        let head = Arc::new(head);
        target.pending.insert(key.chunk, Pending { position, head, footprint, discarding: false });
    }
    if let Some(retry) = retry.filter(|_| flags.remembers) {
        let chunk = key.chunk;
        let sequence = retry.sequence;
        let remembered = Remembered { sequence, chunk, version, position, own_cost: 0 };
        state.remember(key, retry, remembered);
    }
}
