//! The store: what callers may ask.

use crate::api::{
    ChunkCopy, ChunkExtents, ChunkRead, ChunkStat, Held, Identity, Install, Options, RetryRecord,
    TargetRecord, Update, Usage, Verification, Which,
};
use crate::core::{Core, closed};
use crate::extent::BLOCK;
use crate::open::Opened;
use crate::read::{self, Request};
use crate::record::{Key, Record};
use crate::state::Effect;
use crate::superblock::Superblock;
use crate::{clean, committer, install, open, retries, targets, write};
use kiln_disk::Disk;
use kiln_env::{Env, Task};
use kiln_memory::Pool;
use kiln_types::{
    ChainId, ChannelId, ChunkId, ChunkVersion, ClientId, Code, Error, Result, TargetId,
    TruncateEpoch,
};
use std::sync::Arc;

/// The chunks of one disk.
///
/// Dropping it without [`Store::close`] is like a crash: what was acknowledged is safe, commits of
/// the last moments are pending again at the next [`Store::open`].
pub struct Store {
    pub(crate) core: Arc<Core>,
    _tasks: [Task<()>; 2],
}

impl Store {
    /// Makes an empty store on a blank disk.
    ///
    /// # Errors
    /// `Exists` when it holds a store; `Corrupt` when it holds something else; `Invalid` when it is
    /// too small; `DiskFailed`, `NoSpace`.
    pub async fn format(disk: &Arc<dyn Disk>, identity: Identity) -> Result<()> {
        open::format(disk, identity).await
    }

    /// Whose store a disk holds; `None` when it is blank.
    ///
    /// # Errors
    /// `Corrupt` when it holds something else; `ProtocolMismatch` when a newer program wrote it;
    /// `DiskFailed`.
    pub async fn identify(disk: &Arc<dyn Disk>) -> Result<Option<Identity>> {
        Ok(Superblock::read(disk).await?.map(|superblock| superblock.identity))
    }

    /// Opens the store of a disk; nobody else may have it open.
    ///
    /// # Errors
    /// `NotFound` on a blank disk; `Corrupt` when it is damaged beyond what [`TargetRecord::damaged`]
    /// can say; `ProtocolMismatch`; `DiskFailed`; `NoSpace` when damage cannot be noted.
    pub async fn open(
        disk: Arc<dyn Disk>,
        env: Env,
        pool: Pool,
        options: Options,
    ) -> Result<Arc<Self>> {
        let Opened { core, writer, cleaner } = open::open(disk, env, pool, options).await?;
        let tasks = [
            core.env.spawn("chunk store committer", committer::run(Arc::clone(&core), writer)),
            core.env.spawn("chunk store maintenance", clean::run(Arc::clone(&core), cleaner)),
        ];
        core.space.changed.notify_one();
        Ok(Arc::new(Self { core, _tasks: tasks }))
    }

    /// Whose store it is.
    pub fn identity(&self) -> Identity {
        self.core.identity
    }

    /// The targets on this disk.
    pub fn targets(&self) -> Vec<TargetRecord> {
        let state = self.core.state.lock();
        let present = state.targets.iter().filter(|(_, target)| !target.removing);
        present
            .map(|(id, target)| TargetRecord {
                target: *id,
                chain: target.chain,
                version_max: target.version_max,
                state: target.state.clone(),
                damaged: target.damaged,
            })
            .collect()
    }

    /// Makes an empty target, durably.
    ///
    /// # Errors
    /// `Exists`; `Invalid` when the state is too long; `NoSpace`, `DiskFailed`.
    pub async fn create_target(
        &self,
        target: TargetId,
        chain: ChainId,
        state: Vec<u8>,
    ) -> Result<()> {
        check_state(&state)?;
        let work = targets::create(Arc::clone(&self.core), target, chain, state);
        self.run("target create", work).await
    }

    /// Replaces what the owner keeps with a target, durably.
    ///
    /// # Errors
    /// `WrongTarget` when it is not here; `Invalid` when the state is too long; `NoSpace`,
    /// `DiskFailed`.
    pub async fn set_target_state(&self, target: TargetId, state: Vec<u8>) -> Result<()> {
        check_state(&state)?;
        let work = targets::set_state(Arc::clone(&self.core), target, state, false);
        self.run("target state", work).await
    }

