//! What the replica's state machine says to do, done: in the store, and at the successor.

use super::{Incoming, NEIGHBOUR_TIMEOUT, Target};
use crate::insist::insist;
use crate::pulse::is_silence;
use kiln_chain::replica::{Action, Event, Ticket, Versions, refuses};
use kiln_chunk_store::{self as chunk_store, ChunkStat, Which};
use kiln_memory::Bytes;
use kiln_telemetry::{Phase, Trace, phase};
use kiln_types::{
    ChunkId, ChunkVersion, Code, Context, Error, Monotonic, Result, TargetId, TruncateEpoch,
};
use kiln_wire::{Change, Forward, Name, Update};
use std::sync::Arc;
use std::time::Duration;

/// How long a neighbour may take to say that it is there.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

impl Target {
    pub(super) async fn carry_out(self: &Arc<Self>, action: Action) -> Option<Event> {
        match action {
            Action::Begin { chunk, retry } => {
                let versions = self.stat(chunk).await.map(versions);
                Some(Event::Began { chunk, versions, remembered: self.remembered(retry) })
            }
            Action::Prepare { chunk, ticket, version, previous, commit } => {
                let result = self.prepare(chunk, ticket, version, previous, commit).await;
                Some(Event::Prepared { chunk, version, result })
            }
            Action::Commit { chunk, version } => {
                let commit = self.store.commit(self.id, chunk, version);
                let result = self.notice(self.pulse.of(&self.env, commit).await);
                Some(Event::Committed { chunk, version, result })
            }
            Action::Discard { chunk, version } => {
                // Nothing else happens to the chunk before: it is tried until it is done.
                let what = format!("drop of version {version} of chunk {chunk}");
                let discard = || self.store.discard(self.id, chunk, version);
                match self.notice(insist(&self.env, &what, discard).await) {
                    Ok(()) => Some(Event::Discarded { chunk, version }),
                    // The disk failed: the target leaves its chain, and the version with it.
                    Err(_) => None,
                }
            }
            Action::Forward { chunk, version, previous, to, chain_version, attempt } => {
                let name = Name { chain: self.chain, chain_version, chunk };
                let result = self.pass_on(name, version, previous, to).await;
                if let Err(error) = &result {
                    tracing::debug!(target_id = %self.id, %chunk, %version, %to, %error, "forward failed");
                }
                Some(Event::Forwarded { chunk, version, attempt, result })
            }
            Action::Install { chunk, ticket } => {
                let copy = self.state.lock().copies.remove(&ticket);
                let result = match copy {
                    Some(copy) => {
                        let install = self.store.install(self.id, copy);
                        self.notice(self.pulse.of(&self.env, install).await)
                    }
                    None => Err(Error::internal(format!("the copy of chunk {chunk} is gone"))),
                };
                Some(Event::Installed { chunk, ticket, result: self.notice_full(result) })
            }
            Action::Repair { chunk } => {
                Some(Event::Repaired { chunk, result: self.repair(chunk).await })
            }
            Action::Sync { chunk, to, chain_version, attempt } => {
                let result = self.make_same(chunk, to, chain_version).await;
                Some(Event::Synced { chunk, attempt, result })
            }
            Action::Pause { chunk, version, attempt, duration } => {
                let trace = self.trace_of(chunk, version);
                let pause = self.env.sleep(self.env.jittered(duration));
                trace.scope(phase(&self.env, Phase::Pause, pause)).await;
                Some(Event::PauseOver { chunk, version, attempt })
            }
            Action::Answer { .. } | Action::Settled { .. } | Action::Joined { .. } => None,
        }
    }

    async fn prepare(
        self: &Arc<Self>,
        chunk: ChunkId,
        ticket: Ticket,
        version: ChunkVersion,
        previous: ChunkVersion,
        commit: bool,
    ) -> Result<()> {
        let incoming = {
            let mut state = self.state.lock();
            let incoming = state.requests.get(&ticket).cloned().ok_or_else(|| {
                Error::internal(format!("the request of chunk {chunk} version {version} is gone"))
            })?;
            state.current.insert(chunk, (version, Arc::clone(&incoming)));
            incoming
        };
        let Incoming { update, payload, trace } = &*incoming;
        trace.leave(&self.env, Phase::Queue);
        if matches!(update.change, Change::Truncate { .. } | Change::Remove) {
            let stat = self.stat(chunk).await?;
            refuse_late_cut(update.epoch, stat.committed.as_ref())?;
        }
        let bytes = payload.clone();
        let change = match update.change.clone() {
            Change::Write { offset, checksums } => {
                chunk_store::Change::Write { offset, bytes, checksums }
            }
            Change::Truncate { length } => chunk_store::Change::Truncate { length },
            Change::Zero { offset, length } => chunk_store::Change::Zero { offset, length },
            Change::Remove => chunk_store::Change::Remove,
            Change::Replace { checksums } => chunk_store::Change::Replace { bytes, checksums },
        };
        let result = self.store.prepare(
            self.id,
            chunk_store::Update {
                chunk,
                version,
                previous,
                epoch: update.epoch,
                floor: update.floor,
                chunk_bytes: update.chunk_bytes,
                change,
                retry: update.retry,
                commit,
            },
        );
        let result =
            self.notice_full(self.notice(self.pulse.of(&self.env, trace.scope(result)).await));
        if let Err(error) = &result
            && !refuses(error.code())
        {
            tracing::warn!(target_id = %self.id, %chunk, %version, %error, "prepare failed");
        }
        result
    }

