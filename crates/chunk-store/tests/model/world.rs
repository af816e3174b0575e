//! One simulated life of a store: random operations, faults and reboots, each compared with the
//! reference.

use crate::reference::{Alternative, Channel, Key, Op, Reference, RetryChange};
use crate::sync::copy_of;
use kiln_chunk_store::{Change, ChunkCopy, Identity, Options, Store, Update};
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

/// A defect that the test has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    Nothing,
    /// The disk ignores syncs.
    DeafDisk,
    /// The store does not sync before it answers.
    SkippedSync,
}

pub(crate) const TARGETS: [TargetId; 2] = [TargetId(1), TargetId(2)];
pub(crate) const BLOCK: u32 = 4096;

/// How a seed lives; printed with a failure.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) disk_bytes: u64,
    pub(crate) room_bytes: Option<u64>,
    pub(crate) chunks: u64,
    pub(crate) chunk_bytes: u32,
    pub(crate) small_writes: bool,
    pub(crate) rounds: u32,
    pub(crate) faults: bool,
    pub(crate) expiry: bool,
    pub(crate) options: Options,
}

pub(crate) struct World {
    pub(crate) env: Env,
    pub(crate) life: Life,
    pub(crate) planted: Planted,
    pub(crate) disk: Arc<SimulatedDisk>,
    pub(crate) store: Arc<Store>,
    pub(crate) model: Reference,
    /// Commits that no durable answer has followed yet.
    pub(crate) unsettled: BTreeSet<Key>,
    pub(crate) versions: u64,
    pub(crate) sequences: BTreeMap<Channel, u64>,
    pub(crate) armed: bool,
    pub(crate) refusals: u64,
    pub(crate) reboots: u64,
    pub(crate) damages: u64,
}

/// What a task of a round was and how it ended.
struct Done {
    key: Key,
    op: Op,
    result: Result<(), Error>,
}

pub(crate) fn chunk_id(index: u64) -> ChunkId {
    ChunkId::file(TreeId(0), InodeId(1 + index / 4), index % 4)
}

pub(crate) fn checksums(offset: u32, bytes: &[u8]) -> Vec<u32> {
    let first = ((BLOCK - offset % BLOCK) as usize).min(bytes.len());
    let (head, rest) = bytes.split_at(first);
    let head = [head].into_iter().filter(|head| !head.is_empty());
    head.chain(rest.chunks(BLOCK as usize)).map(crc32c).collect()
}

pub(crate) fn lost(code: Code) -> bool {
    matches!(code, Code::DiskFailed | Code::Cancelled)
}