    /// Ends the quarantine of a target whose records were lost in part, see
    /// [`TargetRecord::damaged`], in one step with the owner's `state`, which says that it needs to
    /// be filled from another replica: the store does not know any more what is missing.
    ///
    /// # Errors
    /// As [`Store::set_target_state`].
    pub async fn accept_damage(&self, target: TargetId, state: Vec<u8>) -> Result<()> {
        check_state(&state)?;
        let work = targets::set_state(Arc::clone(&self.core), target, state, true);
        self.run("target damage", work).await
    }

    /// Removes a target with all its chunks, durably. Other targets are served meanwhile.
    ///
    /// # Errors
    /// `WrongTarget` when it is not here; `NoSpace`, `DiskFailed`, `Corrupt`.
    pub async fn remove_target(&self, target: TargetId) -> Result<()> {
        let work = targets::remove(Arc::clone(&self.core), target);
        self.run("target remove", work).await
    }

    /// Stores a new version of a chunk. When it returns, data, descriptor and retry record are
    /// durable; with `update.commit` the version is the committed one, else it is pending. A
    /// version that is here already is no error.
    ///
    /// # Errors
    /// - `VersionMismatch`: another version is pending, `update.previous` is not the committed
    ///   version (`NONE` for a chunk without content), or `update.version` is not the highest.
    /// - `StaleEpoch`: the chunk carries a newer epoch.
    /// - `Invalid`: limits. `ChecksumMismatch`: the bytes do not match their checksums, or a block
    ///   that is to be merged has decayed.
    /// - `NoSpace`, `WrongTarget`, `DiskFailed`.
    pub async fn prepare(&self, target: TargetId, update: Update) -> Result<()> {
        let work = write::prepare(Arc::clone(&self.core), target, update);
        self.run("chunk prepare", work).await
    }

    /// Runs a change as a task of its own: it goes on to its end when its caller goes away, since
    /// the disk does too, and since locks say what is on its way.
    async fn run(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<()>> + Send + 'static,
    ) -> Result<()> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let trace = kiln_telemetry::Trace::current();
        let task = self.core.env.spawn(name, async move {
            let _ = sender.send(trace.scope(work).await);
        });
        task.detach();
        receiver.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Makes a pending version the committed one: for readers when this returns, on disk with a
    /// later batch. After a crash before that, it is pending again. Nothing happens when the
    /// committed version is that one or a newer one.
    ///
    /// # Errors
    /// `VersionMismatch` when it is not pending; `WrongTarget`, `DiskFailed`.
    pub async fn commit(
        &self,
        target: TargetId,
        chunk: ChunkId,
        version: ChunkVersion,
    ) -> Result<()> {
        let key = Key { target, chunk };
        let Err(error) = write::commit(&self.core, key, version) else { return Ok(()) };
        if error.code() == Code::VersionMismatch
            && self.core.standing(key).await?.committed_version() >= version
        {
            return Ok(());
        }
        Err(error)
    }

    /// Drops a pending version, durably. Its retry record says from then on that the write before it
    /// is over: the write itself may be tried again. Nothing happens when the version is not here.
    ///
    /// # Errors
    /// `VersionMismatch` when it is committed; `WrongTarget`, `NoSpace`, `DiskFailed`.
    pub async fn discard(
        &self,
        target: TargetId,
        chunk: ChunkId,
        version: ChunkVersion,
    ) -> Result<()> {
        let work = write::discard(Arc::clone(&self.core), Key { target, chunk }, version);
        self.run("chunk discard", work).await
    }

    /// Makes a chunk what it is at another replica, whatever is here, durably and in one step: the
    /// pending version is dropped as by [`Store::discard`], the committed one is replaced even by a
    /// lower one. When the copy is here already and nothing is pending, nothing
    /// happens.
    ///
    /// # Errors
    /// `VersionMismatch` when `install.expected` is not what is here; `Invalid`: limits;
    /// `ChecksumMismatch` when the bytes do not match their checksums; `NoSpace`, `WrongTarget`,
    /// `DiskFailed`.
    pub async fn install(&self, target: TargetId, install: Install) -> Result<()> {
        let work = install::install(Arc::clone(&self.core), target, install);
        self.run("chunk install", work).await
    }

