//! What clients do: operations on a few hot chunks, and the rights to them.

use crate::content::bytes_of;
use crate::history::{History, Kind, Outcome};
use crate::log::{Log, note};
use crate::options::Options;
use crate::tap::{Hints, likeness};
use async_trait::async_trait;
use kiln_client::{ChunkClient, Grant, Granted, Place};
use kiln_env::Env;
use kiln_memory::{Buffer, Bytes};
use kiln_types::{
    ChainId, ChunkId, ClientId, Code, Deadline, Error, InodeId, Monotonic, Result, RoutingInfo,
    ServerKey, Timestamp, TreeId, TruncateEpoch, grid_checksums,
};
use kiln_wire::{Capability, CapabilityKey, Change};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// The chunk size of the simulated layouts.
pub(crate) const CHUNK_BYTES: u32 = 64 << 10;
/// How long a capability counts, and after which time a client fetches another one.
const GRANTED: Duration = Duration::from_secs(10);
const GRANT_AGE_MAX: Duration = Duration::from_secs(5);
/// Chains that are used: few, so that chunks meet on them.
const CHAINS_MAX: usize = 4;
/// The pause of a client after a failure.
const PAUSE: Duration = Duration::from_millis(300);
/// A run has at least so many faults, however long that takes.
const FAULTS_MIN: usize = 5;

/// What all clients share.
pub(crate) struct Workload {
    pub(crate) history: Arc<History>,
    pub(crate) hints: Arc<Hints>,
    pub(crate) faults: AtomicUsize,
    stopped: AtomicBool,
    options: Options,
    key: CapabilityKey,
    /// The truncate epoch of each chunk, as the metadata service would keep it.
    epochs: Vec<AtomicU64>,
    active: AtomicUsize,
    ground: Env,
    log: Log,
}

impl Workload {
    pub(crate) fn new(options: Options, key: &ServerKey, ground: Env, log: Log) -> Arc<Self> {
        Arc::new(Self {
            history: Arc::default(),
            hints: Arc::default(),
            faults: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            key: CapabilityKey::derive(key),
            epochs: (0..options.chunks).map(|_| AtomicU64::new(1)).collect(),
            active: AtomicUsize::new(0),
            options,
            ground,
            log,
        })
    }

    /// Whether there is more to do.
    fn goes_on(&self) -> bool {
        if self.stopped.load(Ordering::Relaxed) {
            return false;
        }
        let quiet = self.options.faults.is_empty();
        self.history.count() < self.options.operations
            || !quiet && self.faults.load(Ordering::Relaxed) < FAULTS_MIN
    }

    /// Lets clients begin no further operations.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether everything is done, as far as those who did it live.
    pub(crate) fn is_over(&self) -> bool {
        !self.goes_on() && self.active.load(Ordering::Relaxed) == 0
    }

    /// Where a chunk is.
    pub(crate) fn place(&self, chunk: usize, routing: &RoutingInfo) -> Place {
        let chains: Vec<ChainId> = routing.chains.keys().copied().take(CHAINS_MAX).collect();
        let index = chunk as u64 % 3;
        Place {
            chain: chains[chunk % chains.len()],
            chunk: ChunkId::file(TreeId::MAIN, InodeId(1000 + chunk as u64), index),
            index,
            chunk_bytes: CHUNK_BYTES,
        }
    }
}

/// Counts an operation that is under way, also when its client dies.
struct Active<'a>(&'a AtomicUsize);

impl<'a> Active<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One run of a client.
pub(crate) struct Client {
    pub(crate) number: usize,
    pub(crate) id: ClientId,
    /// Whether it proves itself as a server does: those may cut, remove and replace.
    pub(crate) is_server: bool,
    pub(crate) chunks: ChunkClient,
    pub(crate) workload: Arc<Workload>,
    pub(crate) env: Env,
}

impl Client {
    /// One operation after the other, until there are enough. One worker only reads: the others may wait
    /// for long until they can write.
    pub(crate) async fn work(self: Arc<Self>, only_reads: bool) {
        let think = self.workload.options.think;
        while self.workload.goes_on() {
            self.env.sleep(think.mul_f64(self.env.random_below(2000) as f64 / 1000.0)).await;
            if !self.workload.goes_on() {
                return;
            }
            let chunk = self.env.random_below(self.workload.options.chunks as u64) as usize;
            let kind = self.choose(only_reads);
            let seconds = [1, 3, 8, 40][self.env.random_below(4) as usize];
            let seconds = if only_reads { seconds.min(3) } else { seconds };
            let deadline = self.env.deadline_after(Duration::from_secs(seconds));
            if !self.perform(chunk, kind, deadline).await {
                self.env.sleep(PAUSE).await;
            }
        }
    }

    fn choose(&self, only_reads: bool) -> Kind {
        let below = |bound: u32| self.env.random_below(u64::from(bound)) as u32;
        let length_max = [64, 512, 4096, 4096, 12_288, CHUNK_BYTES][below(6) as usize];
        let aligned = below(4) == 0;
        let round = |n: u32| if aligned { n.next_multiple_of(4096) } else { n };
        let length = round(1 + below(length_max)).min(CHUNK_BYTES);
        let room = CHUNK_BYTES - length;
        let offset = [0, below(room + 1), below(room.min(16_384) + 1)][below(3) as usize];
        let offset = if aligned { offset / 4096 * 4096 } else { offset };
        if only_reads || below(100) < self.workload.options.reads {
            return match below(4) {
                0 => Kind::Read { offset, length },
                1 => Kind::Extents { offset, length },
                _ => Kind::Read { offset: 0, length: CHUNK_BYTES },
            };
        }
        match below(12) {
            0 if self.is_server => Kind::Truncate { length: below(CHUNK_BYTES) },
            1 if self.is_server => Kind::Remove,
            2 | 3 if self.is_server => Kind::Replace { length },
            4 | 5 => Kind::Zero { offset, length },
            _ => Kind::Write { offset, length },
        }
    }

