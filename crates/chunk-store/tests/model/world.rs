//! One simulated life of a store: random operations, faults and reboots, each compared with the reference.

use crate::reference::{Alternative, Channel, Chunk, Key, Op, Reference, RetryChange, Version};
use kiln_chunk_store::{Change, Identity, Options, RetryRecord, Store, Update, VersionStat, Which};
use kiln_disk::{Disk, Fault, SimulatedDisk};
use kiln_env::Env;
use kiln_memory::{Bytes, Pool};
use kiln_types::{
    ChainId, ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, ClusterId, Code, DiskId,
    Error, InodeId, RetryKey, Sequence, TargetId, TreeId, TruncateEpoch, crc32c,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A violation, in words.
pub(crate) type Outcome<T = ()> = Result<T, String>;

macro_rules! ensure {
    ($holds:expr, $($words:tt)*) => {
        if !$holds {
            return Err(format!($($words)*));
        }
    };
}

/// A defect that the test has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    Nothing,
    /// The disk ignores syncs.
    DeafDisk,
    /// The store does not sync before it answers.
    SkippedSync,
}

const TARGETS: [TargetId; 2] = [TargetId(1), TargetId(2)];
const BLOCK: u32 = 4096;

/// How a seed lives; printed with a failure.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    disk_bytes: u64,
    room_bytes: Option<u64>,
    chunks: u64,
    chunk_bytes: u32,
    small_writes: bool,
    rounds: u32,
    faults: bool,
    expiry: bool,
    options: Options,
}

pub(crate) struct World {
    env: Env,
    pub(crate) life: Life,
    planted: Planted,
    disk: Arc<SimulatedDisk>,
    store: Arc<Store>,
    model: Reference,
    /// Commits that no durable answer has followed yet.
    unsettled: BTreeSet<Key>,
    versions: u64,
    sequences: BTreeMap<Channel, u64>,
    armed: bool,
    pub(crate) refusals: u64,
    pub(crate) reboots: u64,
}

/// What a task of a round was and how it ended.
struct Done {
    key: Key,
    op: Op,
    result: Result<(), Error>,
}

fn chunk_id(index: u64) -> ChunkId {
    ChunkId::file(TreeId(0), InodeId(1 + index / 4), index % 4)
}

pub(crate) fn checksums(offset: u32, bytes: &[u8]) -> Vec<u32> {
    let first = ((BLOCK - offset % BLOCK) as usize).min(bytes.len());
    let (head, rest) = bytes.split_at(first);
    let head = [head].into_iter().filter(|head| !head.is_empty());
    head.chain(rest.chunks(BLOCK as usize)).map(crc32c).collect()
}

fn lost(code: Code) -> bool {
    matches!(code, Code::DiskFailed | Code::Cancelled)
}

impl Life {
    pub(crate) fn draw(env: &Env, planted: Planted) -> Self {
        let one_of = |n| env.random_below(n) == 0;
        let disk_bytes = (4 + env.random_below(7)) << 20;
        let chunk_bytes = if one_of(8) { 4 << 20 } else { 64 << 10 << env.random_below(5) };
        let options = Options {
            cache_bytes: if one_of(2) { 1 << 20 } else { 3000 },
            log_slack_bytes: env.random_below(3) * (200 << 10),
            tombstone_retention: Duration::from_millis(if one_of(2) { 20 } else { 1 << 40 }),
            reserve_bytes: 128 << 10,
            discard: !one_of(3),
            skip_sync: planted == Planted::SkippedSync,
        };
        Self {
            disk_bytes,
            room_bytes: one_of(4).then(|| disk_bytes * 3 / 4),
            chunks: 2 + env.random_below(14),
            chunk_bytes,
            small_writes: !one_of(3),
            rounds: 10 + env.random_below(50) as u32,
            faults: one_of(2),
            expiry: options.tombstone_retention < Duration::from_secs(1),
            options,
        }
    }
}