impl Life {
    pub(crate) fn draw(env: &Env, planted: Planted) -> Self {
        let one_of = |n| env.random_below(n) == 0;
        let disk_bytes = (4 + env.random_below(7)) << 20;
        // Some lives are long and small: the log is cleaned again and again.
        let churn = one_of(4);
        let chunk_bytes = if one_of(8) { 4 << 20 } else { 64 << 10 << env.random_below(5) };
        let options = Options {
            cache_bytes: if one_of(2) { 1 << 20 } else { 3000 },
            log_slack_bytes: if churn { 0 } else { env.random_below(3) * (200 << 10) },
            tombstone_retention: Duration::from_millis(if one_of(2) { 20 } else { 1 << 40 }),
            reserve_bytes: 128 << 10,
            discard: !one_of(3),
            skip_sync: planted == Planted::SkippedSync,
        };
        Self {
            disk_bytes,
            room_bytes: one_of(4).then(|| disk_bytes * 3 / 4),
            chunks: 2 + env.random_below(if churn { 4 } else { 14 }),
            chunk_bytes,
            small_writes: churn || !one_of(3),
            rounds: 10 + env.random_below(if churn { 300 } else { 50 }) as u32,
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
            damages: 0,
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
                95..97 => self.sync_retries().await?,
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
    pub(crate) fn trace(&self, words: impl FnOnce() -> String) {
        if std::env::var("KILN_SEED").is_ok() && std::env::var("KILN_SEEDS").is_err() {
            println!("{:?} {}", self.env.now(), words());
        }
    }

    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.env.random_below(bound)
    }

    pub(crate) fn next_version(&mut self) -> ChunkVersion {
        self.versions += 1;
        ChunkVersion { chain: ChainVersion(1 + self.versions / 64), counter: self.versions }
    }

    // ---- operations ----

    pub(crate) fn random_bytes(&self, length: u32) -> Bytes {
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
        match self.below(18) {
            16..=17 => Change::Zero { offset, length },
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
        match self.below(12) {
            0..=1 => return Op::Install(Box::new(self.random_install(key))),
            2 => return Op::Repair,
            _ => {}
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
            let known = self.model.chunk(key).committed.as_ref().map(copy_of);
            let known = known.unwrap_or(ChunkCopy {
                version: ChunkVersion { chain: ChainVersion(0), counter: 1 },
                epoch: TruncateEpoch(0),
                content: None,
            });
            let (store, env, delay) = (Arc::clone(&self.store), self.env.clone(), self.below(400));
            tasks.push(self.env.spawn("operation", async move {
                env.sleep(Duration::from_micros(delay)).await;
                let result = match op.clone() {
                    Op::Prepare(update) => store.prepare(key.0, *update).await,
                    Op::Commit(version) => store.commit(key.0, key.1, version).await,
                    Op::Discard(version) => store.discard(key.0, key.1, version).await,
                    Op::Install(install) => store.install(key.0, *install).await,
                    Op::Repair => store.repair(key.0, key.1, known).await,
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
            Op::Install(install) => chunk.judge_install(install).is_ok(),
            Op::Repair => chunk.judge_repair() == Ok(true),
        }
    }

    pub(crate) fn pull_the_plug(&self) -> Arc<SimulatedDisk> {
        if self.below(3) == 0 { self.disk.kill() } else { self.disk.power_loss() }
    }

    /// A tombstone may have been dropped before the store judged the change, which it says by
    /// taking what the tombstone forbids.
    fn expire(&mut self, key: Key, op: &Op, result: &Result<(), Error>) {
        let mut chunk = self.model.chunk(key);
        let is_tombstone = chunk.committed.as_ref().is_some_and(|version| version.stat.removed);
        // A full disk refuses what was judged already.
        let taken = result.as_ref().map_or_else(|error| error.code() == Code::NoSpace, |()| true);
        let differs = match op {
            Op::Prepare(update) => taken && chunk.judge(update).is_err(),
            Op::Install(install) if chunk.judge_install(install).is_err() => taken,
            Op::Repair if chunk.judge_repair().is_err() => false,
            Op::Install(_) | Op::Repair => {
                result.as_ref().is_err_and(|e| e.code() == Code::VersionMismatch)
            }
            Op::Commit(_) | Op::Discard(_) => false,
        };
        if self.life.expiry && is_tombstone && differs {
            chunk.committed = None;
            self.model.chunks.insert(key, chunk);
        }
    }

    /// Takes an answer into the reference.
    fn judge(&mut self, done: Done, crash: bool) -> Outcome {
        let Done { key, op, result } = done;
        self.expire(key, &op, &result);
        self.trace(|| format!("{key:?} {op:?} -> {result:?}, crash {crash}"));
        let before = self.model.chunk(key);
        let after = self.model.after(key, &op);
        let expected = match &op {
            Op::Prepare(update) => before.judge(update),
            Op::Commit(_) | Op::Discard(_) => Ok(true),
            Op::Install(install) => before.judge_install(install),
            Op::Repair => before.judge_repair(),
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
                let drops = matches!(&op, Op::Install(install)
                    if install.copy.as_ref().is_none_or(|copy| copy.content.is_none()));
                let makes_space = removal || drops || matches!(op, Op::Discard(_));
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
                    crate::checks::brief(&before)
                ));
            }
        }
        Ok(())
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
