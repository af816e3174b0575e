//! Nearly full disks: refusals leave everything as it was, what makes space is never refused, space
//! comes back, and the store knows how much there is.
//!
//! A failing seed is printed; `KILN_SEED=n` reruns it alone, `KILN_SEEDS=n` sets how many are run.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{EPOCH, TARGET, chunk, content, open, scenario, update, write_at};
use kiln_chunk_store::{Change, Store, Update, Which};
use kiln_disk::{Disk, SimulatedDisk};
use kiln_env::Env;
use kiln_types::Code;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const BLOCK: u64 = 4096;
const DISK: u64 = 24 << 20;
const RESERVE: u64 = DISK / 16;

/// A store and what must be in it.
struct Life {
    env: Env,
    store: Arc<Store>,
    chunks: BTreeMap<u64, (u64, Vec<u8>)>,
    versions: u64,
    indexes: u64,
    words: String,
}

impl Life {
    async fn prepare(&mut self, index: u64, change: Change) -> Result<u64, Code> {
        self.versions += 1;
        let previous = self.chunks.get(&index).map_or(0, |(version, _)| *version);
        let update = update(index, self.versions, previous, change);
        let stored = self.store.prepare(TARGET, update).await;
        stored.map(|()| self.versions).map_err(|error| error.code())
    }

    /// A new chunk of a few blocks or many; whether it fits.
    async fn put(&mut self) -> bool {
        let blocks = 1 + self.env.random_below(if self.env.random_below(4) == 0 { 64 } else { 4 });
        let bytes = vec![self.env.random_below(255) as u8 + 1; (blocks * BLOCK) as usize];
        let index = self.indexes;
        self.indexes += 1;
        match self.prepare(index, write_at(0, &bytes)).await {
            Ok(version) => {
                self.chunks.insert(index, (version, bytes));
                true
            }
            Err(code) => {
                assert_eq!(code, Code::NoSpace, "{}", self.words);
                let stat = self.store.stat(TARGET, chunk(index)).await.unwrap();
                assert!(stat.committed.is_none() && stat.pending.is_none(), "{}", self.words);
                false
            }
        }
    }

    fn any(&self) -> Option<u64> {
        let place = self.env.random_below(self.chunks.len().max(1) as u64) as usize;
        self.chunks.keys().nth(place).copied()
    }

    /// Replaces bytes that are there.
    async fn renew(&mut self, may_fail: bool) {
        let Some(index) = self.any() else { return };
        let mut bytes = self.chunks[&index].1.clone();
        let from = self.env.random_below(bytes.len() as u64) as usize;
        let length = 1 + self.env.random_below((bytes.len() - from).min(40_000) as u64) as usize;
        bytes[from..from + length].fill(self.env.random_below(256) as u8);
        let change = write_at(from as u32, &bytes[from..from + length]);
        match self.prepare(index, change).await {
            Ok(version) => drop(self.chunks.insert(index, (version, bytes))),
            Err(code) => {
                assert!(
                    may_fail && code == Code::NoSpace,
                    "{}: renewal: {code:?} {length} {:?}",
                    self.words,
                    self.store.usage()
                );
                assert!(content(&self.store, index).await == self.chunks[&index].1);
            }
        }
    }

    async fn cut(&mut self) {
        let Some(index) = self.any() else { return };
        let mut bytes = self.chunks[&index].1.clone();
        let whole = bytes.len();
        bytes.truncate(1 + self.env.random_below(bytes.len() as u64) as usize);
        if self.env.random_below(2) == 0 {
            let (offset, length) = (bytes.len() as u32, (whole - bytes.len()) as u32);
            let zeroed = self.prepare(index, Change::Zero { offset, length }).await;
            let version = zeroed.unwrap_or_else(|code| panic!("{}: zeros: {code:?}", self.words));
            let zeros = [&bytes[..], &vec![0; whole - bytes.len()]].concat();
            self.chunks.insert(index, (version, zeros));
        }
        let cut = self.prepare(index, Change::Truncate { length: bytes.len() as u32 }).await;
        let version = cut.unwrap_or_else(|code| panic!("{}: a cut: {code:?}", self.words));
        self.chunks.insert(index, (version, bytes));
    }

    async fn remove(&mut self) {
        let Some(index) = self.any() else { return };
        let removed = self.prepare(index, Change::Remove).await;
        removed.unwrap_or_else(|code| panic!("{}: a removal: {code:?}", self.words));
        self.chunks.remove(&index);
    }

    async fn check(&self) {
        for (index, (_, bytes)) in &self.chunks {
            assert!(content(&self.store, *index).await == *bytes, "{}: {index}", self.words);
        }
        let verified = self.store.verify().await.unwrap();
        assert!(verified.is_clean(), "{}: {verified:?}", self.words);
    }

    /// What a writer may still take: of the store, and of the file system beneath.
    async fn free(&self) -> u64 {
        let usage = self.store.usage();
        let beneath = self.store.beneath().await.unwrap();
        let room = beneath.map_or(u64::MAX, |beneath| beneath.free_bytes);
        usage.free_bytes.min(usage.backed_bytes.saturating_add(room))
    }
}