impl World {
    pub(crate) async fn begin(env: Env, planted: Planted) -> Outcome<Self> {
        let life = Life::draw(&env, planted);
        let disk = SimulatedDisk::new(env.clone(), life.disk_bytes);
        let device: Arc<dyn Disk> = Arc::clone(&disk) as _;
        let identity = Identity { disk: DiskId(env.random_u128()), cluster: ClusterId(1) };
        let text = |error: Error| format!("begin: {error:?}");
        Store::format(&device, identity).await.map_err(text)?;
        let options = life.options.clone();
        let pool = Pool::new(4 << 20);
        let store = Store::open(device, env.clone(), pool, options).await.map_err(text)?;
        for target in TARGETS {
            store.create_target(target, ChainId(target.0), vec![0]).await.map_err(text)?;
        }
        disk.ignore_syncs(planted == Planted::DeafDisk);
        if let Some(room) = life.room_bytes {
            disk.set_physical_capacity(room);
        }
        Ok(Self {
            env,
            life,
            planted,
            disk,
            store,
            model: Reference::default(),
            unsettled: BTreeSet::new(),
            versions: 0,
            sequences: BTreeMap::new(),
            armed: false,
            refusals: 0,
            reboots: 0,
        })
    }

    pub(crate) async fn live(&mut self) -> Outcome {
        for _ in 0..self.life.rounds {
            match self.env.random_below(100) {
                0..70 => self.round(false).await?,
                70..82 => self.round(true).await?,
                82..86 => self.restart().await?,
                86..89 => self.flip_and_read().await?,
                89..91 => self.flip_and_open().await?,
                91..93 => self.forget().await?,
                93..95 => self.replace_target().await?,
                _ => {
                    let pause = self.env.random_below(3000);
                    self.env.sleep(Duration::from_millis(pause)).await;
                }
            }
        }
        self.restart().await?;
        self.empty_out().await
    }

    /// Tells what happens when a single seed is run.
    fn trace(&self, words: impl FnOnce() -> String) {
        if std::env::var("KILN_SEED").is_ok() {
            println!("{:?} {}", self.env.now(), words());
        }
    }

    fn below(&self, bound: u64) -> u64 {
        self.env.random_below(bound)
    }

    fn next_version(&mut self) -> ChunkVersion {
        self.versions += 1;
        ChunkVersion { chain: ChainVersion(1 + self.versions / 64), counter: self.versions }
    }

    // ---- operations ----

    fn random_bytes(&self, length: u32) -> Bytes {
        let seed = self.env.random_u64();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bytes = kiln_memory::Buffer::zeroed(length as usize);
        random.fill(&mut bytes);
        let bytes = bytes.freeze();
        // Sometimes memory that direct I/O cannot take.
        if seed.is_multiple_of(4) && length > 0 {
            let mut shifted = kiln_memory::Buffer::zeroed(length as usize + 8);
            shifted[8..].copy_from_slice(&bytes);
            return shifted.freeze().slice(8..8 + length as usize);
        }
        bytes
    }

    fn random_change(&self) -> Change {
        let limit = u64::from(self.life.chunk_bytes);
        let size = if self.life.small_writes { 40_000 } else { limit };
        let mut offset = self.below(limit) as u32;
        let mut length = (1 + self.below(size.min(limit - u64::from(offset)))) as u32;
        if self.below(2) == 0 {
            offset -= offset % BLOCK;
            length = length.next_multiple_of(BLOCK).min(self.life.chunk_bytes - offset);
        }
        match self.below(16) {
            0..=10 => {
                let bytes = self.random_bytes(length);
                Change::Write { offset, checksums: checksums(offset, &bytes), bytes }
            }
            11..=12 => Change::Truncate { length: offset },
            13 => Change::Replace { bytes: Bytes::empty(), checksums: Vec::new() },
            14 => {
                let bytes = self.random_bytes(length);
                Change::Replace { checksums: checksums(0, &bytes), bytes }
            }
            _ => Change::Remove,
        }
    }

    fn random_retry(&mut self, target: TargetId, used: &mut BTreeSet<Channel>) -> Option<RetryKey> {
        let client = ClientId(u128::from(self.below(3)));
        let channel = ChannelId(self.below(2) as u32);
        let slot = (target, client, channel);
        if self.below(3) == 0 || !used.insert(slot) {
            return None;
        }
        let sequence = self.sequences.entry(slot).or_default();
        *sequence += 1;
        Some(RetryKey { client, channel, sequence: Sequence(*sequence) })
    }

