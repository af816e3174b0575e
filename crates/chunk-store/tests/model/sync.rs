//! What fills a replica from another one: installs, and retry records as a whole.

use crate::reference::{Key, Version};
use crate::world::{Outcome, TARGETS, World, checksums, chunk_id, lost};
use kiln_chunk_store::{ChunkCopy, Held, Install, RetryRecord};
use kiln_memory::Bytes;
use kiln_types::{
    ChainVersion, ChannelId, ChunkVersion, ClientId, Code, RetryKey, Sequence, TruncateEpoch,
};

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
                Some(ChunkCopy {
                    version,
                    epoch,
                    content: Some((bytes.clone(), checksums(0, &bytes))),
                })
            }
        };
        Install { chunk: key.1, expected, copy }
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
                if self.reboot(disk).await.is_ok() {
                    return Ok(());
                }
                self.model = before;
                let disk = self.disk.kill();
                self.reboot(disk).await
            }
            Err(error) => Err(format!("retry records: {error:?}")),
        }
    }
}
