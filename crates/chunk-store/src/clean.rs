//! Maintenance: cleaning the log, keeping spare segments ready, giving free space back to the disk.
//!
//! Cleaning takes the oldest segment, copies forward what is still needed, makes the superblock
//! name the next segment as the oldest, and frees it. Commits, discards, drops of chunks and
//! removals of targets need no copy: what they speak about lies before them, so it is gone or was
//! copied with its present state.
//!
//! A copy must not land behind a record that supersedes the original. What is decided and queued at
//! once cannot be overtaken. New versions and discards are queued first and decided when they are
//! durable: chunks with one of those on its way are copied under their lock, after it. Records of
//! targets are copied under the lock that changes of targets take.

use crate::core::Core;
use crate::extent::{BLOCK, Extent, Position};
use crate::join::join_all;
use crate::record::{Flags, Head, Key, Part, Record};
use crate::replay::LogReader;
use crate::space::{Dropped, SPARES};
use crate::state::{Effect, Segment, State};
use crate::superblock::Superblock;
use kiln_types::{BLOCK_BYTES, Code, Error, Result, RetryKey};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Between two rounds, so that frequent wake-ups stay cheap.
const PAUSE: Duration = Duration::from_millis(10);
/// Before it is tried again after it met damage, which does not go away by itself.
const RETRY: Duration = Duration::from_secs(60);
/// How long a zone stays empty before it is given back to the disk.
const AGE: Duration = Duration::from_secs(1);
/// Segments that are cleaned in one round.
const ROUND: usize = 16;
/// Chunks with parts that are copied at the same time, so that they share batches.
const TOGETHER: usize = 64;
/// Bytes of records that are copied in one submission, so that others' records go in between.
const COPY_BYTES: usize = 16 << 10;

/// Owns the superblock.
pub(crate) struct Cleaner {
    superblock: Superblock,
    passes: Passes,
}

/// Passes over the whole log. Small records before large ones leave gaps that a copy has as well: on
/// a full disk cleaning could go round for ever.
#[derive(Default)]
struct Passes {
    /// Segments that are left of this pass, and the log's bytes when it began.
    left: usize,
    before: u64,
    /// The log's bytes and those needed of it after a pass that made it hardly shorter.
    in_vain: Option<(u64, u64)>,
}

impl Passes {
    /// Whether the next pass would be in vain as well: nothing much changed since.
    fn is_vain(&self, log: u64, live: u64) -> bool {
        let same =
            |(then, needed): (u64, u64)| log <= then + then / 8 && live >= needed - needed / 8;
        self.in_vain.is_some_and(same)
    }

    /// A segment of a log of so many segments and bytes is cleaned.
    fn begin(&mut self, segments: usize, log: u64) {
        if self.left == 0 {
            (self.left, self.before, self.in_vain) = (segments, log, None);
        }
    }

    /// It is, and that is what is left.
    fn end(&mut self, log: u64, live: u64) {
        self.left -= 1;
        if self.left == 0 && log + log / 16 >= self.before {
            self.in_vain = Some((log, live));
        }
    }
}

/// Runs until the store ends.
pub(crate) async fn run(core: Arc<Core>, mut cleaner: Cleaner) {
    let mut aged_at = core.env.now();
    let mut clean_from = core.env.now();
    loop {
        if core.state.lock().failed.is_some() {
            return;
        }
        fill_spares(&core).await;
        for _ in 0..ROUND {
            if core.env.now() < clean_from || !cleaner.is_needed(&core) {
                break;
            }
            if let Err(error) = cleaner.clean_one(&core).await {
                tracing::warn!(disk = %core.disk.describe(), %error, "the log was not cleaned");
                if error.code() == Code::Corrupt {
                    clean_from = core.env.now().plus(RETRY);
                }
                break;
            }
        }
        if core.options.discard && core.env.now().since(aged_at) >= AGE {
            give_back(&core).await;
            core.space.age();
            aged_at = core.env.now();
        }
        if core.space.is_tight() {
            ask_for_space(&core).await;
        }
        core.env.sleep(PAUSE).await;
        let changed = core.space.changed.notified();
        if core.space.is_tight() || core.options.discard && core.space.has_stale() {
            // Either way the next round looks for zones that stayed empty.
            let _ = core.env.timeout(AGE, "maintenance", changed).await;
        } else {
            changed.await;
        }
    }
}

async fn fill_spares(core: &Core) {
    while core.space.spares().len() < SPARES {
        let Some(segment) = core.space.take_segment() else { return };
        // Written once, so that the file system has room for it when it is needed.
        let mut zeros = core.pool.take(segment.count as usize * BLOCK_BYTES);
        zeros.fill(0);
        match core.disk.write(segment.offset(), zeros.freeze()).await {
            Ok(()) => core.space.put_spare(segment),
            Err(_) => return core.space.refuse_segment(segment),
        }
    }
}

