//! Flipped bits and lost stretches, anywhere on the disk of a closed store: whatever is read
//! afterwards is right or an error, and another replica's copy heals it.
//!
//! `KILN_SEED=n cargo test -p kiln-chunk-store --test rot -- --nocapture` flips other bits,
//! `KILN_FLIPS=n` sets how many of each kind.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{checksums, identity, version, write_at};
use kiln_chunk_store::{
    Change, ChunkCopy, Held, Install, Options, RetryRecord, Store, Update, Which,
};
use kiln_disk::{Disk, SimulatedDisk};
use kiln_env::{Env, Executor};
use kiln_memory::{Buffer, Bytes, Pool};
use kiln_types::{
    BLOCK_BYTES, ChainId, ChannelId, ChunkId, ChunkVersion, ClientId, Code, Error, RetryKey,
    Sequence, TargetId, TruncateEpoch,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const TARGETS: [TargetId; 2] = [TargetId(1), TargetId(2)];
const DISK_BYTES: u64 = 16 << 20;
/// Blocks of a zone on a disk of this size.
const ZONE: u64 = 64;
const EPOCH: TruncateEpoch = TruncateEpoch(0);

type Key = (TargetId, ChunkId);

/// What a chunk is: its version, and its content unless it is a tombstone.
type Known = (ChunkVersion, Option<Vec<u8>>);

/// A closed store, block by block, and what it holds.
#[derive(Clone)]
struct Image {
    blocks: BTreeMap<u64, Vec<u8>>,
    chunks: BTreeMap<Key, Known>,
    pending: BTreeMap<Key, ChunkVersion>,
    retries: BTreeMap<TargetId, Vec<RetryRecord>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Superblock,
    Log,
    Data,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    NothingNoticed,
    ChunkRepaired,
    TargetsFilledAnew,
    NotOpened,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

async fn open(disk: &Arc<SimulatedDisk>, env: &Env) -> Result<Arc<Store>, Error> {
    let disk: Arc<dyn Disk> = Arc::clone(disk) as _;
    // A small slack, so that the log has many segments and is cleaned.
    let options = Options { log_slack_bytes: 256 << 10, ..Options::default() };
    Store::open(disk, env.clone(), Pool::new(8 << 20), options).await
}

/// Random writes, overwrites, truncations and removals, of chunks of one part and of several.
async fn change_chunks(store: &Store, env: &Env, changes: u64, known: &mut BTreeMap<Key, Known>) {
    for number in 1..=changes {
        let target = TARGETS[env.random_below(2) as usize];
        let chunk = common::chunk(env.random_below(24));
        let (previous, mut bytes) = match known.get(&(target, chunk)) {
            Some((version, Some(bytes))) => (*version, bytes.clone()),
            _ => (ChunkVersion::NONE, Vec::new()),
        };
        let offset = env.random_below(if chunk < common::chunk(4) { 1_300_000 } else { 50_000 });
        let offset = offset as usize;
        let (change, removed) = match env.random_below(16) {
            0 => (Change::Remove, true),
            1..=2 => (Change::Truncate { length: offset as u32 }, false),
            3 => {
                let length = 1 + env.random_below(30_000) as usize;
                let end = bytes.len().min(offset + length);
                bytes[offset.min(end)..end].fill(0);
                (Change::Zero { offset: offset as u32, length: length as u32 }, false)
            }
            _ => {
                let mut new = vec![0; 1 + env.random_below(12_000) as usize];
                env.fill_random(&mut new);
                bytes.resize(bytes.len().max(offset + new.len()), 0);
                bytes[offset..offset + new.len()].copy_from_slice(&new);
                (write_at(offset as u32, &new), false)
            }
        };
        if let Change::Truncate { length } = change {
            bytes.truncate(length as usize);
        }
        let (client, channel) = (ClientId(env.random_below(3).into()), ChannelId(0));
        let update = Update {
            chunk,
            version: version(number),
            previous,
            epoch: EPOCH,
            floor: EPOCH,
            chunk_bytes: 2 << 20,
            change,
            retry: Some(RetryKey { client, channel, sequence: Sequence(number) }),
            commit: true,
        };
        store.prepare(target, update).await.unwrap();
        known.insert((target, chunk), (version(number), (!removed).then_some(bytes)));
    }
}

/// Versions that nobody has decided about, of chunks that are there and of new ones.
async fn leave_pending(
    store: &Store,
    env: &Env,
    known: &BTreeMap<Key, Known>,
) -> BTreeMap<Key, ChunkVersion> {
    let mut pending = BTreeMap::new();
    for (target, index) in TARGETS.into_iter().flat_map(|t| [0, 5, 9, 30].map(|i| (t, i))) {
        let key = (target, common::chunk(index));
        let number = 1000 + index;
        let mut new = vec![0; 3000];
        env.fill_random(&mut new);
        let previous = match known.get(&key) {
            Some((version, Some(_))) => *version,
            _ => ChunkVersion::NONE,
        };
        let update = common::update(index, number, 0, write_at(100, &new));
        let update = Update { previous, commit: false, chunk_bytes: 2 << 20, ..update };
        store.prepare(target, update).await.unwrap();
        pending.insert(key, version(number));
    }
    pending
}

/// `closed`: in order, else killed while nothing happened.
async fn image(env: &Env, changes: u64, closed: bool) -> Image {
    let disk = SimulatedDisk::new(env.clone(), DISK_BYTES);
    let device: Arc<dyn Disk> = Arc::clone(&disk) as _;
    Store::format(&device, identity()).await.unwrap();
    let store = open(&disk, env).await.unwrap();
    for target in TARGETS {
        store.create_target(target, ChainId(target.0), vec![1]).await.unwrap();
    }
    let mut chunks = BTreeMap::new();
    change_chunks(&store, env, changes, &mut chunks).await;
    let pending = leave_pending(&store, env, &chunks).await;
    let retries = TARGETS.map(|target| (target, store.retry_records(target, None, 100))).into();
    env.sleep(Duration::from_secs(5)).await;
    if closed {
        store.close().await.unwrap();
    }
    let disk = disk.kill();
    let mut blocks = BTreeMap::new();
    for block in 0..DISK_BYTES / BLOCK_BYTES as u64 {
        let read = disk.read(block * BLOCK_BYTES as u64, Buffer::zeroed(BLOCK_BYTES)).await;
        let bytes = read.unwrap().to_vec();
        if bytes.iter().any(|byte| *byte != 0) {
            blocks.insert(block, bytes);
        }
    }
    Image { blocks, chunks, pending, retries }
}

impl Image {
    /// A segment of the log begins with a batch, at the beginning of a zone.
    fn place(&self, block: u64) -> Place {
        let zone = block / ZONE * ZONE;
        let is_log = self.blocks.get(&zone).is_some_and(|first| first.starts_with(b"KLB1"));
        match block {
            0..2 => Place::Superblock,
            _ if is_log => Place::Log,
            _ => Place::Data,
        }
    }

    /// The zone of the batch with the highest number.
    fn end(&self) -> u64 {
        let batches = self.blocks.iter().filter(|(_, bytes)| bytes.starts_with(b"KLB1"));
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes[32..40].try_into().unwrap());
        batches.max_by_key(|(_, bytes)| number(bytes)).map_or(0, |(block, _)| block / ZONE * ZONE)
    }

    async fn restore(&self, env: &Env) -> Arc<SimulatedDisk> {
        let disk = SimulatedDisk::new(env.clone(), DISK_BYTES);
        for (block, bytes) in &self.blocks {
            disk.write(block * BLOCK_BYTES as u64, Bytes::copy_of(bytes)).await.unwrap();
        }
        disk.sync().await.unwrap();
        disk
    }

    fn copy(&self, key: Key) -> Option<ChunkCopy> {
        let (version, content) = self.chunks.get(&key)?;
        let content = content.as_ref().map(|bytes| (Bytes::copy_of(bytes), checksums(0, bytes)));
        Some(ChunkCopy { version: *version, epoch: EPOCH, content })
    }

    /// Fills a target as from another replica: compares versions, and installs what differs.
    async fn fill(&self, store: &Store, target: TargetId) -> usize {
        let here = store.versions(target, ChunkId::MIN, ChunkId::MAX, 1000).await.unwrap();
        let here: BTreeMap<ChunkId, Held> = here.into_iter().collect();
        let there = self.chunks.keys().filter(|key| key.0 == target).map(|key| key.1);
        let mut all: Vec<ChunkId> = here.keys().copied().chain(there).collect();
        all.sort_unstable();
        all.dedup();
        let mut installed = 0;
        for chunk in all {
            let copy = self.copy((target, chunk));
            let expected = here.get(&chunk).copied().unwrap_or_default();
            let wanted = copy.as_ref().map_or(ChunkVersion::NONE, |copy| copy.version);
            if expected != (Held { committed: wanted, pending: None }) {
                store.install(target, Install { chunk, expected, copy }).await.unwrap();
                installed += 1;
            }
        }
        store.forget_retries(target).await.unwrap();
        store.remember_retries(target, self.retries[&target].clone()).await.unwrap();
        installed
    }

    /// Which versions the targets hold.
    fn held(&self) -> BTreeMap<Key, Held> {
        let mut held: BTreeMap<Key, Held> = BTreeMap::new();
        for (key, (version, _)) in &self.chunks {
            held.entry(*key).or_default().committed = *version;
        }
        for (key, version) in &self.pending {
            held.entry(*key).or_default().pending = Some(*version);
        }
        held
    }

    /// Reads everything; heals what gives an error. How many had to be healed.
    async fn check(&self, store: &Store, held: &mut BTreeMap<Key, Held>) -> usize {
        let mut healed = 0;
        for target in TARGETS {
            let list = store.list(target, ChunkId::MIN, ChunkId::MAX, 1000).await.unwrap();
            let listed = list.iter().map(|(chunk, stat)| ((target, *chunk), stat.held()));
            let known = held.iter().filter(|(key, _)| key.0 == target);
            let (listed, known): (Vec<_>, Vec<_>) =
                (listed.collect(), known.map(|(key, held)| (*key, *held)).collect());
            assert_eq!(listed, known);
            assert_eq!(store.retry_records(target, None, 100), self.retries[&target]);
        }
        for (key, (_, content)) in &self.chunks {
            let Some(content) = content else { continue };
            let read = store.read(key.0, key.1, Which::Committed, 0, u32::MAX, EPOCH).await;
            match read {
                Ok(read) => assert_eq!(&*read.bytes, content, "{key:?}"),
                Err(error) => {
                    assert_eq!(error.code(), Code::ChecksumMismatch, "{error:?}");
                    let copy = self.copy(*key);
                    let expected = held[key];
                    if expected.pending.is_some() {
                        held.entry(*key).or_default().pending = None;
                        let install = Install { chunk: key.1, expected, copy };
                        store.install(key.0, install).await.unwrap();
                    } else {
                        store.repair(key.0, key.1, copy.unwrap()).await.unwrap();
                    }
                    healed += 1;
                }
            }
        }
        healed
    }

    /// Opens the damaged store, heals it, and opens it again.
    async fn heal(&self, env: &Env, disk: Arc<SimulatedDisk>) -> Outcome {
        let store = match open(&disk, env).await {
            Ok(store) => store,
            Err(error) => {
                // Without its superblocks it looks blank.
                let told = matches!(error.code(), Code::Corrupt | Code::NotFound);
                assert!(told, "{error:?}");
                return Outcome::NotOpened;
            }
        };
        let targets = store.targets();
        assert_eq!(targets.len(), TARGETS.len());
        let mut outcome = Outcome::NothingNoticed;
        for target in targets.iter().filter(|target| target.damaged) {
            let id = target.target;
            let quarantined = store.stat(id, common::chunk(0)).await.map_err(|e| e.code());
            assert_eq!(quarantined, Err(Code::Corrupt));
            store.accept_damage(id, vec![2]).await.unwrap();
            self.fill(&store, id).await;
            outcome = Outcome::TargetsFilledAnew;
        }
        let mut held = self.held();
        if outcome == Outcome::TargetsFilledAnew {
            held.retain(|_, held| {
                held.pending = None;
                *held != Held::default()
            });
        }
        if self.check(&store, &mut held).await > 0 {
            outcome = outcome.max(Outcome::ChunkRepaired);
        }
        assert_eq!(self.check(&store, &mut held).await, 0, "all is healed");
        assert!(store.verify().await.unwrap().is_clean());
        env.sleep(Duration::from_secs(5)).await;
        let store = open(&disk.power_loss(), env).await.unwrap();
        assert!(store.targets().iter().all(|target| !target.damaged), "healed for good");
        assert_eq!(self.check(&store, &mut held).await, 0);
        outcome
    }
}

#[derive(Clone, Copy)]
enum Damage {
    /// One bit of a block.
    Bit,
    /// Zeros or noise from a block on.
    Stretch,
}

impl Damage {
    /// `end`: where the zone with the log's end begins. Its loss as a whole looks like a crash.
    async fn strike(self, env: &Env, disk: &SimulatedDisk, block: u64, end: u64) {
        let offset = block * BLOCK_BYTES as u64;
        match self {
            Self::Bit => {
                let byte = env.random_below(BLOCK_BYTES as u64);
                disk.flip_bit(offset + byte, env.random_below(8) as u8);
            }
            Self::Stretch => {
                let blocks = 1 + env.random_below(1 << env.random_below(7));
                let blocks = match block {
                    _ if block < end => blocks.min(end - block),
                    _ if block < end + ZONE => return,
                    _ => blocks,
                };
                let length = (blocks * BLOCK_BYTES as u64).min(DISK_BYTES - offset);
                let mut noise = Buffer::zeroed(length as usize);
                if env.random_below(2) == 0 {
                    env.fill_random(&mut noise);
                }
                disk.write(offset, noise.freeze()).await.unwrap();
                disk.sync().await.unwrap();
            }
        }
    }
}

type Outcomes = BTreeMap<(Place, Outcome), u64>;

/// Damages each kind of place of a store so many times, each time a fresh image.
async fn damage(env: Env, image: Image, times: u64, damage: Damage) -> Outcomes {
    let mut outcomes = Outcomes::new();
    for place in [Place::Superblock, Place::Log, Place::Data] {
        let blocks = image.blocks.keys().copied();
        let blocks: Vec<u64> = blocks.filter(|block| image.place(*block) == place).collect();
        for _ in 0..times {
            let block = blocks[env.random_below(blocks.len() as u64) as usize];
            let disk = image.restore(&env).await;
            damage.strike(&env, &disk, block, image.end()).await;
            let outcome = image.heal(&env, disk).await;
            *outcomes.entry((place, outcome)).or_default() += 1;
        }
    }
    outcomes
}

/// Damages stores that are young or were cleaned often, closed or not; one asks how often what became
/// of a kind of place.
fn outcomes(times: u64, kind: Damage) -> impl Fn(Place, Outcome) -> u64 {
    let seed = number("KILN_SEED").unwrap_or(1);
    let mut all = Outcomes::new();
    for (changes, closed) in [(20, true), (600, true), (30, false), (500, false)] {
        let executor = Executor::new(seed + changes);
        let env = executor.env();
        let outcomes = executor.run(async move {
            let image = image(&env, changes, closed).await;
            damage(env, image, times, kind).await
        });
        println!("{changes} changes, closed {closed}: {outcomes:?}");
        outcomes.into_iter().for_each(|(which, count)| *all.entry(which).or_default() += count);
    }
    move |place, outcome| all.get(&(place, outcome)).copied().unwrap_or(0)
}

#[test]
fn a_flipped_bit_gives_right_bytes_or_an_error_and_is_healed() {
    let flips = number("KILN_FLIPS").unwrap_or(20);
    let count = outcomes(flips, Damage::Bit);
    assert_eq!(count(Place::Superblock, Outcome::NothingNoticed), 4 * flips);
    assert!(count(Place::Log, Outcome::TargetsFilledAnew) > 0);
    assert_eq!(count(Place::Log, Outcome::ChunkRepaired), 0);
    assert_eq!(count(Place::Log, Outcome::NotOpened), 0);
    assert!(count(Place::Data, Outcome::ChunkRepaired) > 0);
    assert_eq!(count(Place::Data, Outcome::NotOpened), 0);
}

#[test]
fn a_lost_stretch_gives_right_bytes_or_an_error_and_is_healed() {
    let times = number("KILN_FLIPS").unwrap_or(20);
    let count = outcomes(times, Damage::Stretch);
    assert!(count(Place::Log, Outcome::TargetsFilledAnew) > 0);
    assert!(count(Place::Data, Outcome::ChunkRepaired) > 0);
}
