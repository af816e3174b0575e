//! The reference: what a store must hold, kept in plain maps.

use kiln_chunk_store::{Change, Held, Install, RetryRecord, Update, VersionStat};
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
    Install(Box<Install>),
    /// With the content that is known of the committed version.
    Repair,
}

/// What becomes of a channel's retry record.
#[derive(Clone, Debug)]
pub(crate) enum RetryChange {
    Nothing,
    Remember(Channel, Remembered),
    /// If it still speaks of this version.
    Undo(Channel, ChunkVersion),
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

    pub(crate) fn held(&self) -> Held {
        let committed = self.committed.as_ref().map_or(ChunkVersion::NONE, |v| v.stat.version);
        Held { committed, pending: self.pending.as_ref().map(|pending| pending.stat.version) }
    }

    /// What `install` must answer, short of a full disk.
    pub(crate) fn judge_install(&self, install: &Install) -> Result<bool, Code> {
        let committed = install.copy.as_ref().map_or(ChunkVersion::NONE, |copy| copy.version);
        match self.held() {
            held if held == (Held { committed, pending: None }) => Ok(false),
            held if held == install.expected => Ok(true),
            _ => Err(Code::VersionMismatch),
        }
    }

    /// What `repair` must answer, short of a full disk.
    pub(crate) fn judge_repair(&self) -> Result<bool, Code> {
        let whole = self.committed.is_some() && self.pending.is_none();
        if whole { Ok(true) } else { Err(Code::VersionMismatch) }
    }

    fn installed(install: &Install) -> Self {
        let committed = install.copy.as_ref().map(|copy| {
            let bytes = copy.content.as_ref().map_or(Vec::new(), |(bytes, _)| bytes.to_vec());
            let stat = VersionStat {
                version: copy.version,
                epoch: copy.epoch,
                length: bytes.len() as u32,
                removed: copy.content.is_none(),
                retry: None,
            };
            Version { stat, bytes: Arc::new(bytes) }
        });
        Self { committed, pending: None }
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
            Change::Zero { offset, length } => {
                let end = bytes.len().min((offset + length) as usize);
                bytes[end.min(*offset as usize)..end].fill(0);
            }
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
                let retry = Self::discard(key, &chunk);
                Alternative { chunk: Chunk { pending: None, ..chunk }, retry }
            }
            Op::Install(install) if chunk.judge_install(install) == Ok(true) => {
                let retry = Self::discard(key, &chunk);
                Alternative { chunk: Chunk::installed(install), retry }
            }
            Op::Repair if chunk.judge_repair() == Ok(true) => {
                let mut chunk = chunk;
                chunk.committed.iter_mut().for_each(|version| version.stat.retry = None);
                Alternative { chunk, retry: RetryChange::Nothing }
            }
            Op::Commit(_) | Op::Discard(_) | Op::Install(_) | Op::Repair => {
                Alternative { chunk, retry: RetryChange::Nothing }
            }
        }
    }

    fn discard(key: Key, chunk: &Chunk) -> RetryChange {
        let stat = chunk.pending.as_ref().map(|pending| pending.stat);
        let remembered = stat.and_then(|stat| Some((stat.retry?, stat.version)));
        remembered.map_or(RetryChange::Nothing, |(retry, version)| {
            RetryChange::Undo((key.0, retry.client, retry.channel), version)
        })
    }

    /// Takes the records of another replica.
    pub(crate) fn remember(&mut self, target: TargetId, records: &[RetryRecord]) {
        for record in records {
            let channel = (target, record.key.client, record.key.channel);
            let known = self.retries.get(&channel);
            if known.is_none_or(|(key, ..)| key.sequence <= record.key.sequence) {
                self.retries.insert(channel, (record.key, record.chunk, record.version));
            }
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
            RetryChange::Undo(channel, version) => {
                let known = self.retries.get_mut(&channel);
                if let Some((key, _, written)) = known.filter(|known| known.2 == version) {
                    key.sequence.0 -= 1;
                    *written = ChunkVersion::NONE;
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
