//! Group commit: one task appends to the log, syncs, applies and answers.
//!
//! Callers write data blocks first and queue records then. A cycle writes one or a few batches,
//! syncs once, which covers the batches and all data before them, applies what the records mean,
//! and answers. Records without a waiter (commits) ride along; after a short idle time they are
//! written anyway.

use crate::batch::{BatchBuilder, BatchHeader};
use crate::core::Core;
use crate::extent::{BLOCK, Extent, Position};
use crate::record::{Part, Record};
use crate::state::{Applied, Effect, Segment, Submission};
use kiln_memory::Bytes;
use kiln_telemetry::metrics::CHUNK_GROUP;
use kiln_types::{BLOCK_BYTES, Code, Error, Monotonic, Result};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// How long commits wait for company, and the last batch for the proof that it is durable.
const IDLE: Duration = Duration::from_millis(50);
/// Batches that share a sync.
const BATCHES: usize = 4;
/// How long records wait for the cleaning of a log that has no room left.
const CLEANING: Duration = Duration::from_secs(2);
/// So many records without a waiter are written without waiting for company.
const LAZY_MAX: usize = 512;

/// Where the log goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer {
    pub(crate) segment: Extent,
    /// Blocks of the segment that are written.
    pub(crate) at: u32,
    /// The segment after this one.
    pub(crate) next: Extent,
    /// Of the next batch.
    pub(crate) sequence: u64,
    pub(crate) previous_crc: u32,
    /// All batches up to here are durable.
    pub(crate) durable: u64,
    /// The last batches say something, and no batch says yet that they are durable: if they decayed
    /// now, they would look like torn ones.
    pub(crate) unproven: bool,
    /// The segment was just begun: its first batch is not written yet.
    pub(crate) rolled: Option<Segment>,
    /// Since when records wait for the cleaning of the log.
    pub(crate) short_since: Option<Monotonic>,
}

/// A batch on its way.
struct Flight {
    submissions: Vec<(Submission, Vec<Position>)>,
    /// It is the first one of this segment.
    segment: Option<Segment>,
}

enum Wait {
    Work,
    Idle,
    Nothing,
    Over,
}

/// Runs until the store ends.
pub(crate) async fn run(core: Arc<Core>, mut writer: Writer) {
    loop {
        match wait(&core, &writer) {
            Wait::Over => return,
            Wait::Nothing => {
                core.committer.notified().await;
                continue;
            }
            Wait::Idle => {
                let idle = core.env.timeout(IDLE, "idle", core.committer.notified()).await;
                if idle.is_ok() && !matches!(wait(&core, &writer), Wait::Work) {
                    continue;
                }
            }
            Wait::Work => {}
        }
        if let Err(error) = writer.cycle(&core).await {
            let error = Error::new(Code::DiskFailed, format!("chunk store: {}", error.message()));
            tracing::error!(disk = %core.disk.describe(), %error, "the chunk store stops");
            core.fail(&error);
            return;
        }
    }
}

fn wait(core: &Core, writer: &Writer) -> Wait {
    let state = core.state.lock();
    match (state.failed.is_some(), state.waiting, state.queue.len()) {
        (true, _, _) => Wait::Over,
        (false, 0, 0) if !writer.unproven => Wait::Nothing,
        (false, 0, lazy) if lazy < LAZY_MAX => Wait::Idle,
        _ => Wait::Work,
    }
}

