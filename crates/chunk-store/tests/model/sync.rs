//! What fills a replica from another one: installs, and retry records as a whole.

use crate::reference::{Chunk, Key, Op, Version};
use crate::world::{Outcome, TARGETS, World, checksums, chunk_id, lost};
use kiln_chunk_store::{ChunkCopy, Held, Install, RetryRecord};
use kiln_memory::Bytes;
use kiln_types::{
    ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, Code, Error, RetryKey, Sequence,
    TruncateEpoch,
};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn copy_of(version: &Version) -> ChunkCopy {
    let bytes = Bytes::copy_of(&version.bytes);
    let content = (!version.stat.removed).then(|| (bytes.clone(), checksums(0, &bytes)));
    ChunkCopy { version: version.stat.version, epoch: version.stat.epoch, content }
}

impl World {
    /// A copy of a replica that knows more, or less, or the same.
    pub(crate) fn random_install(&mut self, key: Key) -> Install {
        let chunk = self.model.chunk(key);
        let newer = self.next_version();
        let expected = match self.below(10) {
            0 => Held { committed: newer, pending: None },
            1 => Held { pending: None, ..chunk.held() },
            _ => chunk.held(),
        };
        let version = match self.below(3) {
            0 => newer,
            _ => ChunkVersion { chain: ChainVersion(0), ..newer },
        };
        let epoch = TruncateEpoch(self.below(3));
        let copy = match (self.below(8), &chunk.committed) {
            (0, _) => None,
            (1, _) => Some(ChunkCopy { version, epoch, content: None }),
            (2, Some(known)) => Some(copy_of(known)),
            _ => {
                let length = 1 + self.below(u64::from(self.life.chunk_bytes)) as u32;
                let bytes =
                    self.random_bytes(if self.life.small_writes { length / 8 } else { length });
                let bytes = self.with_zeros(bytes);
                Some(ChunkCopy {
                    version,
                    epoch,
                    content: Some((bytes.clone(), checksums(0, &bytes))),
                })
            }
        };
        Install { chunk: key.1, expected, copy }
    }

    /// Sometimes a stretch of it is zeros, as holes are.
    fn with_zeros(&self, bytes: Bytes) -> Bytes {
        let mut copy = bytes.to_vec();
        let from = self.below(1 + 2 * copy.len() as u64) as usize;
        if from >= copy.len() {
            return bytes;
        }
        let to = from + self.below((copy.len() - from) as u64) as usize;
        copy[from..to].fill(0);
        Bytes::copy_of(&copy)
    }

    /// Fills all targets with what is known, as from another replica, after their damage.
    pub(crate) async fn fill_again(&mut self) -> Outcome {
        for target in TARGETS {
            let text = |error: Error| format!("fill {target}: {error:?}");
            self.store.accept_damage(target, vec![3]).await.map_err(text)?;
            let here = self.store.versions(target, ChunkId::MIN, ChunkId::MAX, 1000).await;
            let here: BTreeMap<ChunkId, Held> = here.map_err(text)?.into_iter().collect();
            let known = self.model.chunks.keys().filter(|key| key.0 == target);
            let all: BTreeSet<ChunkId> =
                here.keys().copied().chain(known.map(|key| key.1)).collect();
            for chunk in all {
                let held = here.get(&chunk).copied().unwrap_or_default();
                self.fill_chunk((target, chunk), held).await?;
            }
            let records = self.model.retries.iter().filter(|(channel, _)| channel.0 == target);
            let record = |(key, chunk, version): &_| RetryRecord {
                key: *key,
                chunk: *chunk,
                version: *version,
            };
            let records = records.map(|(_, remembered)| record(remembered)).collect();
            self.store.forget_retries(target).await.map_err(text)?;
            self.store.remember_retries(target, records).await.map_err(text)?;
            self.model.version_max.insert(target, self.store.version_max(target));
        }
        Ok(())
    }

    /// Equal versions: after a lost repair it may be the content from before.
    async fn compare_content(&mut self, key: Key) -> Outcome {
        let mut chunk = self.model.chunk(key);
        let Some(known) = &mut chunk.committed else { return Ok(()) };
        let found = self.observe(key).await;
        if found.is_err_and(|error| error.code() == Code::ChecksumMismatch) {
            let repaired = self.store.repair(key.0, key.1, copy_of(known)).await;
            repaired.map_err(|error| format!("repair {key:?}: {error:?}"))?;
        }
        let stat = self.store.stat(key.0, key.1).await.map_err(|error| format!("{error:?}"))?;
        known.stat.retry = stat.committed.and_then(|stat| stat.retry);
        self.model.chunks.insert(key, chunk);
        Ok(())
    }

    /// The other replica has nothing pending.
    async fn fill_chunk(&mut self, key: Key, expected: Held) -> Outcome {
        let mut chunk = self.model.chunk(key);
        if chunk.pending.is_some() {
            let discard = Op::Discard(chunk.held().pending.unwrap_or_default());
            let discarded = self.model.after(key, &discard);
            self.model.take(key, discarded);
            chunk.pending = None;
        }
        let copy = chunk.committed.as_ref().map(copy_of);
        let install = Install { chunk: key.1, expected, copy };
        if expected == chunk.held() {
            return self.compare_content(key).await;
        }
        chunk.committed.iter_mut().for_each(|version| version.stat.retry = None);
        match self.store.install(key.0, install).await {
            Err(error) if error.code() == Code::NoSpace => {
                chunk = Chunk::default();
                let install = Install { chunk: key.1, expected, copy: None };
                self.store.install(key.0, install).await.map_err(|e| format!("drop: {e:?}"))?;
            }
            filled => filled.map_err(|error| format!("fill {key:?}: {error:?}"))?,
        }
        self.model.chunks.insert(key, chunk);
        Ok(())
    }

    /// Drops or takes all retry records of a target, as when it is filled from another replica.
    pub(crate) async fn sync_retries(&mut self) -> Outcome {
        let target = TARGETS[self.below(2) as usize];
        let mut records = Vec::new();
        for _ in 0..self.below(3) {
            let (client, channel) =
                (ClientId(self.below(3).into()), ChannelId(self.below(2) as u32));
            let known = self.sequences.entry((target, client, channel)).or_default();
            let sequence = Sequence(*known + self.env.random_below(3));
            *known = sequence.0;
            let key = RetryKey { client, channel, sequence };
            let version = self.next_version();
            records.push(RetryRecord { key, chunk: chunk_id(0), version });
        }
        self.trace(|| format!("retry records of {target}: {records:?}"));
        let mut after = self.model.clone();
        let result = if records.is_empty() {
            after.retries.retain(|channel, _| channel.0 != target);
            self.store.forget_retries(target).await
        } else {
            after.remember(target, &records);
            self.store.remember_retries(target, records).await
        };
        match result {
            Ok(()) => {
                self.model = after;
                self.check_retries()
            }
            Err(error) if error.code() == Code::NoSpace => Ok(()),
            Err(error) if self.armed && lost(error.code()) => {
                // Whether it took effect is seen after the reboot.
                let disk = self.pull_the_plug();
                let before = std::mem::replace(&mut self.model, after);
                let unsettled = self.unsettled.clone();
                if self.reboot(disk).await.is_ok() {
                    return Ok(());
                }
                (self.model, self.unsettled) = (before, unsettled);
                let disk = self.disk.kill();
                self.reboot(disk).await
            }
            Err(error) => Err(format!("retry records: {error:?}")),
        }
    }
}