    fn random_op(&mut self, key: Key, used: &mut BTreeSet<Channel>) -> Op {
        let chunk = self.model.chunk(key);
        if let Some(pending) = &chunk.pending {
            let version = pending.stat.version;
            match self.below(8) {
                0..=3 => return Op::Commit(version),
                4..=5 => return Op::Discard(version),
                _ => {}
            }
        }
        let epoch = chunk.committed.as_ref().map_or(0, |version| version.stat.epoch.0);
        let epoch = match self.below(20) {
            0 => epoch + 1,
            1 => epoch.saturating_sub(1),
            _ => epoch,
        };
        let floor = if self.below(16) == 0 { epoch } else { epoch.min(1) };
        let wrong = self.below(30) == 0;
        let version = self.next_version();
        Op::Prepare(Box::new(Update {
            chunk: key.1,
            version: match (&chunk.pending, self.below(4)) {
                (Some(pending), 0) => pending.stat.version,
                _ => version,
            },
            previous: if wrong { version } else { chunk.base() },
            epoch: TruncateEpoch(epoch),
            floor: TruncateEpoch(floor),
            chunk_bytes: self.life.chunk_bytes,
            change: self.random_change(),
            retry: self.random_retry(key.0, used),
            commit: self.below(2) == 0,
        }))
    }

    /// A few operations at once, on chunks of their own; sometimes the power goes meanwhile.
    async fn round(&mut self, crash: bool) -> Outcome {
        let mut keys = BTreeSet::new();
        for _ in 0..1 + self.below(7) {
            let target = TARGETS[self.below(2) as usize];
            keys.insert((target, chunk_id(self.below(self.life.chunks))));
        }
        if self.life.faults && self.below(10) == 0 {
            let fault = [Fault::Read, Fault::Write, Fault::Sync][self.below(3) as usize];
            self.disk.fail_next(fault, self.below(12));
            self.armed = true;
        }
        let mut used = BTreeSet::new();
        let mut tasks = Vec::new();
        for key in keys {
            let op = self.random_op(key, &mut used);
            let (store, env, delay) = (Arc::clone(&self.store), self.env.clone(), self.below(400));
            tasks.push(self.env.spawn("operation", async move {
                env.sleep(Duration::from_micros(delay)).await;
                let result = match op.clone() {
                    Op::Prepare(update) => store.prepare(key.0, *update).await,
                    Op::Commit(version) => store.commit(key.0, key.1, version).await,
                    Op::Discard(version) => store.discard(key.0, key.1, version).await,
                };
                Done { key, op, result }
            }));
        }
        let mut next = None;
        if crash {
            self.env.sleep(Duration::from_micros(self.below(2500))).await;
            next = Some(self.pull_the_plug());
        }
        let mut ended = Vec::new();
        for task in tasks {
            ended.push(task.join().await.map_err(|error| format!("{error:?}"))?);
        }
        if ended.iter().any(|done| done.result.is_ok() && self.writes(done)) {
            // A batch was written and synced after the commits of earlier rounds.
            self.unsettled.clear();
        }
        let failed = |done: &Done| done.result.as_ref().is_err_and(|error| lost(error.code()));
        let failed = ended.iter().any(failed);
        ended.into_iter().try_for_each(|done| self.judge(done, crash))?;
        match next {
            Some(disk) => self.reboot(disk).await,
            None if failed => {
                let disk = self.pull_the_plug();
                self.reboot(disk).await
            }
            None => self.check_some().await,
        }
    }

    /// Whether an answer says that a batch was written.
    fn writes(&self, done: &Done) -> bool {
        let chunk = self.model.chunk(done.key);
        match &done.op {
            Op::Prepare(update) => chunk.judge(update) == Ok(true),
            Op::Commit(_) => false,
            Op::Discard(_) => chunk.pending.is_some(),
        }
    }

    fn pull_the_plug(&self) -> Arc<SimulatedDisk> {
        if self.below(3) == 0 { self.disk.kill() } else { self.disk.power_loss() }
    }

