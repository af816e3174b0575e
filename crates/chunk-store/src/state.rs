//! What the store knows, in memory, and how each durable record changes it.
//!
//! Everything is decided and queued for the log under one short lock, so that the order of the log
//! is the order of the decisions. What waits for the disk is applied by the committer, in the order
//! of the log, after the sync that made it durable.

use crate::cache::{Cache, Cached, Piece};
use crate::extent::{Extent, Position, blocks_of};
use crate::index::{Index, Slot};
use crate::record::{Head, Key, Record, TargetBody};
use crate::space::{Dropped, Space};
use kiln_types::{
    ChainId, ChannelId, ChunkId, ChunkVersion, ClientId, Code, Error, Result, RetryKey, Sequence,
    TargetId,
};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Everything that the lock of the store covers.
pub(crate) struct State {
    /// Why the store does not work any more.
    pub(crate) failed: Option<Error>,
    pub(crate) targets: BTreeMap<TargetId, Target>,
    pub(crate) retries: BTreeMap<RetrySlot, Remembered>,
    /// Chunks with a new version or a discard in the queue or on its way, not applied yet. Cleaning
    /// must not copy what is about to be superseded behind what supersedes it.
    pub(crate) busy: HashSet<Key>,
    /// What the committer writes next.
    pub(crate) queue: VecDeque<Submission>,
    /// How many in the queue have someone waiting.
    pub(crate) waiting: usize,
    /// The log, oldest segment first; the last one is being written.
    pub(crate) segments: VecDeque<Segment>,
    /// Sequence numbers of batches that could not be read when the store was opened. Cleaning removes
    /// them.
    pub(crate) lost: Vec<Range<u64>>,
    /// What retry records cost of the log that have a record of their own.
    pub(crate) retry_cost: u64,
}

/// A client's channel at a target.
pub(crate) type RetrySlot = (TargetId, ClientId, ChannelId);

/// The last write of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) sequence: Sequence,
    pub(crate) chunk: ChunkId,
    pub(crate) version: ChunkVersion,
    /// The record that says so.
    pub(crate) position: Position,
    /// What that record costs of the log, if it is the retry record's own, not the chunk's.
    pub(crate) own_cost: u64,
}

/// A replica.
#[derive(Default)]
pub(crate) struct Target {
    pub(crate) chain: ChainId,
    pub(crate) version_max: ChunkVersion,
    /// The `version_max` of the last target record.
    pub(crate) recorded_max: ChunkVersion,
    pub(crate) state: Vec<u8>,
    pub(crate) position: Position,
    pub(crate) index: Index,
    pub(crate) pending: BTreeMap<ChunkId, Pending>,
    /// Blocks of data, of committed and pending versions together.
    pub(crate) blocks: u64,
    /// What it costs of the log: its own record, its chunks' and their parts'.
    pub(crate) live: u64,
    /// It is being removed: nothing new is taken.
    pub(crate) removing: bool,
    /// See [`crate::TargetRecord::damaged`].
    pub(crate) damaged: bool,
}

/// A version that is neither committed nor discarded.
#[derive(Clone)]
pub(crate) struct Pending {
    pub(crate) position: Position,
    pub(crate) head: Arc<Head>,
    pub(crate) footprint: Footprint,
    /// A discard is on its way to the disk.
    pub(crate) discarding: bool,
}

/// What a version changes in the use of the disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Footprint {
    /// Blocks that it has and the committed version has not.
    pub(crate) added: Vec<Extent>,
    /// Blocks that the committed version has and it has not.
    pub(crate) dropped: Vec<Extent>,
    /// Log cost of its parts that the committed version does not share, and the other way round.
    pub(crate) added_log: u64,
    pub(crate) dropped_log: u64,
}

/// A piece of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) extent: Extent,
    /// The sequence number of its first batch.
    pub(crate) first_sequence: u64,
}

/// Records that are written in one batch, whole or not at all.
pub(crate) struct Submission {
    pub(crate) records: Vec<Record>,
    /// (part record, put record): the position of the first goes into the second.
    pub(crate) links: Vec<(usize, usize)>,
    pub(crate) effect: Effect,
    /// Who waits; without one the records may wait for company.
    pub(crate) done: Option<oneshot::Sender<Result<()>>>,
}