/// Gives the zones that stayed empty back to the disk.
async fn give_back(core: &Core) {
    while let Some(zone) = core.space.take_aged() {
        let given = core.disk.discard(zone.offset(), zone.bytes()).await;
        core.space.give_clean(zone);
        if given.is_err() {
            return;
        }
    }
}

/// Looks whether the file system beneath has space again.
async fn ask_for_space(core: &Core) {
    match core.beneath().await {
        Ok(Some(beneath)) if beneath.free_bytes < core.shape.zone_bytes() => {}
        Ok(_) => core.space.relax(),
        Err(error) => tracing::warn!(disk = %core.disk.describe(), %error, "no answer"),
    }
}

impl Core {
    /// Whether cleaning makes the log shorter: a copy of what is needed has few gaps.
    pub(crate) fn is_log_cleanable(&self) -> bool {
        let state = self.state.lock();
        state.segments.len() > 2 && state.log_bytes() > state.live() / 4 * 5
    }

    /// Whether cleaning is about to give space back that the log or data lack.
    pub(crate) fn is_log_being_cleaned(&self) -> bool {
        self.space.spares().len() < SPARES && self.is_log_cleanable()
    }
}

impl Cleaner {
    pub(crate) fn new(superblock: Superblock) -> Self {
        Self { superblock, passes: Passes::default() }
    }

    fn is_needed(&self, core: &Core) -> bool {
        let (log, live) = {
            let state = core.state.lock();
            if state.segments.len() > 1 && state.begins_with_loss() {
                return true;
            }
            (state.log_bytes(), state.live())
        };
        let disk = core.shape.blocks * BLOCK;
        let slack = core.options.log_slack_bytes.min(disk / 16);
        // On a disk that is nearly full the log gives back what it can.
        let short =
            core.space.spares().len() < SPARES || core.space.writable_blocks() * BLOCK < disk / 32;
        let is_long = short || log > 2 * live + slack;
        is_long && core.is_log_cleanable() && !self.passes.is_vain(log, live)
    }

    /// Cleans the oldest segment.
    pub(crate) async fn clean_one(&mut self, core: &Core) -> Result<()> {
        {
            let state = core.state.lock();
            self.passes.begin(state.segments.len(), state.log_bytes());
        }
        let _changes = core.target_changes.lock().await;
        let _gate = core.gate.read().await;
        let (oldest, second) = {
            let state = core.state.lock();
            state.check()?;
            match (state.segments.front(), state.segments.get(1)) {
                (Some(oldest), Some(second)) => (*oldest, *second),
                _ => return Ok(()),
            }
        };
        let Later { mut large, busy } = copy_segment(core, oldest, second.first_sequence).await?;
        for (key, records) in busy {
            copy_busy(core, key, records, &mut large).await?;
        }
        let mut large = large.into_iter().peekable();
        while large.peek().is_some() {
            let some = large.by_ref().take(TOGETHER);
            for copied in join_all(some.map(|key| copy_large(core, key, oldest.extent))).await {
                copied?;
            }
        }
        copy_targets(core, oldest.extent).await?;
        self.superblock.head = second.extent;
        self.superblock.head_sequence = second.first_sequence;
        if let Err(error) = self.superblock.write(&core.disk).await {
            core.fail(&error);
            return Err(error);
        }
        {
            let mut state = core.state.lock();
            state.segments.pop_front();
            self.passes.end(state.log_bytes(), state.live());
        }
        core.space.retire(Dropped { data: Vec::new(), segment: Some(oldest.extent) });
        Ok(())
    }
}

/// Copies of records for the queue, and where they were.
#[derive(Default)]
struct Copies {
    records: Vec<Record>,
    from: Vec<Position>,
    bytes: usize,
}

impl Copies {
    fn push(&mut self, record: Record, from: Position) {
        self.bytes += from.bytes() as usize;
        self.records.push(record);
        self.from.push(from);
    }

    fn submit(self, state: &mut State) -> oneshot::Receiver<Result<()>> {
        let effect = Effect::Moved { from: self.from };
        Core::submit_waiting(state, self.records, Vec::new(), effect)
    }
}

/// What cannot be copied record by record.
#[derive(Default)]
struct Later {
    /// Chunks with parts.
    large: BTreeSet<Key>,
    /// Records of chunks that are being changed.
    busy: BTreeMap<Key, Vec<(Position, Record)>>,
}

