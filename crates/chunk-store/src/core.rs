//! What all parts of the store share, and how descriptors and data come from the disk.

use crate::api::{Held, Identity, Options};
use crate::cache::{Cache, Cached, Piece};
use crate::extent::{BLOCK, Extent, Position};
use crate::group::Group;
use crate::join::join_all;
use crate::locks::KeyedLocks;
use crate::record::{Head, Key, Part, Record, read_record};
use crate::space::{Lease, Priority, Space};
use crate::state::{Effect, Footprint, State, Submission};
use kiln_disk::{Beneath, Disk};
use kiln_env::Env;
use kiln_memory::{Buffer, Pool};
use kiln_telemetry::{Phase, phase};
use kiln_types::{BLOCK_BYTES, ChunkVersion, Code, Context, Error, Result, crc32c};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Notify, RwLock, oneshot};

pub(crate) struct Core {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) env: Env,
    pub(crate) pool: Pool,
    pub(crate) options: Options,
    pub(crate) identity: Identity,
    pub(crate) shape: Shape,
    pub(crate) space: Space,
    pub(crate) state: Mutex<State>,
    pub(crate) cache: Cache,
    /// One change of a chunk at a time.
    pub(crate) chunks: KeyedLocks<Key>,
    /// Changes hold it shared; what needs the store to stand still takes it alone.
    pub(crate) gate: RwLock<()>,
    /// Changes of targets, one at a time; cleaning copies their records and is one of them. Taken
    /// before the gate.
    pub(crate) target_changes: tokio::sync::Mutex<()>,
    /// Wakes the committer.
    pub(crate) committer: Notify,
}

/// The disk's sizes, fixed when it was formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Blocks of the disk, in whole zones.
    pub(crate) blocks: u64,
    /// Blocks of a zone and of a log segment.
    pub(crate) zone_blocks: u32,
}

impl Shape {
    /// The smallest disk.
    pub(crate) const BYTES_MIN: u64 = 4 << 20;

    /// Zones are 1 MiB on disks from 64 MiB up; smaller on smaller ones, so that a log fits.
    pub(crate) fn for_disk(bytes: u64) -> Self {
        let blocks = bytes / BLOCK;
        let zone = (blocks / 64).next_power_of_two().clamp(32, 256);
        Self { blocks: blocks - blocks % zone, zone_blocks: zone as u32 }
    }

    /// Blocks that writers leave to others: the same number of the disk, for those who make space,
    /// and of the file system beneath, for all else that lives there.
    pub(crate) fn reserve_blocks(self, options: &Options) -> u64 {
        (options.reserve_bytes / BLOCK).min(self.blocks / 16)
    }

    /// Bytes of a zone.
    pub(crate) fn zone_bytes(self) -> u64 {
        u64::from(self.zone_blocks) * BLOCK
    }

    /// The largest batch: what the records of one change may need, and never more than half of the
    /// smallest segment.
    pub(crate) fn batch_bytes(self) -> usize {
        self.zone_blocks as usize / 4 * BLOCK_BYTES
    }
}

/// What a chunk is now, for someone who is about to change or read it.
pub(crate) struct Standing {
    pub(crate) committed: Option<(Position, Arc<Head>)>,
    pub(crate) pending: Option<Arc<Head>>,
    /// The committed descriptor cannot be read: why, and the version if that is known.
    pub(crate) damaged: Option<(Error, ChunkVersion)>,
    pub(crate) lease: Lease,
}

impl Standing {
    pub(crate) fn committed_version(&self) -> ChunkVersion {
        let damaged = self.damaged.as_ref().map(|(_, version)| *version);
        self.committed.as_ref().map(|(_, head)| head.version).or(damaged).unwrap_or_default()
    }

    /// # Errors
    /// `Corrupt` when the committed descriptor cannot be read.
    pub(crate) fn whole(mut self) -> Result<Self> {
        self.damaged.take().map_or(Ok(self), |(error, _)| Err(error))
    }

    pub(crate) fn held(&self) -> Held {
        let pending = self.pending.as_ref().map(|head| head.version);
        Held { committed: self.committed_version(), pending }
    }

    /// The record that drops the pending version.
    pub(crate) fn discard(&self, key: Key) -> Option<Record> {
        self.held().pending.map(|version| Record::Discard { key, version })
    }
}