/// What happens when the records are durable.
pub(crate) enum Effect {
    None,
    /// The last record is a new version; a discard may stand before it.
    Install {
        committed: bool,
        footprint: Footprint,
    },
    /// The last record drops a chunk; a discard may stand before it.
    Dropped {
        /// What its committed version had.
        footprint: Footprint,
    },
    /// A version was committed, in memory before and on disk now.
    Committed {
        dropped: Vec<Extent>,
    },
    Discarded {
        key: Key,
        version: ChunkVersion,
    },
    /// Records were copied forward from these positions.
    Moved {
        from: Vec<Position>,
    },
    /// The record is a target's.
    Target,
    TargetRemoved {
        target: TargetId,
        data: Vec<Extent>,
    },
    Forgotten {
        client: ClientId,
    },
    RetriesForgotten {
        target: TargetId,
    },
    /// The records are retry records.
    Remembered,
}

/// Where records lie, and what else their effects touch.
pub(crate) struct Applied<'a> {
    pub(crate) positions: &'a [Position],
    pub(crate) cache: &'a Cache,
    pub(crate) space: &'a Space,
}

impl State {
    pub(crate) fn new() -> Self {
        Self {
            failed: None,
            targets: BTreeMap::new(),
            retries: BTreeMap::new(),
            busy: HashSet::new(),
            queue: VecDeque::new(),
            waiting: 0,
            segments: VecDeque::new(),
            lost: Vec::new(),
            retry_cost: 0,
        }
    }

    /// # Errors
    /// What ended the store.
    pub(crate) fn check(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// # Errors
    /// What ended the store; `WrongTarget` when the target is not on this disk; `Corrupt` when
    /// records of it were lost.
    pub(crate) fn target(&self, target: TargetId) -> Result<&Target> {
        self.check()?;
        let found = self.targets.get(&target).filter(|target| !target.removing);
        match found.ok_or_else(|| no_target(target))? {
            found if found.damaged => Err(Error::corrupt(format!("target {target}: records lost"))
                .with_hint("fill it from another replica")),
            found => Ok(found),
        }
    }

    /// As [`Self::target`], damaged or not, to change it.
    pub(crate) fn any_target(&mut self, target: TargetId) -> Result<&mut Target> {
        self.check()?;
        let found = self.targets.get_mut(&target).filter(|target| !target.removing);
        found.ok_or_else(|| no_target(target))
    }

    /// A pending version.
    pub(crate) fn pending_mut(&mut self, key: Key, version: ChunkVersion) -> Option<&mut Pending> {
        let pending = self.targets.get_mut(&key.target)?.pending.get_mut(&key.chunk)?;
        Some(pending).filter(|pending| pending.head.version == version)
    }

    /// A pending version that nobody commits or discards yet.
    ///
    /// # Errors
    /// `VersionMismatch`.
    pub(crate) fn undecided(&mut self, key: Key, version: ChunkVersion) -> Result<&mut Pending> {
        let pending = self.pending_mut(key, version).filter(|pending| !pending.discarding);
        pending.ok_or_else(|| {
            let message = format!("chunk {}: version {version} is not pending", key.chunk);
            Error::new(Code::VersionMismatch, message)
        })
    }

    /// Bytes that the log occupies.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.extent.bytes()).sum()
    }

    /// Whether lost batches lie in the log, in its oldest segment or later.
    pub(crate) fn begins_with_loss(&self) -> bool {
        let first = self.segments.front().map_or(0, |segment| segment.first_sequence);
        self.lost.iter().any(|lost| lost.end > first)
    }

    /// Bytes of the log that are needed, at most.
    pub(crate) fn live(&self) -> u64 {
        self.retry_cost + self.targets.values().map(|target| target.live).sum::<u64>()
    }

    /// Queues records for the next batch.
    pub(crate) fn submit(&mut self, submission: Submission) {
        self.waiting += usize::from(submission.done.is_some());
        self.queue.push_back(submission);
    }

    pub(crate) fn forget_retry(&mut self, slot: &RetrySlot) {
        if let Some(old) = self.retries.remove(slot) {
            self.retry_cost -= old.own_cost;
        }
    }

    pub(crate) fn remember(&mut self, key: Key, retry: RetryKey, remembered: Remembered) {
        let slot = (key.target, retry.client, retry.channel);
        let old_cost = match self.retries.entry(slot) {
            Entry::Vacant(entry) => {
                entry.insert(remembered);
                0
            }
            Entry::Occupied(entry) if entry.get().sequence > remembered.sequence => return,
            Entry::Occupied(mut entry) => entry.insert(remembered).own_cost,
        };
        self.retry_cost = self.retry_cost + remembered.own_cost - old_cost;
    }

    /// Takes what a retry record of its own says.
    pub(crate) fn remember_alone(
        &mut self,
        key: Key,
        retry: RetryKey,
        version: ChunkVersion,
        position: Position,
    ) {
        let remembered = Remembered {
            sequence: retry.sequence,
            chunk: key.chunk,
            version,
            position,
            own_cost: position.cost(),
        };
        self.remember(key, retry, remembered);
    }