/// Copies what is needed of a segment and can be copied at once; returns the rest. Copies of the
/// whole segment go into the queue before the first one is waited for: so they share batches, and
/// the gaps that small batches leave are closed.
async fn copy_segment(core: &Core, segment: Segment, end: u64) -> Result<Later> {
    let mut reader =
        LogReader::new(Arc::clone(&core.disk), core.pool.clone(), core.identity, segment).await?;
    let mut later = Later::default();
    let mut records = Vec::new();
    while reader.sequence() < end {
        let sequence = reader.sequence();
        let Some(batch) = reader.next().await? else {
            // What was lost before the store was opened is not known here either.
            let known = core.state.lock().lost.iter().any(|lost| lost.contains(&sequence));
            if known && reader.skip_damage().await?.is_some() {
                continue;
            }
            return Err(Error::corrupt(format!("the log's batch {sequence} is damaged"))
                .with_hint("open the store again, to find out what was lost"));
        };
        crate::batch::for_each_record(&batch.bytes, batch.start, |position, record| {
            records.push((position, record));
            Ok(())
        })?;
    }
    let mut receivers = Vec::new();
    let mut records = records.into_iter().peekable();
    while records.peek().is_some() {
        let mut copies = Copies::default();
        let mut state = core.state.lock();
        while copies.bytes < COPY_BYTES {
            let Some((position, record)) = records.next() else { break };
            match key_of(&record).filter(|key| state.busy.contains(key)) {
                Some(key) => later.busy.entry(key).or_default().push((position, record)),
                None => {
                    copy_record(core, &mut state, position, record, &mut copies, &mut later.large);
                }
            }
        }
        if !copies.records.is_empty() {
            receivers.push(copies.submit(&mut state));
        }
    }
    for copied in join_all(receivers.into_iter().map(|receiver| core.durable(receiver))).await {
        copied?;
    }
    Ok(later)
}

/// The chunk whose record would have to be copied.
fn key_of(record: &Record) -> Option<Key> {
    match record {
        Record::Put { key, .. } | Record::Retry { key, .. } => Some(*key),
        _ => None,
    }
}

/// Copies what is needed of the records of a chunk that was being changed, when it is not any more.
async fn copy_busy(
    core: &Core,
    key: Key,
    records: Vec<(Position, Record)>,
    large: &mut BTreeSet<Key>,
) -> Result<()> {
    let _chunk = core.chunks.lock(key).await;
    let mut copies = Copies::default();
    let receiver = {
        let mut state = core.state.lock();
        state.check()?;
        for (position, record) in records {
            copy_record(core, &mut state, position, record, &mut copies, large);
        }
        copies.submit(&mut state)
    };
    core.durable(receiver).await
}

/// Adds a copy of a record if it is needed, as of now: the queue keeps the order of decisions.
fn copy_record(
    core: &Core,
    state: &mut State,
    position: Position,
    record: Record,
    copies: &mut Copies,
    large: &mut BTreeSet<Key>,
) {
    match record {
        Record::Put { key, head, flags } => {
            if let Some(retry) = head.retry {
                copy_retry(state, position, key, retry, copies);
            }
            if head.stored().next().is_some() {
                large.insert(key);
            } else {
                copy_put(core, state, position, key, head, flags.committed, copies);
            }
        }
        Record::Part { key, .. } => {
            large.insert(key);
        }
        Record::Retry { key, retry, .. } => copy_retry(state, position, key, retry, copies),
        Record::Target(_)
        | Record::Commit { .. }
        | Record::Discard { .. }
        | Record::Forget { .. }
        | Record::ForgetRetries { .. }
        | Record::Drop { .. }
        | Record::RemoveTarget { .. } => {}
    }
}

/// `settled`: the record says itself that it is committed, so that no older version can lie behind
/// it. An older one may lie behind a record that was pending when it was written: a tombstone that
/// a later record committed is copied once more before it may go.
fn copy_put(
    core: &Core,
    state: &mut State,
    position: Position,
    key: Key,
    head: Head,
    settled: bool,
    copies: &mut Copies,
) {
    let Some(target) = state.targets.get_mut(&key.target) else { return };
    let committed = target.index.get(&key.chunk).is_some_and(|s| s.position == position);
    let pending = target.pending.get(&key.chunk);
    if !committed && pending.is_none_or(|pending| pending.position != position) {
        return;
    }
    let age = core.env.wall().0.saturating_sub(head.time.0);
    let retention = i64::try_from(core.options.tombstone_retention.as_nanos()).unwrap_or(i64::MAX);
    if committed && settled && head.removed && pending.is_none() && age > retention {
        target.index.remove(&key.chunk);
        target.live -= position.cost();
        return;
    }
    let flags = Flags { committed, ..Flags::default() };
    copies.push(Record::Put { key, head, flags }, position);
}