    /// Takes an answer into the reference.
    fn judge(&mut self, done: Done, crash: bool) -> Outcome {
        let Done { key, op, result } = done;
        self.trace(|| format!("{key:?} {op:?} -> {result:?}, crash {crash}"));
        let before = self.model.chunk(key);
        let after = self.model.after(key, &op);
        let expected = match &op {
            Op::Prepare(update) => before.judge(update),
            Op::Commit(_) | Op::Discard(_) => Ok(true),
        };
        let kept = Alternative { chunk: before.clone(), retry: RetryChange::Nothing };
        match (result.map_err(|error| error.code()), expected) {
            (Ok(()), Ok(_)) => {
                if matches!(op, Op::Commit(_)) && before.pending.is_some() {
                    // A later crash may find it pending again.
                    self.unsettled.insert(key);
                    self.model.alternatives.insert(key, vec![kept]);
                } else if !matches!(op, Op::Commit(_)) {
                    self.unsettled.remove(&key);
                }
                self.model.take(key, after);
            }
            (Err(code), Err(wanted)) if code == wanted => {}
            (Err(Code::NoSpace), Ok(true)) => {
                self.refusals += 1;
                let removal = matches!(&op, Op::Prepare(u) if matches!(u.change, Change::Remove));
                let makes_space = removal || matches!(op, Op::Discard(_));
                ensure!(!makes_space, "a full disk refuses {op:?} of {key:?}");
            }
            (Err(code), _) if lost(code) && (crash || self.armed) => {
                let known = self.model.alternatives.remove(&key);
                let mut known = known.filter(|_| self.unsettled.contains(&key)).unwrap_or_default();
                known.push(after);
                self.model.alternatives.insert(key, known);
                self.unsettled.insert(key);
            }
            (result, expected) => {
                return Err(format!(
                    "{op:?} of {key:?} {} gave {result:?}, not {expected:?}",
                    brief(&before)
                ));
            }
        }
        Ok(())
    }

    // ---- checks ----

    /// Both versions of a chunk as the store shows them.
    async fn observe(&self, key: Key) -> Result<Chunk, Error> {
        let stat = self.store.stat(key.0, key.1).await?;
        Ok(Chunk {
            committed: self.read_whole(key, stat.committed).await?,
            pending: self.read_whole(key, stat.pending).await?,
        })
    }

    async fn read_whole(
        &self,
        key: Key,
        stat: Option<VersionStat>,
    ) -> Result<Option<Version>, Error> {
        let Some(stat) = stat else { return Ok(None) };
        if stat.removed {
            return Ok(Some(Version { stat, bytes: Arc::default() }));
        }
        let which = Which::Version(stat.version);
        let read = self.store.read(key.0, key.1, which, 0, u32::MAX, TruncateEpoch(0)).await?;
        let right = read.checksums == checksums(0, &read.bytes)
            && (read.version, read.epoch, read.chunk_length)
                == (stat.version, stat.epoch, stat.length);
        if !right {
            return Err(Error::internal(format!("{key:?}: the answer contradicts itself")));
        }
        Ok(Some(Version { stat, bytes: Arc::new(read.bytes.to_vec()) }))
    }

    /// Whether a chunk is as expected; a tombstone may have been dropped.
    fn matches(&self, expected: &Chunk, found: &Chunk) -> bool {
        let gone = |version: &Option<Version>| {
            version.as_ref().is_none_or(|version| version.stat.removed && self.life.expiry)
        };
        expected.pending == found.pending
            && (expected.committed == found.committed
                || found.committed.is_none() && gone(&expected.committed))
    }

    async fn check_some(&mut self) -> Outcome {
        let keys: Vec<Key> = self.model.chunks.keys().copied().collect();
        if keys.is_empty() {
            return Ok(());
        }
        let key = keys[self.below(keys.len() as u64) as usize];
        self.check_chunk(key).await?;
        let expected = self.model.chunk(key);
        let Some(version) = expected.committed.filter(|version| !version.stat.removed) else {
            return Ok(());
        };
        let (offset, length) = (self.below(1 << 20) as u32, self.below(50_000) as u32);
        let read =
            self.store.read(key.0, key.1, Which::Committed, offset, length, TruncateEpoch(0));
        let read = match read.await {
            Err(error) if self.armed && lost(error.code()) => return Ok(()),
            read => read.map_err(|error| format!("read of {key:?}: {error:?}"))?,
        };
        let from = (offset as usize).min(version.bytes.len());
        let to = (from + length as usize).min(version.bytes.len());
        ensure!(*read.bytes == version.bytes[from..to], "{key:?}: wrong bytes {from}..{to}");
        ensure!(read.checksums == checksums(offset, &read.bytes), "{key:?}: wrong checksums");
        Ok(())
    }

