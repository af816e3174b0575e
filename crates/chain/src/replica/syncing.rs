//! Filling a replica: the part of the commit point, and that of the syncing one behind it.

use super::machine::{Phase, Replica, Source, Work};
use super::{Action, Ticket};
use kiln_types::{ChainVersion, ChunkId, ChunkVersion, Code, Error, PublicState, Result, TargetId};

impl Replica {
    /// The chunks that are being changed by requests taken before chain version `version`. What the
    /// store says of them is not final: the commit point compares them once more, and a replica that
    /// is filled does not say what it holds before there are none.
    pub fn changing_since_before(
        &self,
        version: ChainVersion,
    ) -> impl Iterator<Item = ChunkId> + '_ {
        let before = move |work: &Work| work.accepted < version;
        self.slots.iter().filter(move |(_, slot)| before(&slot.current)).map(|(chunk, _)| *chunk)
    }

    /// Checks that the predecessor `from` may fill this replica now.
    ///
    /// # Errors
    /// `StaleChainVersion`, `NotServing`, `WrongTarget`; `Busy` while changes that were begun before are
    /// under way.
    pub fn filled_by(&self, chain_version: ChainVersion, from: TargetId) -> Result<()> {
        let view = self.require_predecessor(chain_version, from)?;
        if view.state != PublicState::Syncing {
            let text = format!("target {} is {} and not to be filled", self.target, view.state);
            return Err(Error::new(Code::WrongTarget, text));
        }
        match self.changing_since_before(chain_version).next() {
            None => Ok(()),
            Some(chunk) => {
                let text = format!("an earlier change of chunk {chunk} is under way");
                Err(Error::new(Code::Busy, text))
            }
        }
    }

    pub(super) fn syncs(&self) -> bool {
        self.view.is_some_and(|view| view.state == PublicState::Syncing)
    }

    /// Whether the current work of a chunk must not go on under this view. A syncing replica drops what
    /// it began before: the predecessor decides what becomes of the chunk.
    pub(super) fn is_outdated(&self, chunk: ChunkId) -> bool {
        let Some(slot) = self.slots.get(&chunk) else { return false };
        let bound = matches!(slot.current.source, Source::Install | Source::Sync) || self.syncs();
        bound && self.view.is_none_or(|view| view.chain_version != slot.current.accepted)
    }

    pub(super) fn abandon(&mut self, chunk: ChunkId) {
        let text = format!("the chain of target {} has changed", self.target);
        self.finish(chunk, Err(Error::new(Code::StaleChainVersion, text)));
    }

    pub(super) fn install_in(
        &mut self,
        ticket: Ticket,
        chain_version: ChainVersion,
        from: TargetId,
        chunk: ChunkId,
        version: ChunkVersion,
    ) -> Result<()> {
        self.filled_by(chain_version, from)?;
        self.admit(chunk)?;
        self.version_max = self.version_max.max(version);
        let none = ChunkVersion::NONE;
        self.enqueue(chunk, Work::new(Source::Install, chain_version, none, none, Some(ticket)));
        Ok(())
    }

    pub(super) fn sync_in(
        &mut self,
        ticket: Ticket,
        chain_version: ChainVersion,
        chunk: ChunkId,
    ) -> Result<()> {
        if !self.current_view(chain_version)?.successor_syncs {
            let text = format!("target {} has nobody to fill", self.target);
            return Err(Error::new(Code::WrongTarget, text));
        }
        self.admit(chunk)?;
        let none = ChunkVersion::NONE;
        self.enqueue(chunk, Work::new(Source::Sync, chain_version, none, none, Some(ticket)));
        Ok(())
    }

    pub(super) fn install(&mut self, chunk: ChunkId) {
        if self.is_outdated(chunk) {
            return self.abandon(chunk);
        }
        let slot = self.slots.get_mut(&chunk).expect("invariant: the caller found it");
        slot.phase = Phase::Installing;
        let ticket = *slot.current.tickets.first().expect("invariant: a request has a ticket");
        self.actions.push(Action::Install { chunk, ticket });
    }

    pub(super) fn installed(&mut self, chunk: ChunkId, ticket: Ticket, result: Result<()>) {
        let waits = self.slots.get(&chunk).is_some_and(|slot| {
            slot.phase == Phase::Installing && slot.current.tickets.first() == Some(&ticket)
        });
        if waits {
            self.finish(chunk, result.map(|()| ChunkVersion::NONE));
        }
    }

    /// Makes the chunk the same at the successor: for its own sake, or so that a write can follow.
    pub(super) fn sync(&mut self, chunk: ChunkId) {
        let view = self.view.filter(|view| view.successor_syncs);
        let (Some(view), false) = (view, self.is_outdated(chunk)) else {
            return self.abandon(chunk);
        };
        let to = view.successor.expect("invariant: a successor that syncs");
        let slot = self.slots.get_mut(&chunk).expect("invariant: the caller found it");
        slot.phase = Phase::Syncing;
        slot.current.attempt += 1;
        let (chain_version, attempt) = (view.chain_version, slot.current.attempt);
        self.actions.push(Action::Sync { chunk, to, chain_version, attempt });
    }

    pub(super) fn synced(&mut self, chunk: ChunkId, attempt: u32, result: Result<()>) {
        let slot = self.slots.get_mut(&chunk);
        let slot =
            slot.filter(|slot| slot.phase == Phase::Syncing && slot.current.attempt == attempt);
        let Some(slot) = slot else { return };
        if slot.current.source == Source::Sync {
            return self.finish(chunk, result.map(|()| ChunkVersion::NONE));
        }
        let first = slot.current.pauses == 0;
        slot.current.pauses += 1;
        match result {
            Ok(()) if first => self.decide(chunk),
            _ => self.pause(chunk),
        }
    }
}