fn copy_retry(state: &State, position: Position, key: Key, retry: RetryKey, copies: &mut Copies) {
    let slot = (key.target, retry.client, retry.channel);
    if let Some(known) = state.retries.get(&slot).filter(|known| known.position == position) {
        // A discard may have changed what the record says.
        let (retry, version) = (RetryKey { sequence: known.sequence, ..retry }, known.version);
        copies.push(Record::Retry { key, retry, version }, position);
    }
}

/// Copies what is needed of a chunk's parts in the segment.
async fn copy_large(core: &Core, key: Key, segment: Extent) -> Result<()> {
    while copy_version(core, key, segment).await? {}
    Ok(())
}

/// Copies the parts of one version of a chunk (first the committed one's, then the pending one's)
/// that lie in the segment, and all records that name them. Whether there may be more to do.
async fn copy_version(core: &Core, key: Key, segment: Extent) -> Result<bool> {
    let inside = |position: Position| (segment.start..segment.end()).contains(&position.block());
    let _chunk = core.chunks.lock(key).await;
    if !core.state.lock().targets.contains_key(&key.target) {
        return Ok(false);
    }
    let standing = core.any_standing(key).await?.whole()?;
    let pending = {
        let state = core.state.lock();
        let target = state.targets.get(&key.target);
        let pending = target.and_then(|target| target.pending.get(&key.chunk));
        pending.map(|pending| (pending.position, Arc::clone(&pending.head)))
    };
    let versions: Vec<(Position, Arc<Head>)> =
        standing.committed.iter().cloned().chain(pending).collect();
    let concerned =
        |(position, head): &&(Position, Arc<Head>)| inside(*position) || head.stored().any(inside);
    let Some((_, first)) = versions.iter().find(concerned) else { return Ok(false) };
    let mut copies = Copies::default();
    let mut moved = BTreeMap::new();
    for (index, part) in first.parts.iter().enumerate() {
        if let Part::Stored(position) = part
            && inside(*position)
        {
            let group = core.part(key, first, index, &standing.lease).await?;
            moved.insert(*position, copies.records.len());
            copies.push(Record::Part { key, index: index as u16, group }, *position);
        }
    }
    let mut links = Vec::new();
    for (position, head) in &versions {
        let places: Vec<usize> =
            head.stored().filter_map(|part| moved.get(&part).copied()).collect();
        if inside(*position) || !places.is_empty() {
            links.extend(places.iter().map(|part| (*part, copies.records.len())));
            let (head, flags) = (Head::clone(head), Flags::default());
            copies.push(Record::Put { key, head, flags }, *position);
        }
    }
    let receiver = {
        let mut state = core.state.lock();
        let target = state.any_target(key.target)?;
        for (record, from) in copies.records.iter_mut().zip(&copies.from) {
            let Record::Put { flags, .. } = record else { continue };
            flags.committed = target.index.get(&key.chunk).is_some_and(|s| s.position == *from);
            let pending = target.pending.get(&key.chunk).is_some_and(|p| p.position == *from);
            if !flags.committed && !pending {
                // The pending version was committed meanwhile: this one is not needed any more.
                return Ok(true);
            }
        }
        let effect = Effect::Moved { from: copies.from };
        Core::submit_waiting(&mut state, copies.records, links, effect)
    };
    core.durable(receiver).await.map(|()| true)
}

/// Copies the targets' records that lie in the segment, and writes those whose highest version the
/// segment may have been the only one to show.
async fn copy_targets(core: &Core, segment: Extent) -> Result<()> {
    let inside = |position: Position| (segment.start..segment.end()).contains(&position.block());
    let receiver = {
        let mut state = core.state.lock();
        state.check()?;
        let old = state.targets.iter().filter(|(_, target)| {
            inside(target.position) || target.version_max > target.recorded_max
        });
        let records: Vec<Record> =
            old.map(|(target, found)| Record::Target(found.body(*target))).collect();
        if records.is_empty() {
            return Ok(());
        }
        Core::submit_waiting(&mut state, records, Vec::new(), Effect::Target)
    };
    core.durable(receiver).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_in_vain_is_not_repeated_until_something_changed() {
        let mut passes = Passes::default();
        let mut pass = |before: u64, after: u64| {
            for left in (0..4).rev() {
                passes.begin(4, before);
                passes.end(if left == 0 { after } else { before }, 100);
            }
            let vain = passes.is_vain(after, 100);
            (vain, passes.is_vain(after * 2, 100), passes.is_vain(after, 50))
        };
        assert_eq!(pass(1000, 500), (false, false, false));
        assert_eq!(pass(500, 490), (true, false, false));
        assert_eq!(pass(490, 200), (false, false, false));
    }
}