impl Core {
    /// Queues records and returns the end of the wait for them to be durable.
    pub(crate) fn submit_waiting(
        state: &mut State,
        records: Vec<Record>,
        links: Vec<(usize, usize)>,
        effect: Effect,
    ) -> oneshot::Receiver<Result<()>> {
        let (sender, receiver) = oneshot::channel();
        state.submit(Submission { records, links, effect, done: Some(sender) });
        receiver
    }

    /// Waits for queued records.
    pub(crate) async fn durable(&self, receiver: oneshot::Receiver<Result<()>>) -> Result<()> {
        self.committer.notify_one();
        phase(&self.env, Phase::Sync, receiver).await.unwrap_or_else(|_| Err(closed()))
    }

    /// Queues what changes a chunk, whose lock the caller holds, and waits for it to be durable. The
    /// records discard the version `discarded`.
    ///
    /// # Errors
    /// `VersionMismatch` when `discarded` is not pending any more; of [`Self::durable`].
    pub(crate) async fn change(
        &self,
        key: Key,
        discarded: Option<ChunkVersion>,
        records: Vec<Record>,
        links: Vec<(usize, usize)>,
        effect: Effect,
    ) -> Result<()> {
        let receiver = {
            let mut state = self.state.lock();
            state.target(key.target)?;
            if let Some(version) = discarded {
                state.undecided(key, version)?.discarding = true;
            }
            state.busy.insert(key);
            Self::submit_waiting(&mut state, records, links, effect)
        };
        let result = self.durable(receiver).await;
        let mut state = self.state.lock();
        state.busy.remove(&key);
        if let (Err(_), Some(version)) = (&result, discarded)
            && let Some(pending) = state.pending_mut(key, version)
        {
            pending.discarding = false;
        }
        result
    }

    /// Waits until everything that was queued before is durable.
    pub(crate) async fn barrier(&self) -> Result<()> {
        let receiver = {
            let mut state = self.state.lock();
            state.check()?;
            Self::submit_waiting(&mut state, Vec::new(), Vec::new(), Effect::None)
        };
        self.durable(receiver).await
    }

    /// Makes the log durable, and all data that was written before.
    pub(crate) async fn sync_log(&self) -> Result<()> {
        if self.options.skip_sync {
            return Ok(());
        }
        self.disk.sync().await
    }

    /// Ends the store: everything that waits or comes later gets `error`.
    pub(crate) fn fail(&self, error: &Error) {
        let queue = {
            let mut state = self.state.lock();
            state.failed.get_or_insert_with(|| error.clone());
            state.waiting = 0;
            std::mem::take(&mut state.queue)
        };
        for done in queue.into_iter().filter_map(|submission| submission.done) {
            let _ = done.send(Err(error.clone()));
        }
    }

    /// What is known of a chunk, with the descriptors of its versions.
    ///
    /// # Errors
    /// `Corrupt` when the target is damaged or the committed descriptor is.
    pub(crate) async fn standing(&self, key: Key) -> Result<Standing> {
        self.state.lock().target(key.target)?;
        self.any_standing(key).await?.whole()
    }