    /// Writes the content of a committed version anew, from a good copy of the same version.
    ///
    /// # Errors
    /// `VersionMismatch` when another version is committed or one is pending; else as
    /// [`Store::install`].
    pub async fn repair(&self, target: TargetId, chunk: ChunkId, copy: ChunkCopy) -> Result<()> {
        let work = install::repair(Arc::clone(&self.core), target, chunk, copy);
        self.run("chunk repair", work).await
    }

    /// Reads a byte range of a version; shorter at the chunk's end. Every block is verified.
    ///
    /// # Errors
    /// `ChunkNotFound` when there is no such version, it is a tombstone, or its epoch is below
    /// `floor`; `ChecksumMismatch` when a block has decayed; `WrongTarget`, `Corrupt`,
    /// `DiskFailed`.
    pub async fn read(
        &self,
        target: TargetId,
        chunk: ChunkId,
        which: Which,
        offset: u32,
        length: u32,
        floor: TruncateEpoch,
    ) -> Result<ChunkRead> {
        let key = Key { target, chunk };
        read::read(&self.core, Request { key, which, offset, length, floor }).await
    }

    /// Which parts of a byte range of a version are stored, at the grain of 4 KiB blocks.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub async fn extents(
        &self,
        target: TargetId,
        chunk: ChunkId,
        which: Which,
        (offset, length): (u32, u32),
        floor: TruncateEpoch,
    ) -> Result<ChunkExtents> {
        let key = Key { target, chunk };
        read::extents(&self.core, Request { key, which, offset, length, floor }).await
    }

    /// What is known of a chunk.
    ///
    /// # Errors
    /// `WrongTarget`, `Corrupt`, `DiskFailed`.
    pub async fn stat(&self, target: TargetId, chunk: ChunkId) -> Result<ChunkStat> {
        read::stat(&self.core, Key { target, chunk }).await
    }

    /// Every version that is neither committed nor discarded.
    pub fn pending(&self, target: TargetId) -> Vec<(ChunkId, ChunkVersion)> {
        let state = self.core.state.lock();
        let pending = state.targets.get(&target).into_iter().flat_map(|target| &target.pending);
        pending.map(|(chunk, pending)| (*chunk, pending.head.version)).collect()
    }

    /// The chunks in `[from, to)`, tombstones included, in order, at most `limit`.
    ///
    /// # Errors
    /// `WrongTarget`, `Corrupt`, `DiskFailed`.
    pub async fn list(
        &self,
        target: TargetId,
        from: ChunkId,
        to: ChunkId,
        limit: usize,
    ) -> Result<Vec<(ChunkId, ChunkStat)>> {
        read::list(&self.core, target, from, to, limit).await
    }

    /// Which versions are here of the chunks in `[from, to)`, tombstones included, in order, at most
    /// `limit`. The memory answers; the disk only for versions that are larger than the index
    /// keeps.
    ///
    /// # Errors
    /// `WrongTarget`, `Corrupt`, `DiskFailed`.
    pub async fn versions(
        &self,
        target: TargetId,
        from: ChunkId,
        to: ChunkId,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Held)>> {
        read::versions(&self.core, target, from, to, limit).await
    }

    /// The last write that is remembered of a client's channel.
    pub fn retry_record(
        &self,
        target: TargetId,
        client: ClientId,
        channel: ChannelId,
    ) -> Option<RetryRecord> {
        let state = self.core.state.lock();
        let slot = (target, client, channel);
        state.retries.get(&slot).map(|found| retries::record(&slot, found))
    }

    /// The last writes that are remembered of a target's channels, by client and channel, at most
    /// `limit`; those behind `after`.
    pub fn retry_records(
        &self,
        target: TargetId,
        after: Option<(ClientId, ChannelId)>,
        limit: usize,
    ) -> Vec<RetryRecord> {
        retries::page(&self.core.state.lock(), target, after, limit)
    }

    /// Drops all retry records of a target, durably.
    ///
    /// # Errors
    /// `WrongTarget`, `NoSpace`, `DiskFailed`.
    pub async fn forget_retries(&self, target: TargetId) -> Result<()> {
        retries::forget_target(&self.core, target).await
    }

    /// Takes retry records of another replica, durably; one with a lower sequence number than is
    /// known of its channel changes nothing. After an error some of them may have been taken.
    ///
    /// # Errors
    /// `WrongTarget`, `NoSpace`, `DiskFailed`.
    pub async fn remember_retries(
        &self,
        target: TargetId,
        records: Vec<RetryRecord>,
    ) -> Result<()> {
        retries::remember(&self.core, target, records).await
    }

    /// Drops the retry records of a client on all targets, durably.
    ///
    /// # Errors
    /// `NoSpace`, `DiskFailed`.
    pub async fn forget_client(&self, client: ClientId) -> Result<()> {
        let receiver = {
            let mut state = self.core.state.lock();
            state.check()?;
            // At once, so that cleaning does not copy them behind the record; and again when the
            // record is durable, for writes that were on their way.
            state.forget_client(client);
            let records = vec![Record::Forget { client }];
            let effect = Effect::Forgotten { client };
            Core::submit_waiting(&mut state, records, Vec::new(), effect)
        };
        self.core.durable(receiver).await
    }

    /// The highest version that a target ever held; `NONE` when the target is not here.
    pub fn version_max(&self, target: TargetId) -> ChunkVersion {
        let state = self.core.state.lock();
        state.targets.get(&target).map_or(ChunkVersion::NONE, |target| target.version_max)
    }

    /// How many chunks a target knows, tombstones included.
    pub fn chunk_count(&self, target: TargetId) -> u64 {
        let state = self.core.state.lock();
        state.targets.get(&target).map_or(0, |target| target.index.len() as u64)
    }

    /// How the disk is used.
    pub fn usage(&self) -> Usage {
        let free = self.core.space.free_blocks();
        let state = self.core.state.lock();
        let capacity = self.core.shape.blocks;
        let targets = state.targets.iter();
        Usage {
            capacity_bytes: capacity * BLOCK,
            used_bytes: (capacity - free) * BLOCK,
            free_bytes: self.core.space.writable_blocks() * BLOCK,
            backed_bytes: self.core.space.backed_writable_blocks() * BLOCK,
            metadata_bytes: state.log_bytes(),
            chunks: state.targets.values().map(|target| target.index.len() as u64).sum(),
            index_bytes: state.targets.values().map(|target| target.index.memory() as u64).sum(),
            targets: targets.map(|(id, target)| (*id, target.blocks * BLOCK)).collect(),
        }
    }

    /// The file system that gives the disk its space, without what the store leaves to others
    /// there; `None` when the disk has all its space.
    ///
    /// # Errors
    /// `DiskFailed`.
    pub async fn beneath(&self) -> Result<Option<kiln_disk::Beneath>> {
        self.core.beneath().await
    }

    /// Checks the store against itself: each block has exactly the owners that the descriptors say,
    /// and all counts are right. Changes wait meanwhile; data is not read.
    ///
    /// # Errors
    /// `Busy` when readers do not pause; `Corrupt`, `DiskFailed`.
    pub async fn verify(&self) -> Result<Verification> {
        self.core.verify().await
    }

    /// Writes what is still only in memory and ends the store: everything later gets `Cancelled`.
    ///
    /// # Errors
    /// `NoSpace`, `DiskFailed`.
    pub async fn close(&self) -> Result<()> {
        let _gate = self.core.gate.write().await;
        self.core.barrier().await?;
        // The second batch says that the first one is durable.
        self.core.barrier().await?;
        self.core.fail(&closed());
        self.core.committer.notify_one();
        self.core.space.changed.notify_one();
        Ok(())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.core.fail(&closed());
    }
}

fn check_state(state: &[u8]) -> Result<()> {
    if state.len() > crate::STATE_BYTES_MAX {
        return Err(Error::invalid(format!("a target state of {} bytes", state.len())));
    }
    Ok(())
}