async fn live(env: Env, disk: Arc<SimulatedDisk>, store: Arc<Store>, seed: u64, rounds: u64) {
    let room = (seed % 2 == 1).then_some(DISK / 3 * 2);
    if let Some(room) = room {
        disk.set_physical_capacity(room);
    }
    let words = format!("KILN_SEED={seed}");
    let (chunks, versions, indexes) = (BTreeMap::new(), 0, 0);
    // The log keeps some space ready.
    env.sleep(Duration::from_secs(1)).await;
    let mut life = Life { env, store, chunks, versions, indexes, words };
    for round in 0..rounds {
        let before = life.free().await;
        let held = |life: &Life| life.chunks.values().map(|(_, b)| b.len() as u64).sum::<u64>();
        let there = held(&life);
        while life.put().await {}
        if round == 0 {
            // The log, which grows meanwhile, is the rest; the last chunk that did not fit, too.
            let fitted = held(&life) - there;
            let most = DISK / 16 + before / 20 + 64 * BLOCK;
            assert!(
                fitted <= before && before - fitted < most,
                "{}: {before} free, {fitted} fit",
                life.words
            );
        }
        for _ in 0..30 {
            life.renew(room.is_some()).await;
            life.cut().await;
        }
        life.check().await;
        for _ in 0..life.chunks.len() as u64 / (1 + life.env.random_below(3)) {
            life.remove().await;
        }
        if life.env.random_below(3) == 0 {
            let pause = Duration::from_secs(life.env.random_below(6));
            life.env.sleep(pause).await;
        }
    }
    while !life.chunks.is_empty() {
        life.remove().await;
    }
    life.env.sleep(Duration::from_secs(5)).await;
    let (free, usage) = (life.free().await, life.store.usage());
    let most = room.unwrap_or(DISK) - RESERVE;
    assert!(free + usage.metadata_bytes + (4 << 20) > most, "{}: {usage:?}", life.words);
    let reopened = open(&disk.power_loss(), &life.env).await;
    assert!(reopened.verify().await.unwrap().is_clean(), "{}", life.words);
}

#[test]
fn what_makes_space_is_never_refused_and_refusals_change_nothing() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let first = number("KILN_SEED");
    let count = number("KILN_SEEDS").unwrap_or(if first.is_some() { 1 } else { 12 });
    let seeds = first.unwrap_or(0)..first.unwrap_or(0) + count;
    for seed in seeds {
        scenario(seed, DISK >> 20, move |env, disk, store| live(env, disk, store, seed, 4));
    }
}

#[test]
fn many_renewals_at_once_on_a_full_disk_wait_for_each_other() {
    scenario(3, 64, |env, _, store| async move {
        let mut count = 0;
        loop {
            let put = update(count, 1, 0, write_at(0, &[1; 256 << 10]));
            match store.prepare(TARGET, put).await {
                Ok(()) => count += 1,
                Err(error) => break assert_eq!(error.code(), Code::NoSpace),
            }
        }
        let renewal = |index: u64| {
            let store = Arc::clone(&store);
            env.spawn("renewal", async move {
                let change = write_at(0, &[2; 256 << 10]);
                let first = Update { commit: false, ..update(index, 2, 1, change) };
                store.prepare(TARGET, first.clone()).await?;
                store.commit(TARGET, chunk(index), first.version).await
            })
        };
        let tasks: Vec<_> = (0..count).map(renewal).collect();
        for task in tasks {
            task.join().await.unwrap().unwrap();
        }
        for index in 0..count {
            let which = Which::Committed;
            let read = store.read(TARGET, chunk(index), which, 0, u32::MAX, EPOCH).await.unwrap();
            assert!(*read.bytes == [2; 256 << 10]);
        }
        assert!(store.verify().await.unwrap().is_clean());
    });
}

#[test]
fn a_file_system_that_gets_space_back_is_used_again() {
    scenario(4, 32, |env, disk, store| async move {
        disk.set_physical_capacity(12 << 20);
        let fill = async |from: u64| {
            for index in from.. {
                let put = update(index, index + 1, 0, write_at(0, &[7; 512 << 10]));
                if store.prepare(TARGET, put).await.is_err() {
                    return index;
                }
            }
            from
        };
        let full = fill(0).await;
        assert!((8..24).contains(&full), "{full} chunks");
        let left = async || store.beneath().await.unwrap().unwrap().free_bytes;
        assert!(left().await < 1 << 20, "{}", left().await);
        let others = disk.beneath().await.unwrap().unwrap().free_bytes;
        assert!(others >= 1 << 20, "{others} bytes for the file system's other users");
        disk.set_physical_capacity(32 << 20);
        env.sleep(Duration::from_secs(3)).await;
        let more = fill(full).await - full;
        assert!(more > 20, "{more} chunks more");
    });
}