    /// Makes one operation, and notes what came of it. Whether it was successful.
    pub(crate) async fn perform(&self, chunk: usize, kind: Kind, deadline: Deadline) -> bool {
        let Workload { history, active, log, .. } = &*self.workload;
        let _active = Active::new(active);
        let tag = history.begin(self.number, chunk, kind);
        note!(log, "client {} begins #{tag}: {kind:?} of chunk {chunk}", self.number);
        let outcome = self.attempt(tag, chunk, kind, deadline).await;
        match &outcome {
            Ok(Outcome::Saw(bytes)) => {
                note!(log, "client {} ends #{tag}: saw {} bytes", self.number, bytes.len());
            }
            other => note!(log, "client {} ends #{tag}: {other:?}", self.number),
        }
        let successful = outcome.is_ok();
        history.end(tag, outcome.unwrap_or(Outcome::Unknown));
        successful
    }

    async fn attempt(
        &self,
        tag: u32,
        chunk: usize,
        kind: Kind,
        deadline: Deadline,
    ) -> Result<Outcome> {
        let place = self.workload.place(chunk, &self.chunks.routing());
        let is_cut = matches!(kind, Kind::Truncate { .. } | Kind::Remove);
        let grants = Grants::new(self, chunk, place, is_cut);
        if let Kind::Read { offset, length } = kind {
            let buffer = Buffer::zeroed(length as usize);
            let (buffer, found) =
                self.chunks.read(&grants, place, offset, buffer, deadline).await?;
            return Ok(Outcome::Saw(buffer[..found].to_vec()));
        }
        if let Kind::Extents { offset, length } = kind {
            let found = self.chunks.extents(&grants, place, (offset, length), deadline).await?;
            return Ok(Outcome::Stored(found));
        }
        let (change, payload) = change_of(tag, kind);
        let epoch = grants.cut.unwrap_or(TruncateEpoch(0));
        self.workload.hints.expect(tag, place.chunk, likeness(&change, epoch));
        self.chunks.change(&grants, place, change, payload, deadline).await?;
        Ok(Outcome::Done)
    }
}

/// The change that a client asks for, with its bytes.
fn change_of(tag: u32, kind: Kind) -> (Change, Option<Bytes>) {
    match kind {
        Kind::Write { offset, length } => {
            let bytes = Bytes::copy_of(&bytes_of(tag, offset..offset + length));
            let checksums = grid_checksums(u64::from(offset), &bytes);
            (Change::Write { offset, checksums }, Some(bytes))
        }
        Kind::Replace { length } => {
            let bytes = Bytes::copy_of(&bytes_of(tag, 0..length));
            (Change::Replace { checksums: grid_checksums(0, &bytes) }, Some(bytes))
        }
        Kind::Zero { offset, length } => (Change::Zero { offset, length }, None),
        Kind::Truncate { length } => (Change::Truncate { length }, None),
        Kind::Remove | Kind::Read { .. } | Kind::Extents { .. } => (Change::Remove, None),
    }
}

/// The rights to one chunk, as the metadata service would grant them.
struct Grants<'a> {
    client: &'a Client,
    chunk: usize,
    inode: InodeId,
    /// The epoch of a truncation or removal.
    cut: Option<TruncateEpoch>,
    current: Mutex<Option<(Monotonic, Granted)>>,
}

impl<'a> Grants<'a> {
    fn new(client: &'a Client, chunk: usize, place: Place, is_cut: bool) -> Self {
        let (_, inode, _) = place.chunk.as_file().unwrap_or((TreeId::MAIN, InodeId(0), 0));
        // A cut takes an epoch of its own, and writers the one above it.
        let epoch = &client.workload.epochs[chunk];
        let cut = is_cut.then(|| TruncateEpoch(epoch.fetch_add(2, Ordering::Relaxed) + 1));
        Self { client, chunk, inode, cut, current: Mutex::default() }
    }

    fn fetch(&self) -> Granted {
        let Client { workload, is_server, id, .. } = self.client;
        let newest = TruncateEpoch(workload.epochs[self.chunk].load(Ordering::Relaxed));
        let epoch = self.cut.unwrap_or(newest);
        let expires = workload.ground.wall().0 + GRANTED.as_nanos() as i64;
        let capability = Capability {
            key: workload.key.id(),
            client: *id,
            tree: TreeId::MAIN,
            inode: self.inode,
            epoch,
            read: true,
            write: true,
            size_granted: 1 << 40,
            expires: Timestamp(expires),
        };
        let capability = if *is_server { Vec::new() } else { capability.mint(&workload.key) };
        Granted { capability: capability.into(), epoch, floor: TruncateEpoch(0) }
    }
}

#[async_trait]
impl Grant for Grants<'_> {
    async fn current(&self, _index: u64) -> Result<Granted> {
        let now = self.client.env.now();
        let mut current = self.current.lock();
        match &*current {
            Some((since, granted)) if now.since(*since) < GRANT_AGE_MAX => Ok(granted.clone()),
            _ => {
                let granted = self.fetch();
                *current = Some((now, granted.clone()));
                Ok(granted)
            }
        }
    }

    async fn renew(&self) -> Result<()> {
        if self.cut.is_some() {
            return Err(Error::new(Code::StaleEpoch, "the cut was overtaken"));
        }
        *self.current.lock() = None;
        Ok(())
    }
}
