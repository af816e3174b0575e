//! Writing damaged chunks anew, from replicas that have the same version whole.

use super::{Completeness, INCOMPLETE, Target};
use kiln_chain::replica::Event;
use kiln_chunk_store::{self as chunk_store, ChunkCopy, ChunkStat, Held};
use kiln_memory::Bytes;
use kiln_telemetry::metrics;
use kiln_types::rehearsal::mark;
use kiln_types::{ChunkId, ChunkVersion, Code, Error, Result};
use kiln_wire::{Copied, Name};
use std::sync::Arc;
use std::time::Duration;

/// Chunks that may be under repair at a time; further ones are found again.
const REPAIRS_MAX: usize = 16;
/// How long a repair may take, its turn included.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a replica may take to send its copy.
const COPY_TIMEOUT: Duration = Duration::from_secs(10);

impl Target {
    /// Begins the repair of a chunk that was found damaged, unless too many are under way.
    pub fn repair_soon(self: &Arc<Self>, chunk: ChunkId) {
        {
            let mut repairs = self.repairs.lock();
            if repairs.len() >= REPAIRS_MAX || !repairs.insert(chunk) {
                return;
            }
        }
        let target = Arc::clone(self);
        let work = async move {
            let deadline = target.env.deadline_after(REPAIR_TIMEOUT);
            let event = |ticket| Event::Repair { ticket, chunk };
            match target.wait_for(deadline, event, |_, _| {}).await {
                Ok(_) => {
                    mark("a damaged chunk is repaired");
                    metrics::STORAGE_REPAIRED.add(1);
                    tracing::warn!(target_id = %target.id, %chunk, "a damaged chunk was repaired");
                }
                Err(error) => {
                    tracing::error!(target_id = %target.id, %chunk, %error, "chunk is not repaired");
                }
            }
            target.repairs.lock().remove(&chunk);
        };
        self.env.spawn("chunk repair", work).detach();
    }

    /// What the store has of a chunk, unless that is damaged: then its repair begins.
    pub(super) async fn stat(self: &Arc<Self>, chunk: ChunkId) -> Result<ChunkStat> {
        let stat = self.store.stat(self.id, chunk);
        let stat = self.notice(self.pulse.of(&self.env, stat).await)?;
        if stat.damaged.is_none() {
            return Ok(stat);
        }
        self.repair_soon(chunk);
        let text = format!("chunk {chunk} of target {} is damaged and being repaired", self.id);
        Err(Error::new(Code::Busy, text))
    }

    /// Takes the copy of the first replica that has the version which is committed here.
    pub(super) async fn repair(&self, chunk: ChunkId) -> Result<()> {
        let stat = self.notice(self.store.stat(self.id, chunk).await)?;
        let Held { committed, pending } = stat.held();
        if stat.damaged == Some(ChunkVersion::NONE) {
            return self.leave(chunk).await;
        }
        if committed == ChunkVersion::NONE || pending.is_some() {
            let text = format!("chunk {chunk}: what is committed is not known here");
            return Err(Error::new(Code::Busy, text));
        }
        let length = stat.committed.map_or(kiln_types::CHUNK_BYTES_MAX, |stat| stat.length);
        let (Copied { epoch, checksums, .. }, bytes) =
            self.copy_of_another(chunk, committed, length).await?;
        let content = checksums.map(|checksums| (bytes, checksums));
        let copy = ChunkCopy { version: committed, epoch, content };
        self.notice(match stat.committed {
            Some(_) => self.store.repair(self.id, chunk, copy).await,
            None => {
                let expected = stat.held();
                let install = chunk_store::Install { chunk, expected, copy: Some(copy) };
                self.store.install(self.id, install).await
            }
        })
    }

    /// A version of a chunk, from the first other replica that has it whole and committed.
    pub(super) async fn copy_of_another(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        length: u32,
    ) -> Result<(Copied, Bytes)> {
        let name = Name { chain: self.chain, chain_version: self.chain_version(), chunk };
        let mut trouble = Error::new(Code::ChunkNotFound, "no other replica serves");
        for other in self.peers.others(self.chain, self.id) {
            let deadline = self.env.deadline_after(COPY_TIMEOUT);
            match self.peers.copy(other, name, length, deadline).await {
                Ok((copy, bytes)) if copy.version == version => return Ok((copy, bytes)),
                Ok((copy, _)) => {
                    let text =
                        format!("target {other} has version {}, not {version}", copy.version);
                    trouble = Error::new(Code::VersionMismatch, text);
                }
                Err(error) => trouble = error,
            }
        }
        Err(trouble)
    }

    /// Nobody can say what was lost of a chunk here: the target leaves its chain and is filled.
    async fn leave(&self, chunk: ChunkId) -> Result<()> {
        tracing::error!(target_id = %self.id, %chunk, "the disk lost a chunk's record: to be filled");
        self.store.set_target_state(self.id, INCOMPLETE.to_vec()).await?;
        *self.completeness.lock() = Completeness::Leaves;
        Ok(())
    }

    /// The committed version of a chunk, for a replica that lost it.
    ///
    /// # Errors
    /// `NotServing`, `StaleChainVersion`, `ChunkNotFound`, and what the store says.
    pub async fn copy(self: &Arc<Self>, name: Name) -> Result<(Copied, Bytes)> {
        self.check_soundness()?;
        self.check_serves(&self.state.lock(), name)?;
        let stat = self.stat(name.chunk).await?;
        let committed = stat.committed.ok_or_else(|| {
            Error::new(Code::ChunkNotFound, format!("chunk {} is not here", name.chunk))
        })?;
        self.copy_of(name.chunk, committed).await
    }
}