    async fn check_chunk(&mut self, key: Key) -> Outcome {
        let found = match self.observe(key).await {
            Err(error) if self.armed && lost(error.code()) => return Ok(()),
            found => found.map_err(|error| format!("{key:?}: {error:?}"))?,
        };
        let expected = self.model.chunk(key);
        ensure!(
            self.matches(&expected, &found),
            "{key:?} is {} instead of {}",
            brief(&found),
            brief(&expected)
        );
        if found.committed.is_none() {
            self.model.chunks.entry(key).or_default().committed = None;
        }
        Ok(())
    }

    async fn check_all(&mut self) -> Outcome {
        for target in TARGETS {
            for index in 0..self.life.chunks {
                self.check_chunk((target, chunk_id(index))).await?;
            }
            let list = self.store.list(target, ChunkId::MIN, ChunkId::MAX, 1000).await;
            let list = list.map_err(|error| format!("list: {error:?}"))?;
            ensure!(list.is_sorted_by_key(|(chunk, _)| *chunk), "the list is not in order");
            for (chunk, stat) in &list {
                let known = self.model.chunk((target, *chunk));
                let expected = (known.committed.map(|v| v.stat), known.pending.map(|v| v.stat));
                let removed = stat.committed.is_some_and(|version| version.removed);
                let same = (stat.committed, stat.pending) == expected;
                ensure!(same || removed && self.life.expiry, "{chunk}: listed as {stat:?}");
            }
            let known = |chunk: &Chunk| !self.matches(chunk, &Chunk::default());
            let listed: BTreeSet<ChunkId> = list.iter().map(|(chunk, _)| *chunk).collect();
            for (key, chunk) in self.model.chunks.iter().filter(|(key, _)| key.0 == target) {
                ensure!(!known(chunk) || listed.contains(&key.1), "{key:?} is not listed");
            }
            let (max, floor) =
                (self.store.version_max(target), self.model.version_max.get(&target));
            ensure!(Some(&max) >= floor, "version_max of {target} went back to {max}");
        }
        self.check_retries()?;
        let usage = self.store.usage();
        let verified = self.store.verify().await.map_err(|error| format!("verify: {error:?}"))?;
        ensure!(verified.is_clean(), "verify: {verified:?} {usage:?}");
        Ok(())
    }

    fn check_retries(&self) -> Outcome {
        for target in TARGETS {
            for (client, channel) in (0..3).flat_map(|c| (0..2).map(move |h| (c, h))) {
                let (client, channel) = (ClientId(client), ChannelId(channel));
                let found = self.store.retry_record(target, client, channel);
                let expected = self.model.retries.get(&(target, client, channel));
                let expected = expected.map(|(key, chunk, version)| RetryRecord {
                    key: *key,
                    chunk: *chunk,
                    version: *version,
                });
                ensure!(found == expected, "retry record {found:?} instead of {expected:?}");
            }
        }
        Ok(())
    }

    // ---- reboots ----

    async fn open(&mut self) -> Result<(), Error> {
        let device: Arc<dyn Disk> = Arc::clone(&self.disk) as _;
        let (env, pool) = (self.env.clone(), Pool::new(4 << 20));
        self.store = Store::open(device, env, pool, self.life.options.clone()).await?;
        Ok(())
    }

    /// Opens the store on what a crash left, and finds out what became of unanswered operations.
    async fn reboot(&mut self, disk: Arc<SimulatedDisk>) -> Outcome {
        self.reboots += 1;
        self.trace(|| "reboot".into());
        self.disk = disk;
        self.open_again().await?;
        self.disk.ignore_syncs(self.planted == Planted::DeafDisk);
        let alternatives = std::mem::take(&mut self.model.alternatives);
        let unsettled = std::mem::take(&mut self.unsettled);
        for (key, alternatives) in alternatives {
            if !unsettled.contains(&key) {
                continue;
            }
            let mut found = self.observe(key).await;
            while self.armed && found.as_ref().is_err_and(|error| lost(error.code())) {
                found = self.observe(key).await;
            }
            let found = found.map_err(|error| format!("{key:?}: {error:?}"))?;
            if self.matches(&self.model.chunk(key), &found) {
                continue;
            }
            let words = brief(&self.model.chunk(key));
            let other: Vec<String> = alternatives.iter().map(|a| brief(&a.chunk)).collect();
            let which = alternatives.into_iter().find(|a| self.matches(&a.chunk, &found));
            let Some(which) = which else {
                return Err(format!(
                    "{key:?} is {} after a crash, instead of {words} or {other:?}",
                    brief(&found)
                ));
            };
            self.model.take(key, which);
        }
        self.check_after_open().await
    }