    async fn pass_on(
        self: &Arc<Self>,
        name: Name,
        version: ChunkVersion,
        previous: ChunkVersion,
        to: TargetId,
    ) -> Result<()> {
        let current = self.state.lock().current.get(&name.chunk).cloned();
        let incoming = match current {
            Some((current, incoming)) if current == version => incoming,
            _ => Arc::new(self.stored(name.chunk, version).await?),
        };
        let Incoming { update, payload, trace } = &*incoming;
        trace.about(|about| about.target = Some(to));
        let forward = Forward { name, from: self.id, version, previous, update: update.clone() };
        let begun = self.env.now();
        let deadline = self.env.deadline_after(NEIGHBOUR_TIMEOUT);
        let passed = self.peers.forward(to, forward, payload.clone(), deadline);
        let passed = trace.scope(phase(&self.env, Phase::Forward, passed)).await;
        self.listen(to, begun, &passed).await;
        passed
    }

    /// Finds out whether a neighbour that gave no answer is there: it may wait for the one behind it.
    async fn listen(&self, to: TargetId, begun: Monotonic, result: &Result<()>) {
        let silent = result.as_ref().is_err_and(is_silence);
        let heard = match silent {
            true => self.peers.ping(to, self.env.deadline_after(PING_TIMEOUT)).await,
            false => Ok(()),
        };
        self.silence.note(&self.env, to, begun, &heard);
    }

    /// The record of the request that brought a version in progress.
    fn trace_of(&self, chunk: ChunkId, version: ChunkVersion) -> Trace {
        let state = self.state.lock();
        let current = state.current.get(&chunk).filter(|(current, _)| *current == version);
        current.map(|(_, incoming)| incoming.trace.clone()).unwrap_or_default()
    }

    /// A pending version as the store has it, in the shape of a request.
    async fn stored(self: &Arc<Self>, chunk: ChunkId, version: ChunkVersion) -> Result<Incoming> {
        let stat = self.stat(chunk).await?;
        let pending = stat.pending.filter(|pending| pending.version == version);
        let pending = pending.ok_or_else(|| {
            Error::internal(format!("chunk {chunk}: version {version} is not pending"))
        })?;
        let (change, payload) = if pending.removed {
            (Change::Remove, Bytes::empty())
        } else {
            let (which, floor) = (Which::Version(version), TruncateEpoch(0));
            let read = self.read_store(chunk, which, 0, u32::MAX, floor).await;
            let read = read.context("reading a pending version to pass it on")?;
            (Change::Replace { checksums: read.checksums }, read.bytes)
        };
        let update = Update {
            change,
            epoch: pending.epoch,
            floor: TruncateEpoch(0),
            chunk_bytes: kiln_types::CHUNK_BYTES_MAX,
            retry: pending.retry,
        };
        Ok(Incoming { update, payload, trace: Trace::default() })
    }
}

fn versions(stat: ChunkStat) -> Versions {
    Versions {
        committed: stat.committed.as_ref().map_or(ChunkVersion::NONE, |stat| stat.version),
        present: stat.committed.as_ref().is_some_and(|stat| !stat.removed),
        pending: stat.pending.map(|stat| stat.version),
    }
}

/// A truncation or removal under the chunk's own epoch was carried out before, and a writer may have
/// renewed the chunk since: it stays as it is.
fn refuse_late_cut(epoch: TruncateEpoch, stored: Option<&chunk_store::VersionStat>) -> Result<()> {
    match stored {
        Some(stored) if stored.epoch >= epoch => Err(Error::new(
            Code::StaleEpoch,
            format!("the chunk is of epoch {}, the cut of epoch {epoch}", stored.epoch),
        )),
        _ => Ok(()),
    }
}
