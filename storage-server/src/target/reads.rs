//! How reads are answered, so that no later read can contradict them.

use super::{Completeness, NEIGHBOUR_TIMEOUT, State, Target};
use kiln_chain::replica::ReadRule;
use kiln_chunk_store::{self as chunk_store, ChunkExtents, ChunkRead, Which};
use kiln_telemetry::{Phase, phase};
use kiln_types::rehearsal::{mark, planted};
use kiln_types::{
    ChunkId, ChunkVersion, Code, Consistency, Deadline, Error, PublicState, Result, TargetId,
    TruncateEpoch,
};
use kiln_wire::Name;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Target {
    /// Reads what is committed of a range (offset, length): so that no later read can contradict it, or
    /// relaxed, as this replica has it.
    ///
    /// # Errors
    /// `ChunkNotFound` for a hole; `StaleChainVersion`, `NotServing` and `Busy` send the caller
    /// elsewhere or let it try again.
    pub async fn read(
        self: &Arc<Self>,
        name: Name,
        (offset, length): (u32, u32),
        floor: TruncateEpoch,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<ChunkRead> {
        let look = |which| self.read_store(name.chunk, which, offset, length, floor);
        self.shown(name, consistency, deadline, look).await
    }

    /// Tells which parts of a range (offset, length) are stored: of the version that [`Self::read`] would
    /// read.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn extents(
        self: &Arc<Self>,
        name: Name,
        range: (u32, u32),
        floor: TruncateEpoch,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<ChunkExtents> {
        let look = |which| async move {
            let extents = self.store.extents(self.id, name.chunk, which, range, floor);
            let extents = self.notice(self.pulse.of(&self.env, extents).await);
            self.mend(name.chunk, extents)
        };
        self.shown(name, consistency, deadline, look).await
    }

    /// What `look` sees of the version that may be shown.
    async fn shown<T, F>(
        self: &Arc<Self>,
        name: Name,
        consistency: Consistency,
        deadline: Deadline,
        look: impl Fn(Which) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let chunk = name.chunk;
        match self.read_rule(name, consistency)? {
            ReadRule::Committed => look(Which::Committed).await,
            ReadRule::Wait => {
                mark("a read waits for a chunk to be settled");
                Err(settling(chunk))
            }
            ReadRule::Ask(commit_point) => {
                mark("a read asks the commit point");
                let decided = self.ask_committed(name, commit_point, deadline).await?;
                let stat = self.stat(chunk).await?;
                let version_of = |stat: &Option<chunk_store::VersionStat>| {
                    stat.as_ref().map_or(ChunkVersion::NONE, |stat| stat.version)
                };
                if planted("replicas show what is pending")
                    && let Some(pending) = &stat.pending
                {
                    return look(Which::Version(pending.version)).await;
                }
                if version_of(&stat.committed) >= decided {
                    return look(Which::Committed).await;
                }
                if version_of(&stat.pending) != decided {
                    return Err(settling(chunk));
                }
                if stat.pending.is_some_and(|pending| pending.removed) {
                    mark("a read finds a removal that is decided elsewhere");
                    let text = format!("target {}: no chunk {chunk}", self.id);
                    return Err(Error::new(Code::ChunkNotFound, text));
                }
                match look(Which::Version(decided)).await {
                    // Committed and replaced meanwhile.
                    Err(error) if error.code() == Code::ChunkNotFound => {
                        look(Which::Committed).await
                    }
                    result => result,
                }
            }
        }
    }

    /// The committed version of a chunk, told by the commit point.
    ///
    /// # Errors
    /// `WrongTarget` when this is not the commit point, `Busy` while the chunk is being settled.
    pub async fn committed_version(self: &Arc<Self>, name: Name) -> Result<ChunkVersion> {
        if self.read_rule(name, Consistency::Linearizable)? != ReadRule::Committed {
            return Err(settling(name.chunk));
        }
        let is_commit_point =
            self.state.lock().replica.view().is_some_and(|view| view.is_commit_point);
        if !is_commit_point {
            let text = format!("target {} is not the commit point of its chain", self.id);
            return Err(Error::new(Code::WrongTarget, text));
        }
        let stat = self.stat(name.chunk).await?;
        Ok(stat.committed.map_or(ChunkVersion::NONE, |committed| committed.version))
    }

    fn read_rule(&self, name: Name, consistency: Consistency) -> Result<ReadRule> {
        self.check_soundness()?;
        let state = self.state.lock();
        self.check_serves(&state, name)?;
        Ok(state.replica.read_rule(&name.chunk, consistency))
    }

    /// A target that has told the manager of its failure serves nothing more: the chain may be another
    /// one before that is heard here.
    pub(super) fn check_soundness(&self) -> Result<()> {
        let leaves = *self.completeness.lock() == Completeness::Leaves;
        match (leaves || self.failed.load(Ordering::Relaxed)) && !planted("a failed target serves")
        {
            true => {
                mark("a read finds a failed target");
                let text = format!("target {} leaves its chain", self.id);
                Err(Error::new(Code::NotServing, text))
            }
            false => Ok(()),
        }
    }

    /// Whether this target serves, under the version of the chain that the request names.
    pub(super) fn check_serves(&self, state: &State, name: Name) -> Result<()> {
        let view = state.replica.view().filter(|view| view.state == PublicState::Serving);
        let Some(view) = view else {
            let text = format!("target {} does not serve", self.id);
            return Err(Error::new(Code::NotServing, text));
        };
        if view.chain_version != name.chain_version && !planted("any chain version will do") {
            let text = format!(
                "chain {} is at version {}, the request at {}",
                self.chain, view.chain_version, name.chain_version
            );
            return Err(Error::new(Code::StaleChainVersion, text));
        }
        Ok(())
    }

    pub(super) async fn read_store(
        self: &Arc<Self>,
        chunk: ChunkId,
        which: Which,
        offset: u32,
        length: u32,
        floor: TruncateEpoch,
    ) -> Result<ChunkRead> {
        let read = self.store.read(self.id, chunk, which, offset, length, floor);
        let result = self.notice(self.pulse.of(&self.env, read).await);
        self.mend(chunk, result)
    }

    /// Has a chunk repaired of which damage was seen.
    fn mend<T>(self: &Arc<Self>, chunk: ChunkId, result: Result<T>) -> Result<T> {
        result.map_err(|error| match is_damage(&error) {
            // Another replica has it.
            true => {
                self.repair_soon(chunk);
                Error::new(Code::ChecksumMismatch, error.to_string())
            }
            false => error,
        })
    }

    async fn ask_committed(
        &self,
        name: Name,
        commit_point: TargetId,
        deadline: Deadline,
    ) -> Result<ChunkVersion> {
        let latest = self.env.deadline_after(NEIGHBOUR_TIMEOUT).min(deadline);
        let asked = self.peers.committed_version(commit_point, name, latest);
        phase(&self.env, Phase::CommitPoint, asked).await
    }
}

fn settling(chunk: ChunkId) -> Error {
    Error::new(Code::Busy, format!("chunk {chunk} is being settled"))
}

/// Whether what is stored is not what was written.
pub(super) fn is_damage(error: &Error) -> bool {
    matches!(error.code(), Code::ChecksumMismatch | Code::Corrupt)
}