    /// As [`Self::standing`], whatever is damaged.
    pub(crate) async fn any_standing(&self, key: Key) -> Result<Standing> {
        let (slot, pending, lease) = {
            let mut state = self.state.lock();
            let target = state.any_target(key.target)?;
            let pending = target.pending.get(&key.chunk).map(|p| Arc::clone(&p.head));
            (target.index.get(&key.chunk), pending, self.space.lease())
        };
        let mut standing = Standing { committed: None, pending, damaged: None, lease };
        if let Some(slot) = slot {
            match self.head(key, slot.position, &standing.lease).await {
                Ok(head) => standing.committed = Some((slot.position, head)),
                Err(error) if error.code() == Code::Corrupt => {
                    standing.damaged = Some((error, slot.version().unwrap_or_default()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(standing)
    }

    /// The descriptor at `position`; the lease was taken when the position was looked up.
    pub(crate) async fn head(&self, key: Key, position: Position, _: &Lease) -> Result<Arc<Head>> {
        if let Some(Cached::Head(head)) = self.cache.get(key, Piece::Head, position) {
            return Ok(head);
        }
        match self.record(position).await? {
            Record::Put { key: found, head, .. } if found == key => {
                let head = Arc::new(head);
                let cached = Cached::Head(Arc::clone(&head));
                self.cache.put(key, Piece::Head, position, cached);
                Ok(head)
            }
            _ => Err(misplaced(key, position)),
        }
    }

    /// How `new` changes the use of the disk when it follows `old`. `written`: maps of parts of
    /// `new` that have no record yet.
    pub(crate) async fn footprint(
        &self,
        key: Key,
        old: Option<&Head>,
        new: &Head,
        written: &BTreeMap<usize, Arc<Group>>,
        lease: &Lease,
    ) -> Result<Footprint> {
        let nothing = Vec::new();
        let old_parts = old.map_or(&nothing, |old| &old.parts);
        let mut footprint = Footprint::default();
        for index in 0..old_parts.len().max(new.parts.len()) {
            let before = match old {
                Some(old) if written.contains_key(&index) || old.part(index) != new.part(index) => {
                    match self.part(key, old, index, lease).await {
                        // What nobody can name any more is free when the store is opened next.
                        Err(error) if error.code() == Code::Corrupt => Arc::default(),
                        part => part?,
                    }
                }
                Some(_) => continue,
                None => Arc::default(),
            };
            let after = match written.get(&index) {
                Some(group) => Arc::clone(group),
                None => self.part(key, new, index, lease).await?,
            };
            after.blocks_not_in(&before, &mut footprint.added);
            before.blocks_not_in(&after, &mut footprint.dropped);
        }
        footprint.added_log = old.map_or_else(
            || new.stored().map(Position::cost).sum(),
            |old| new.stored_cost_not_in(old),
        );
        footprint.dropped_log = old.map_or(0, |old| old.stored_cost_not_in(new));
        Ok(footprint)
    }

    /// The map of a part of a chunk.
    pub(crate) async fn part(
        &self,
        key: Key,
        head: &Head,
        index: usize,
        _: &Lease,
    ) -> Result<Arc<Group>> {
        let position = match head.part(index) {
            Part::Hole => return Ok(Arc::default()),
            Part::Inline(group) => return Ok(group),
            Part::Stored(position) => position,
        };
        let piece = Piece::Part(index as u16);
        if let Some(Cached::Part(group)) = self.cache.get(key, piece, position) {
            return Ok(group);
        }
        match self.record(position).await? {
            Record::Part { key: found, index: at, group }
                if (found, at as usize) == (key, index) =>
            {
                self.cache.put(key, piece, position, Cached::Part(Arc::clone(&group)));
                Ok(group)
            }
            _ => Err(misplaced(key, position)),
        }
    }

    async fn record(&self, position: Position) -> Result<Record> {
        let offset = position.block() * BLOCK;
        let read = self.disk.read(offset, self.pool.take(BLOCK_BYTES));
        let block = phase(&self.env, Phase::DiskRead, read).await?;
        let record = read_record(&block[position.within()..])
            .context(format_args!("record at {}", position.address()))?;
        record.map(|(record, _)| record).ok_or_else(|| {
            Error::corrupt(format!("record at {}: nothing is there", position.address()))
        })
    }

    /// Reads runs of blocks into one buffer, back to back, holes as zeros; all at once.
    pub(crate) async fn read_runs(&self, runs: &[Extent]) -> Result<Buffer> {
        phase(&self.env, Phase::DiskRead, read_runs(&self.disk, &self.pool, runs)).await
    }

    /// Takes blocks for data that have space on the file system beneath.
    ///
    /// # Errors
    /// `NoSpace`, `DiskFailed`.
    pub(crate) async fn take_space(
        &self,
        count: u32,
        hint: Option<u64>,
        priority: Priority,
    ) -> Result<Vec<Extent>> {
        let take = |only_backed| self.space.take(count, hint, priority, only_backed);
        if self.space.is_tight() {
            let taken = take(true);
            if taken.is_ok() || priority != Priority::Renewer {
                return taken.map(|taken| taken.extents);
            }
        }
        let taken = take(false)?;
        match self.back(&taken.bare, priority).await {
            Ok(()) => Ok(taken.extents),
            Err(error) if error.code() == Code::NoSpace => {
                self.space.give_bare(&taken);
                take(true).map(|taken| taken.extents)
            }
            Err(error) => {
                self.space.give(&taken.extents);
                Err(error)
            }
        }
    }

    /// The file system that gives the disk its space, without what is left to others.
    pub(crate) async fn beneath(&self) -> Result<Option<Beneath>> {
        let mut beneath = self.disk.beneath().await?;
        if let Some(beneath) = &mut beneath {
            let reserve = self.shape.reserve_blocks(&self.options) * BLOCK;
            beneath.free_bytes = beneath.free_bytes.saturating_sub(reserve);
        }
        Ok(beneath)
    }

    /// Takes the space of zones from the file system, of which others keep some; half of that for
    /// one who gives as much back.
    async fn back(&self, zones: &[Extent], priority: Priority) -> Result<()> {
        if zones.is_empty() {
            return Ok(());
        }
        let bytes = zones.iter().map(|zone| zone.bytes()).sum::<u64>();
        let reserve = self.shape.reserve_blocks(&self.options) * BLOCK;
        let keep = if priority == Priority::Renewer { reserve / 2 } else { reserve };
        if self.disk.beneath().await?.is_some_and(|beneath| beneath.free_bytes < bytes + keep) {
            return Err(self.space.full());
        }
        for neighbours in zones.chunk_by(|one, next| one.end() == next.start) {
            let length = neighbours.iter().map(|zone| zone.bytes()).sum();
            self.disk.reserve(neighbours[0].offset(), length).await?;
        }
        Ok(())
    }

    /// Writes pieces of whole blocks at once; returns when all are over.
    ///
    /// # Errors
    /// Of the first one that failed.
    pub(crate) async fn write_all(&self, pieces: Vec<(u64, kiln_memory::Bytes)>) -> Result<()> {
        if let [(block, bytes)] = pieces.as_slice() {
            return self.disk.write(block * BLOCK, bytes.clone()).await;
        }
        let writes = pieces.into_iter().map(|(block, bytes)| self.disk.write(block * BLOCK, bytes));
        join_all(writes).await.into_iter().collect()
    }
}

/// See [`Core::read_runs`].
pub(crate) async fn read_runs(
    disk: &Arc<dyn Disk>,
    pool: &Pool,
    runs: &[Extent],
) -> Result<Buffer> {
    let bytes: u64 = runs.iter().map(|run| run.bytes()).sum();
    let mut rest = pool.take(bytes as usize);
    if let [run] = runs {
        if run.is_hole() {
            rest.fill(0);
            return Ok(rest);
        }
        return disk.read(run.offset(), rest).await;
    }
    let mut parts = Vec::with_capacity(runs.len());
    for run in runs {
        let tail = rest.split_off(run.bytes() as usize);
        parts.push((*run, std::mem::replace(&mut rest, tail)));
    }
    let reads = parts.into_iter().map(|(run, mut part)| async move {
        if run.is_hole() {
            part.fill(0);
            return Ok(part);
        }
        disk.read(run.offset(), part).await
    });
    let mut whole: Option<Buffer> = None;
    for part in join_all(reads).await {
        let part = part?;
        whole = Some(match whole {
            None => part,
            Some(mut whole) => {
                whole.join(part).map_err(|_| Error::internal("a disk gave back other memory"))?;
                whole
            }
        });
    }
    Ok(whole.unwrap_or_else(|| Buffer::zeroed(0)))
}

/// Whether whole blocks match their checksums in `group`; `from` is the first one's number there.
/// The first block that does not match is returned.
pub(crate) fn mismatch(group: &Group, from: u32, bytes: &[u8]) -> Option<u32> {
    let blocks = (from..).zip(bytes.chunks_exact(BLOCK_BYTES));
    let mapped = blocks.filter(|(number, _)| group.get(*number).block != 0);
    mapped.filter(|(number, bytes)| group.crc(*number) != crc32c(bytes)).map(|(n, _)| n).next()
}

pub(crate) fn closed() -> Error {
    Error::new(Code::Cancelled, "the chunk store was closed")
}

fn misplaced(key: Key, position: Position) -> Error {
    Error::corrupt(format!(
        "target {} chunk {}: another record is at {}",
        key.target,
        key.chunk,
        position.address()
    ))
}
