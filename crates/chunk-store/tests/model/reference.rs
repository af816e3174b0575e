//! The reference: what a store must hold, kept in plain maps.

use kiln_chunk_store::{Change, Update, VersionStat};
use kiln_types::{
    ChannelId, ChunkId, ChunkVersion, ClientId, Code, RetryKey, TargetId, TruncateEpoch,
};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) type Key = (TargetId, ChunkId);
pub(crate) type Channel = (TargetId, ClientId, ChannelId);

/// A version of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) stat: VersionStat,
    pub(crate) bytes: Arc<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Chunk {
    pub(crate) committed: Option<Version>,
    pub(crate) pending: Option<Version>,
}

/// The retry record of a channel.
pub(crate) type Remembered = (RetryKey, ChunkId, ChunkVersion);

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Prepare(Box<Update>),
    Commit(ChunkVersion),
    Discard(ChunkVersion),
}

/// What becomes of a channel's retry record.
#[derive(Clone, Debug)]
pub(crate) enum RetryChange {
    Nothing,
    Remember(Channel, Remembered),
    /// If it still speaks of this version.
    Forget(Channel, ChunkVersion),
}

/// A state that a chunk may turn out to be in after a crash, with what its channel then remembers.
#[derive(Clone, Debug)]
pub(crate) struct Alternative {
    pub(crate) chunk: Chunk,
    pub(crate) retry: RetryChange,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Reference {
    pub(crate) chunks: BTreeMap<Key, Chunk>,
    pub(crate) retries: BTreeMap<Channel, Remembered>,
    pub(crate) version_max: BTreeMap<TargetId, ChunkVersion>,
    /// What else a chunk may be after the next crash.
    pub(crate) alternatives: BTreeMap<Key, Vec<Alternative>>,
}

impl Chunk {
    pub(crate) fn base(&self) -> ChunkVersion {
        match &self.committed {
            Some(version) if !version.stat.removed => version.stat.version,
            _ => ChunkVersion::NONE,
        }
    }

    fn epoch(&self) -> TruncateEpoch {
        self.committed.as_ref().map_or(TruncateEpoch(0), |version| version.stat.epoch)
    }

    /// What `prepare` must answer, short of a full disk.
    pub(crate) fn judge(&self, update: &Update) -> Result<bool, Code> {
        let known = self.committed.as_ref().map_or(ChunkVersion::NONE, |v| v.stat.version);
        match self.pending.as_ref().map(|pending| pending.stat.version) {
            Some(pending) if pending == update.version => return Ok(false),
            _ if known == update.version => return Ok(false),
            Some(_) => return Err(Code::VersionMismatch),
            None => {}
        }
        if update.version < known || update.previous != self.base() {
            return Err(Code::VersionMismatch);
        }
        if update.epoch < self.epoch() {
            return Err(Code::StaleEpoch);
        }
        Ok(true)
    }

    fn content(&self, update: &Update) -> Vec<u8> {
        let visible = self.committed.as_ref().filter(|v| v.stat.epoch >= update.floor);
        let mut bytes = visible.map_or_else(Vec::new, |version| version.bytes.to_vec());
        match &update.change {
            Change::Write { bytes: new, .. } if new.is_empty() => {}
            Change::Write { offset, bytes: new, .. } => {
                let end = *offset as usize + new.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[*offset as usize..end].copy_from_slice(new);
            }
            Change::Truncate { length } => bytes.truncate(*length as usize),
            Change::Remove => bytes.clear(),
            Change::Replace { bytes: new, .. } => bytes = new.to_vec(),
        }
        bytes
    }

    fn prepared(&self, update: &Update) -> Self {
        let bytes = self.content(update);
        let stat = VersionStat {
            version: update.version,
            epoch: update.epoch,
            length: bytes.len() as u32,
            removed: matches!(update.change, Change::Remove),
            retry: update.retry,
        };
        let version = Some(Version { stat, bytes: Arc::new(bytes) });
        if update.commit {
            Self { committed: version, pending: None }
        } else {
            Self { committed: self.committed.clone(), pending: version }
        }
    }

    fn is_pending(&self, version: ChunkVersion) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.stat.version == version)
    }
}

impl Reference {
    pub(crate) fn chunk(&self, key: Key) -> Chunk {
        self.chunks.get(&key).cloned().unwrap_or_default()
    }

    /// The chunk after an operation that takes effect, with what the channel remembers.
    pub(crate) fn after(&self, key: Key, op: &Op) -> Alternative {
        let chunk = self.chunk(key);
        let channel = |retry: RetryKey| (key.0, retry.client, retry.channel);
        match op {
            Op::Prepare(update) if chunk.is_pending(update.version) => {
                let chunk = if update.commit {
                    Chunk { committed: chunk.pending, pending: None }
                } else {
                    chunk
                };
                Alternative { chunk, retry: RetryChange::Nothing }
            }
            Op::Prepare(update) => Alternative {
                chunk: chunk.prepared(update),
                retry: update.retry.map_or(RetryChange::Nothing, |retry| {
                    RetryChange::Remember(channel(retry), (retry, key.1, update.version))
                }),
            },
            Op::Commit(version) if chunk.is_pending(*version) => {
                let chunk = Chunk { committed: chunk.pending, pending: None };
                Alternative { chunk, retry: RetryChange::Nothing }
            }
            Op::Discard(version) if chunk.is_pending(*version) => {
                let retry = chunk.pending.and_then(|pending| pending.stat.retry).map(channel);
                let retry = retry
                    .map_or(RetryChange::Nothing, |channel| RetryChange::Forget(channel, *version));
                Alternative { chunk: Chunk { pending: None, ..self.chunk(key) }, retry }
            }
            Op::Commit(_) | Op::Discard(_) => Alternative { chunk, retry: RetryChange::Nothing },
        }
    }

    pub(crate) fn take(&mut self, key: Key, alternative: Alternative) {
        for version in
            [&alternative.chunk.committed, &alternative.chunk.pending].into_iter().flatten()
        {
            let max = self.version_max.entry(key.0).or_default();
            *max = (*max).max(version.stat.version);
        }
        self.chunks.insert(key, alternative.chunk);
        match alternative.retry {
            RetryChange::Remember(channel, remembered) => {
                self.retries.insert(channel, remembered);
            }
            RetryChange::Forget(channel, version) => {
                if self.retries.get(&channel).is_some_and(|(_, _, written)| *written == version) {
                    self.retries.remove(&channel);
                }
            }
            RetryChange::Nothing => {}
        }
    }

    pub(crate) fn drop_target(&mut self, target: TargetId) {
        self.chunks.retain(|key, _| key.0 != target);
        self.retries.retain(|channel, _| channel.0 != target);
        self.alternatives.retain(|key, _| key.0 != target);
        self.version_max.remove(&target);
    }
}
