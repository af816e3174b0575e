//! Comparing the store with the reference: at rest, after reboots, after flipped bits.

use crate::reference::{Chunk, Key, Version};
use crate::world::{BLOCK, Outcome, Planted, TARGETS, World, checksums, chunk_id, lost};
use kiln_chunk_store::{RetryRecord, Store, VersionStat, Which};
use kiln_disk::{Disk, SimulatedDisk};
use kiln_memory::Pool;
use kiln_types::{ChannelId, ChunkId, ClientId, Code, Error, TruncateEpoch, crc32c};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

impl World {
    /// Both versions of a chunk as the store shows them.
    pub(crate) async fn observe(&self, key: Key) -> Result<Chunk, Error> {
        let stat = self.store.stat(key.0, key.1).await?;
        if stat.damaged.is_some() {
            return Err(Error::corrupt("its descriptor"));
        }
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
        // One that was dropped is back when the cleaning that dropped it did not come to its end.
        expected.pending == found.pending
            && (expected.committed == found.committed
                || found.committed.is_none() && gone(&expected.committed)
                || expected.committed.is_none() && gone(&found.committed))
    }

    pub(crate) async fn check_some(&mut self) -> Outcome {
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
        let range = (offset, length);
        let found =
            self.store.extents(key.0, key.1, Which::Committed, range, TruncateEpoch(0)).await;
        let data = match found {
            Err(error) if self.armed && lost(error.code()) => return Ok(()),
            found => found.map_err(|error| format!("extents of {key:?}: {error:?}"))?.data,
        };
        let mut at = from;
        let end = std::iter::once(to..to);
        for range in data.iter().map(|data| data.start as usize..data.end as usize).chain(end) {
            ensure!(at <= range.start && range.end <= to, "{key:?}: extents {data:?}");
            let hole = &version.bytes[at..range.start];
            ensure!(hole.iter().all(|byte| *byte == 0), "{key:?}: bytes in the holes of {data:?}");
            at = range.end;
        }
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
        if found.committed != expected.committed {
            self.model.chunks.entry(key).or_default().committed = found.committed;
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
            let versions = self.store.versions(target, ChunkId::MIN, ChunkId::MAX, 1000).await;
            let versions = versions.map_err(|error| format!("versions: {error:?}"))?;
            let held: Vec<_> = list.iter().map(|(chunk, stat)| (*chunk, stat.held())).collect();
            ensure!(versions == held || self.life.expiry, "{versions:?} instead of {held:?}");
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

    pub(crate) fn check_retries(&self) -> Outcome {
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
            let mut pages = Vec::new();
            let after = |record: &RetryRecord| (record.key.client, record.key.channel);
            while let [record] = self.store.retry_records(target, pages.last().map(after), 1)[..] {
                pages.push(record);
            }
            let known = self.model.retries.keys().filter(|channel| channel.0 == target);
            let known: Vec<_> = known.map(|channel| (channel.1, channel.2)).collect();
            ensure!(pages.iter().map(after).eq(known), "the list of retry records");
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
    pub(crate) async fn reboot(&mut self, disk: Arc<SimulatedDisk>) -> Outcome {
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
            let mut tries = 0;
            while self.armed && found.as_ref().is_err_and(|error| lost(error.code())) {
                tries += 1;
                if tries % 8 == 0 {
                    // An armed fault struck the log: the store has ended.
                    self.disk = self.pull_the_plug();
                    self.open_again().await?;
                }
                found = self.observe(key).await;
            }
            let found = found.map_err(|error| format!("{key:?}: {error:?}"))?;
            // What is there as it was written tells more than what may have been dropped.
            let exact = alternatives.iter().position(|alternative| alternative.chunk == found);
            let before = self.model.chunk(key);
            if before == found || exact.is_none() && self.matches(&before, &found) {
                continue;
            }
            let words = brief(&before);
            let other: Vec<String> = alternatives.iter().map(|a| brief(&a.chunk)).collect();
            let like = || alternatives.iter().position(|a| self.matches(&a.chunk, &found));
            let Some(which) = exact.or_else(like) else {
                return Err(format!(
                    "{key:?} is {} after a crash, instead of {words} or {other:?}",
                    brief(&found)
                ));
            };
            self.model.take(key, alternatives.into_iter().nth(which).expect("it was found"));
        }
        self.check_after_open().await
    }

    pub(crate) async fn check_after_open(&mut self) -> Outcome {
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
    pub(crate) async fn restart(&mut self) -> Outcome {
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
    pub(crate) async fn settle(&self) {
        self.env.sleep(Duration::from_secs(5)).await;
    }

    fn random_bit(&self) -> (u64, u8) {
        // The beginning of the disk is where most of its content is.
        let bound = self.life.disk_bytes >> self.below(3);
        (self.below(bound), self.below(8) as u8)
    }

    /// A flipped bit gives an error or does not matter; it never gives wrong data.
    pub(crate) async fn flip_and_read(&mut self) -> Outcome {
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

    /// A flipped bit may keep a store from opening. When it opens with less than was acknowledged, it
    /// says so, and is filled again.
    pub(crate) async fn flip_and_open(&mut self) -> Outcome {
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
            Ok(()) if self.store.targets().iter().any(|target| target.damaged) => {
                self.fill_again().await?;
                self.settle().await;
                self.damages += 1;
                return self.check_after_open().await;
            }
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
}

pub(crate) fn brief(chunk: &Chunk) -> String {
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