    /// A version is discarded: of its channel it is known only that the write before it is over, so
    /// that the write may be tried again, and nobody brings back an older one.
    pub(crate) fn undo_retry(&mut self, key: Key, discarded: &Head) {
        let Some(retry) = discarded.retry else { return };
        let slot = (key.target, retry.client, retry.channel);
        let Some(known) = self.retries.get_mut(&slot) else { return };
        if (known.chunk, known.version) != (key.chunk, discarded.version) {
            return;
        }
        match known.sequence.0.checked_sub(1) {
            Some(before) => {
                (known.sequence, known.version) = (Sequence(before), ChunkVersion::NONE);
            }
            None => self.forget_retry(&slot),
        }
    }

    pub(crate) fn forget_retries_if(&mut self, gone: impl Fn(&RetrySlot, &Remembered) -> bool) {
        let cost = &mut self.retry_cost;
        self.retries.retain(|slot, old| {
            let goes = gone(slot, old);
            *cost -= if goes { old.own_cost } else { 0 };
            !goes
        });
    }

    /// Drops the retry records of a client.
    pub(crate) fn forget_client(&mut self, client: ClientId) {
        self.forget_retries_if(|slot, _| slot.1 == client);
    }

    /// Drops the retry records of a target.
    pub(crate) fn forget_retries_of(&mut self, target: TargetId) {
        self.forget_retries_if(|slot, _| slot.0 == target);
    }

    /// Takes a pending version as the committed one; returns the blocks that nobody needs once the
    /// commit is durable. `None` when the version is not pending.
    pub(crate) fn commit_pending(&mut self, key: Key, cache: &Cache) -> Option<Vec<Extent>> {
        let target = self.targets.get_mut(&key.target)?;
        let pending = target.pending.remove(&key.chunk)?;
        let slot = Slot::of(&pending.head, pending.position);
        let old = target.index.insert(key.chunk, slot);
        target.blocks -= blocks_of(&pending.footprint.dropped);
        target.live -= old.map_or(0, |old| old.position.cost()) + pending.footprint.dropped_log;
        cache.put(key, Piece::Head, pending.position, Cached::Head(pending.head));
        Some(pending.footprint.dropped)
    }

    /// Carries out what durable records mean.
    pub(crate) fn apply(&mut self, mut submission: Submission, at: &Applied<'_>) {
        match submission.effect {
            Effect::None => {}
            Effect::Install { committed, footprint } => {
                let put = submission.records.pop();
                self.discard_first(&submission.records, at);
                self.cache_parts(&submission.records, at);
                if let Some(Record::Put { key, head, .. }) = put {
                    self.install(key, head, committed, footprint, at);
                }
            }
            Effect::Dropped { footprint } => {
                self.discard_first(&submission.records, at);
                if let Some(Record::Drop { key }) = submission.records.pop() {
                    self.dropped(key, footprint, at);
                }
            }
            Effect::Committed { dropped } => {
                at.space.retire(Dropped { data: dropped, segment: None });
            }
            Effect::Discarded { key, version } => self.discarded(key, version, at),
            Effect::Moved { from } => {
                self.cache_parts(&submission.records, at);
                for ((record, from), to) in
                    submission.records.into_iter().zip(from).zip(at.positions)
                {
                    self.moved(record, from, *to, at);
                }
            }
            Effect::Target => {
                for (record, position) in submission.records.into_iter().zip(at.positions) {
                    if let Record::Target(body) = record {
                        self.target_written(body, *position);
                    }
                }
            }
            Effect::TargetRemoved { target, data } => {
                self.drop_target(target);
                at.space.retire(Dropped { data, segment: None });
            }
            Effect::Forgotten { client } => self.forget_client(client),
            Effect::RetriesForgotten { target } => self.forget_retries_of(target),
            Effect::Remembered => {
                for (record, position) in submission.records.into_iter().zip(at.positions) {
                    if let Record::Retry { key, retry, version } = record {
                        self.remember_alone(key, retry, version, *position);
                    }
                }
            }
        }
    }

    fn cache_parts(&self, records: &[Record], at: &Applied<'_>) {
        for (record, position) in records.iter().zip(at.positions) {
            if let Record::Part { key, index, group } = record {
                let cached = Cached::Part(Arc::clone(group));
                at.cache.put(*key, Piece::Part(*index), *position, cached);
            }
        }
    }