    async fn check_after_open(&mut self) -> Outcome {
        for tries in 0.. {
            match self.check_all().await {
                // An armed fault struck: it does so once.
                Err(words) if self.armed && words.contains("DiskFailed") && tries < 8 => {
                    self.disk = self.pull_the_plug();
                    self.open_again().await?;
                }
                result => return result,
            }
        }
        Ok(())
    }

    async fn open_again(&mut self) -> Outcome {
        for tries in 0.. {
            match self.open().await {
                Ok(()) => break,
                Err(error) if self.armed && lost(error.code()) && tries < 8 => {
                    self.disk = self.pull_the_plug();
                }
                Err(error) => return Err(format!("open: {error:?}")),
            }
        }
        Ok(())
    }

    /// Closes and opens: everything must be as it was.
    async fn restart(&mut self) -> Outcome {
        match self.store.close().await {
            Ok(()) => {
                self.model.alternatives.clear();
                self.unsettled.clear();
            }
            Err(error) if lost(error.code()) && self.armed || error.code() == Code::NoSpace => {}
            Err(error) => return Err(format!("close: {error:?}")),
        }
        let disk = if self.below(2) == 0 { self.disk.kill() } else { self.disk.power_loss() };
        self.reboot(disk).await
    }

    // ---- decay ----

    /// Waits until nothing is written any more.
    async fn settle(&self) {
        self.env.sleep(Duration::from_secs(5)).await;
    }

    fn random_bit(&self) -> (u64, u8) {
        // The beginning of the disk is where most of its content is.
        let bound = self.life.disk_bytes >> self.below(3);
        (self.below(bound), self.below(8) as u8)
    }

    /// A flipped bit gives an error or does not matter; it never gives wrong data.
    async fn flip_and_read(&mut self) -> Outcome {
        self.settle().await;
        let (offset, bit) = self.random_bit();
        self.disk.flip_bit(offset, bit);
        for key in self.model.chunks.keys().copied().collect::<Vec<_>>() {
            match self.observe(key).await {
                Ok(found) => {
                    let expected = self.model.chunk(key);
                    ensure!(self.matches(&expected, &found), "{key:?} changed with a flipped bit");
                }
                Err(error) => {
                    let told = matches!(error.code(), Code::ChecksumMismatch | Code::Corrupt);
                    ensure!(told || self.armed, "{key:?}: {error:?} for a flipped bit");
                }
            }
        }
        self.disk.flip_bit(offset, bit);
        Ok(())
    }

    /// The block with the byte `offset`, as it is on the disk.
    async fn raw(&self, offset: u64) -> Outcome<Vec<u8>> {
        let buffer = kiln_memory::Buffer::zeroed(BLOCK as usize);
        let read = self.disk.read(offset / 4096 * 4096, buffer).await;
        read.map(|block| block.to_vec()).map_err(|error| format!("raw: {error:?}"))
    }

    /// A flipped bit may keep a store from opening; it never opens with less than was acknowledged.
    async fn flip_and_open(&mut self) -> Outcome {
        self.settle().await;
        if self.armed {
            return Ok(());
        }
        let (offset, bit) = self.random_bit();
        self.store.close().await.map_err(|error| format!("close: {error:?}"))?;
        self.model.alternatives.clear();
        self.unsettled.clear();
        self.disk = self.disk.kill();
        self.disk.flip_bit(offset, bit);
        let flipped = self.raw(offset).await?;
        match self.open().await {
            Ok(()) => {
                for key in self.model.chunks.keys().copied().collect::<Vec<_>>() {
                    let Ok(found) = self.observe(key).await else { continue };
                    let expected = self.model.chunk(key);
                    ensure!(
                        self.matches(&expected, &found),
                        "{key:?} is {} instead of {} after a flipped bit",
                        brief(&found),
                        brief(&expected)
                    );
                }
                self.settle().await;
                let _ = self.store.close().await;
            }
            Err(error) => {
                ensure!(error.code() == Code::Corrupt, "open with a flipped bit: {error:?}");
            }
        }
        self.disk = self.disk.kill();
        if self.raw(offset).await? == flipped {
            // Else the block was written anew meanwhile.
            self.disk.flip_bit(offset, bit);
        }
        self.open().await.map_err(|error| format!("open with the bit flipped back: {error:?}"))?;
        self.check_after_open().await
    }

