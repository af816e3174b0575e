//! Being filled by the target before this one: the other end of [`kiln_chain::resync`].

use super::{Completeness, Target, serves};
use crate::insist::insist;
use kiln_chain::replica::{Event, View};
use kiln_chunk_store::{self as chunk_store, ChunkCopy};
use kiln_memory::Bytes;
use kiln_types::rehearsal::mark;
use kiln_types::{ChainVersion, Code, Deadline, Error, HeldPage, Monotonic, PublicState, Result};
use kiln_wire::{Fill, FillStep, Install};
use std::sync::Arc;
use std::time::Duration;

/// How long a target whose disk was full stays away from its chain: writers do not wait for it.
const FULL_TIME: Duration = Duration::from_secs(30);

/// The walk that fills this target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filled {
    chain_version: ChainVersion,
    walk: u64,
    done: bool,
}

impl Target {
    /// A step of the walk that fills this target.
    ///
    /// # Errors
    /// What [`kiln_chain::replica::Replica::filled_by`] says; `NotFound` when the walk that ends has
    /// not begun here, or not since this server restarted.
    pub async fn be_filled(&self, fill: Fill) -> Result<HeldPage> {
        let Fill { chain_version, from, step, .. } = fill;
        let check = || self.state.lock().replica.filled_by(chain_version, from);
        check()?;
        match step {
            FillStep::Start { walk } => {
                self.notice(self.store.forget_retries(self.id).await)?;
                check()?;
                let filled = Filled { chain_version, walk, done: false };
                self.state.lock().filled = Some(filled);
            }
            FillStep::Versions { from, to, limit } => {
                return self.versions(from, to, limit).await;
            }
            FillStep::Retries(records) => {
                self.notice(self.store.remember_retries(self.id, records).await)?;
            }
            FillStep::Done { walk } => {
                let mut state = self.state.lock();
                let filled = state.filled.as_mut();
                let filled = filled.filter(|f| f.walk == walk && f.chain_version == chain_version);
                let Some(filled) = filled else {
                    let text = format!("target {} knows nothing of this walk", self.id);
                    return Err(Error::new(Code::NotFound, text));
                };
                if !filled.done {
                    mark("a target is filled");
                    tracing::info!(target_id = %self.id, "filled: up-to-date");
                }
                filled.done = true;
            }
        }
        Ok(HeldPage::default())
    }

    /// Whether everything that the chain has is here, under the chain version that it acts under.
    pub(super) fn is_filled(&self) -> bool {
        let state = self.state.lock();
        let version = state.replica.view().map(|view| view.chain_version);
        state.filled.is_some_and(|filled| filled.done && Some(filled.chain_version) == version)
    }

    /// A target whose disk lost something takes no part as long as it is taken for one that serves; it
    /// does again when it was filled.
    pub(super) fn check_completeness(self: &Arc<Self>, view: Option<View>) -> Option<View> {
        let mut completeness = self.completeness.lock();
        let served = serves(view);
        let before = self.state.lock().replica.view().map(|view| view.state);
        match *completeness {
            Completeness::Complete => return view,
            Completeness::Left if served && before == Some(PublicState::Syncing) => {
                // The manager heard that it is filled.
                *completeness = Completeness::Complete;
                let target = Arc::clone(self);
                let note = async move {
                    let set = || target.store.set_target_state(target.id, Vec::new());
                    // Else it is filled once more after a restart.
                    let _ = insist(&target.env, "note that a target is complete", set).await;
                };
                self.env.spawn("complete target", note).detach();
            }
            _ => *completeness = if served { Completeness::Leaves } else { Completeness::Left },
        }
        view.filter(|_| *completeness != Completeness::Leaves)
    }

    /// Whether it was full lately, while it was being filled.
    pub(super) fn steps_aside(&self) -> bool {
        let full = self.state.lock().full_since;
        full.is_some_and(|since: Monotonic| self.env.now().since(since) < FULL_TIME)
    }

    /// A copy of a chunk, from the target that fills this one.
    ///
    /// # Errors
    /// As [`Self::be_filled`], and what the store says.
    pub async fn install(
        self: &Arc<Self>,
        install: Install,
        payload: Bytes,
        deadline: Deadline,
    ) -> Result<()> {
        let Install { name, from, expected, copy } = install;
        let version = copy.as_ref().map_or(chunk_store::Held::NOTHING.committed, |c| c.version);
        let copy = copy.map(|copy| ChunkCopy {
            version: copy.version,
            epoch: copy.epoch,
            content: copy.checksums.map(|checksums| (payload, checksums)),
        });
        let install = chunk_store::Install { chunk: name.chunk, expected, copy };
        let event = |ticket| Event::Install {
            ticket,
            chain_version: name.chain_version,
            from,
            chunk: name.chunk,
            version,
        };
        let keep = |state: &mut super::State, ticket| drop(state.copies.insert(ticket, install));
        self.wait_for(deadline, event, keep).await.map(drop)
    }

    /// A disk that has no room for what fills it keeps the target out of the chain for a while.
    pub(super) fn notice_full<T>(&self, result: Result<T>) -> Result<T> {
        if result.as_ref().is_err_and(|error| error.code() == Code::NoSpace) {
            let mut state = self.state.lock();
            if state.replica.view().is_some_and(|view| view.state == PublicState::Syncing) {
                mark("a disk is too full to be filled");
                tracing::warn!(target_id = %self.id, "the disk is too full to be filled");
                state.full_since = Some(self.env.now());
            }
        }
        result
    }
}