impl Writer {
    /// Writes what is queued (or an empty batch), makes it durable, applies and answers.
    ///
    /// # Errors
    /// Of the disk; the store is over then. A full disk is no error: those who wait are told.
    pub(crate) async fn cycle(&mut self, core: &Core) -> Result<()> {
        let mut flights = Vec::new();
        let mut refusal = None;
        while flights.len() < BATCHES && (flights.is_empty() || has_work(core)) {
            let Some((flight, batch)) = self.fill(core) else {
                refusal = self.wait_for_cleaning(core);
                break;
            };
            self.short_since = None;
            let start = self.segment.start + u64::from(self.at);
            match core.disk.write(start * BLOCK, batch.0.clone()).await {
                Ok(()) => {
                    self.at += (batch.0.len() / BLOCK_BYTES) as u32;
                    self.sequence += 1;
                    self.previous_crc = batch.1;
                    flights.push(flight);
                }
                Err(error) => {
                    self.rolled = flight.segment;
                    if error.code() != Code::NoSpace {
                        flights.push(flight);
                        put_back(core, flights.into_iter().flat_map(Flight::into_submissions));
                        return Err(error);
                    }
                    put_back(core, flight.into_submissions());
                    refusal = Some(error);
                    break;
                }
            }
        }
        if !flights.is_empty() {
            if let Err(error) = core.sync_log().await {
                put_back(core, flights.into_iter().flat_map(Flight::into_submissions));
                return Err(error);
            }
            self.durable = self.sequence - 1;
            self.unproven = flights.iter().any(|flight| !flight.submissions.is_empty());
            settle(core, flights);
        }
        if let Some(error) = &refusal {
            refuse(core, error);
        }
        if refusal.is_some() || self.short_since.is_some() {
            // What stays in the queue waits until there is space again: do not spin on it.
            let _ = core.env.timeout(IDLE, "space", core.committer.notified()).await;
        }
        Ok(())
    }

    /// Writes all that is queued and goes on in the next segment, so that cleaning reaches this one.
    ///
    /// # Errors
    /// `NoSpace`, `DiskFailed`.
    pub(crate) async fn leave_segment(&mut self, core: &Core) -> Result<()> {
        let left = self.segment;
        while has_work(core) || self.segment == left {
            if !has_work(core) {
                self.at = self.segment.count;
            }
            let before = self.sequence;
            self.cycle(core).await?;
            if self.sequence == before {
                return Err(Error::new(Code::NoSpace, "the disk has no room for its log"));
            }
        }
        Ok(())
    }

    /// The log has no room. As long as cleaning may make some, the queue waits.
    fn wait_for_cleaning(&mut self, core: &Core) -> Option<Error> {
        let now = core.env.now();
        let since = *self.short_since.get_or_insert(now);
        core.space.changed.notify_one();
        if core.is_log_cleanable() && now.since(since) < CLEANING {
            return None;
        }
        self.short_since = None;
        Some(Error::new(Code::NoSpace, "the disk has no room for its log"))
    }

    /// Takes submissions from the queue into one batch, on a new segment if need be; `None` when
    /// the log cannot grow.
    fn fill(&mut self, core: &Core) -> Option<(Flight, (Bytes, u32))> {
        loop {
            let room = (self.segment.count - self.at) as usize * BLOCK_BYTES;
            let capacity = room.min(core.shape.batch_bytes());
            if capacity > 0 {
                let start = self.segment.start + u64::from(self.at);
                let mut builder = BatchBuilder::new(core.pool.take(capacity), start);
                let whole = capacity == core.shape.batch_bytes();
                let submissions = take_fitting(core, &mut builder, whole);
                if whole || !submissions.is_empty() || !has_work(core) {
                    let header = BatchHeader {
                        disk: core.identity.disk,
                        sequence: self.sequence,
                        durable: self.durable,
                        previous_crc: self.previous_crc,
                        next: self.next,
                    };
                    let flight = Flight { submissions, segment: self.rolled.take() };
                    return Some((flight, builder.finish(&header)));
                }
            }
            self.roll(core)?;
        }
    }

    /// Goes on to the next segment, which needs one more after it.
    fn roll(&mut self, core: &Core) -> Option<()> {
        let after =
            core.space.take_spare(is_cleaning(core)).or_else(|| core.space.take_segment())?;
        self.segment = std::mem::replace(&mut self.next, after);
        self.at = 0;
        self.rolled = Some(Segment { extent: self.segment, first_sequence: self.sequence });
        Some(())
    }
}

impl Flight {
    fn into_submissions(self) -> impl Iterator<Item = Submission> {
        self.submissions.into_iter().map(|(submission, _)| submission)
    }
}