    // ---- whole clients and targets ----

    async fn forget(&mut self) -> Outcome {
        let client = ClientId(u128::from(self.below(3)));
        self.trace(|| format!("forget {client}"));
        match self.store.forget_client(client).await {
            Ok(()) => {
                self.model.retries.retain(|channel, _| channel.1 != client);
                self.check_retries()
            }
            Err(error) if error.code() == Code::NoSpace => Ok(()),
            Err(error) if self.armed && lost(error.code()) => {
                // Whether it took effect is seen after the reboot.
                let disk = self.pull_the_plug();
                self.disk = disk;
                let kept = self.model.retries.clone();
                self.model.retries.retain(|channel, _| channel.1 != client);
                let disk = self.disk.kill();
                if self.reboot(disk.clone()).await.is_ok() {
                    return Ok(());
                }
                self.model.retries = kept;
                let disk = self.disk.kill();
                self.reboot(disk).await
            }
            Err(error) => Err(format!("forget_client: {error:?}")),
        }
    }

    async fn replace_target(&mut self) -> Outcome {
        let target = TARGETS[self.below(2) as usize];
        if self.armed || self.life.room_bytes.is_some() {
            return Ok(());
        }
        let text = |error: Error| format!("replace target: {error:?}");
        match self.store.remove_target(target).await {
            Err(error) if error.code() == Code::NoSpace => return Ok(()),
            removed => removed.map_err(text)?,
        }
        self.model.drop_target(target);
        self.unsettled.retain(|key| key.0 != target);
        self.store.create_target(target, ChainId(target.0), vec![1]).await.map_err(text)?;
        self.store.set_target_state(target, vec![2; 100]).await.map_err(text)?;
        self.check_after_open().await
    }

    /// All space comes back when everything is removed.
    async fn empty_out(&mut self) -> Outcome {
        for (key, chunk) in self.model.chunks.clone() {
            let version = self.next_version();
            if let Some(pending) = &chunk.pending {
                let discarded = self.store.discard(key.0, key.1, pending.stat.version).await;
                if discarded.is_err() && self.armed {
                    return Ok(());
                }
                discarded.map_err(|error| format!("last discard: {error:?}"))?;
            }
            let removed = self.store.prepare(
                key.0,
                Update {
                    chunk: key.1,
                    version,
                    previous: chunk.base(),
                    epoch: TruncateEpoch(1 << 40),
                    floor: TruncateEpoch(0),
                    chunk_bytes: self.life.chunk_bytes,
                    change: Change::Remove,
                    retry: None,
                    commit: true,
                },
            );
            match removed.await {
                Err(error) if self.armed && lost(error.code()) => return Ok(()),
                removed => removed.map_err(|error| format!("last remove: {error:?}"))?,
            }
        }
        self.settle().await;
        let usage = self.store.usage();
        ensure!(usage.targets.iter().all(|(_, used)| *used == 0), "not empty: {usage:?}");
        let verified = match self.store.verify().await {
            Err(error) if self.armed && lost(error.code()) => return Ok(()),
            verified => verified.map_err(|error| format!("last verify: {error:?}"))?,
        };
        ensure!(verified.is_clean(), "verify at the end: {verified:?}");
        Ok(())
    }
}

fn brief(chunk: &Chunk) -> String {
    let words = |version: &Option<Version>| match version {
        Some(version) if version.stat.removed => format!("{} removed", version.stat.version),
        Some(version) => format!(
            "{} of {} bytes crc {:08x} epoch {} retry {:?}",
            version.stat.version,
            version.bytes.len(),
            crc32c(&version.bytes),
            version.stat.epoch,
            version.stat.retry.map(|retry| retry.sequence)
        ),
        None => "none".into(),
    };
    format!("[committed {}, pending {}]", words(&chunk.committed), words(&chunk.pending))
}