    fn install(
        &mut self,
        key: Key,
        head: Head,
        committed: bool,
        mut footprint: Footprint,
        at: &Applied<'_>,
    ) {
        let Some(position) = at.positions.last().copied() else { return };
        footprint.added_log = head.stored_cost_of(at.positions);
        if let Some(retry) = head.retry {
            let remembered = Remembered {
                sequence: retry.sequence,
                chunk: key.chunk,
                version: head.version,
                position,
                own_cost: 0,
            };
            self.remember(key, retry, remembered);
        }
        let Some(target) = self.targets.get_mut(&key.target) else { return };
        target.version_max = target.version_max.max(head.version);
        target.blocks += blocks_of(&footprint.added);
        target.live += position.cost() + footprint.added_log;
        let head = Arc::new(head);
        let pending = Pending { position, head, footprint, discarding: false };
        target.pending.insert(key.chunk, pending);
        if committed {
            let dropped = self.commit_pending(key, at.cache).unwrap_or_default();
            at.space.retire(Dropped { data: dropped, segment: None });
        }
    }

    /// The pending version goes first, where it has to.
    fn discard_first(&mut self, records: &[Record], at: &Applied<'_>) {
        if let Some(Record::Discard { key, version }) = records.first() {
            self.discarded(*key, *version, at);
        }
    }

    fn dropped(&mut self, key: Key, footprint: Footprint, at: &Applied<'_>) {
        let Some(target) = self.targets.get_mut(&key.target) else { return };
        let Some(old) = target.index.remove(&key.chunk) else { return };
        target.blocks -= blocks_of(&footprint.dropped);
        target.live -= old.position.cost() + footprint.dropped_log;
        at.cache.forget(key, Piece::Head);
        at.space.retire(Dropped { data: footprint.dropped, segment: None });
    }

    /// Drops a pending version.
    pub(crate) fn take_pending(&mut self, key: Key, version: ChunkVersion) -> Option<Pending> {
        self.pending_mut(key, version)?;
        let pending = self.targets.get_mut(&key.target)?.pending.remove(&key.chunk)?;
        self.undo_retry(key, &pending.head);
        Some(pending)
    }

    fn discarded(&mut self, key: Key, version: ChunkVersion, at: &Applied<'_>) {
        let Some(pending) = self.take_pending(key, version) else { return };
        let Some(target) = self.targets.get_mut(&key.target) else { return };
        target.blocks -= blocks_of(&pending.footprint.added);
        target.live -= pending.position.cost() + pending.footprint.added_log;
        at.space.retire(Dropped { data: pending.footprint.added, segment: None });
    }

    fn moved(&mut self, record: Record, from: Position, to: Position, at: &Applied<'_>) {
        match record {
            Record::Put { key, head, .. } => {
                let Some(target) = self.targets.get_mut(&key.target) else { return };
                at.cache.forget(key, Piece::Head);
                if let Some(slot) = target.index.get(&key.chunk).filter(|s| s.position == from) {
                    target.index.insert(key.chunk, slot.moved(to));
                    at.cache.put(key, Piece::Head, to, Cached::Head(Arc::new(head)));
                } else if let Some(pending) =
                    target.pending.get_mut(&key.chunk).filter(|p| p.position == from)
                {
                    pending.position = to;
                    pending.head = Arc::new(head);
                }
            }
            Record::Retry { key, retry, version } => {
                let slot = (key.target, retry.client, retry.channel);
                if let Some(old) = self.retries.get_mut(&slot).filter(|o| o.version == version) {
                    self.retry_cost = self.retry_cost + to.cost() - old.own_cost;
                    (old.position, old.own_cost) = (to, to.cost());
                }
            }
            Record::Target(body) => self.target_written(body, to),
            _ => {}
        }
    }

    pub(crate) fn target_written(&mut self, body: TargetBody, position: Position) {
        let target = self.targets.entry(body.target).or_default();
        target.live = target.live + position.cost() - target.position.cost();
        target.version_max = target.version_max.max(body.version_max);
        target.recorded_max = body.version_max;
        target.chain = body.chain;
        target.state = body.state;
        target.damaged = body.damaged;
        target.position = position;
    }

    /// Forgets a target; its data is the caller's to free.
    pub(crate) fn drop_target(&mut self, id: TargetId) {
        self.targets.remove(&id);
        self.forget_retries_of(id);
    }
}

impl Target {
    pub(crate) fn body(&self, target: TargetId) -> TargetBody {
        TargetBody {
            target,
            chain: self.chain,
            version_max: self.version_max,
            state: self.state.clone(),
            damaged: self.damaged,
        }
    }
}

fn no_target(target: TargetId) -> Error {
    Error::new(Code::WrongTarget, format!("target {target} is not on this disk"))
}