fn has_work(core: &Core) -> bool {
    !core.state.lock().queue.is_empty()
}

/// Whether copies of the cleaning are in the queue: the last of the log's space is theirs.
fn is_cleaning(core: &Core) -> bool {
    let state = core.state.lock();
    state
        .queue
        .iter()
        .any(|submission| matches!(submission.effect, Effect::Moved { .. } | Effect::Target))
}

fn take_one(core: &Core) -> Option<Submission> {
    let mut state = core.state.lock();
    let taken = state.queue.pop_front()?;
    state.waiting -= usize::from(taken.done.is_some());
    Some(taken)
}

/// Moves submissions into the batch while they fit. What would not fit into a `whole` empty batch
/// never will.
fn take_fitting(
    core: &Core,
    builder: &mut BatchBuilder,
    whole: bool,
) -> Vec<(Submission, Vec<Position>)> {
    let mut taken = Vec::new();
    while let Some(mut submission) = take_one(core) {
        let mark = builder.mark();
        if let Some(positions) = push(&mut submission, builder) {
            taken.push((submission, positions));
            continue;
        }
        builder.back_to(mark);
        if whole && taken.is_empty() {
            answer(submission.done, Err(Error::internal("a change is larger than a log batch")));
            continue;
        }
        put_back(core, [submission]);
        break;
    }
    taken
}

fn push(submission: &mut Submission, builder: &mut BatchBuilder) -> Option<Vec<Position>> {
    let mut positions = Vec::with_capacity(submission.records.len());
    for at in 0..submission.records.len() {
        let links = submission.links.iter().filter(|(_, put)| *put == at);
        let parts: Vec<_> = links.map(|(part, _)| (*part, positions[*part])).collect();
        for (part, position) in parts {
            let Record::Part { index, .. } = submission.records[part] else { continue };
            if let Record::Put { head, .. } = &mut submission.records[at] {
                head.parts[usize::from(index)] = Part::Stored(position);
            }
        }
        positions.push(builder.push(&submission.records[at].encode())?);
    }
    Some(positions)
}

/// Returns submissions to the front of the queue, in their order.
fn put_back(core: &Core, submissions: impl IntoIterator<Item = Submission>) {
    let mut state = core.state.lock();
    let mut queue: VecDeque<Submission> = submissions.into_iter().collect();
    if let Some(error) = &state.failed {
        queue.into_iter().for_each(|submission| answer(submission.done, Err(error.clone())));
        return;
    }
    state.waiting += queue.iter().filter(|submission| submission.done.is_some()).count();
    queue.append(&mut state.queue);
    state.queue = queue;
}

fn answer(done: Option<tokio::sync::oneshot::Sender<Result<()>>>, result: Result<()>) {
    if let Some(done) = done {
        let _ = done.send(result);
    }
}

/// Applies what is durable, in order, then answers.
fn settle(core: &Core, flights: Vec<Flight>) {
    let mut waiting = Vec::new();
    let changes: usize = flights.iter().map(|flight| flight.submissions.len()).sum();
    if changes > 0 {
        CHUNK_GROUP.record(changes as u64);
    }
    {
        let mut state = core.state.lock();
        for flight in flights {
            state.segments.extend(flight.segment);
            for (mut submission, positions) in flight.submissions {
                waiting.extend(submission.done.take());
                let at = Applied { positions: &positions, cache: &core.cache, space: &core.space };
                state.apply(submission, &at);
            }
        }
    }
    for done in waiting {
        let _ = done.send(Ok(()));
    }
}

/// Tells everyone who waits; what nobody waits for stays.
fn refuse(core: &Core, error: &Error) {
    let refused = {
        let mut state = core.state.lock();
        let queue = std::mem::take(&mut state.queue);
        let (refused, kept) = queue.into_iter().partition(|submission| submission.done.is_some());
        state.queue = kept;
        state.waiting = 0;
        let refused: VecDeque<Submission> = refused;
        refused
    };
    for submission in refused {
        answer(submission.done, Err(error.clone()));
    }
}
