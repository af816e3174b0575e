//! A damaged chunk is written anew from another replica's copy.

use super::machine::{Phase, Replica, Source, Work};
use super::{Action, Ticket};
use kiln_types::{ChainVersion, ChunkId, ChunkVersion, Result};

impl Replica {
    pub(super) fn repair_in(&mut self, ticket: Ticket, chunk: ChunkId) -> Result<()> {
        self.admit(chunk)?;
        let none = ChunkVersion::NONE;
        let accepted = self.view.map_or(ChainVersion(0), |view| view.chain_version);
        self.enqueue(chunk, Work::new(Source::Repair, accepted, none, none, Some(ticket)));
        Ok(())
    }

    /// Nothing else happens to the chunk here meanwhile: what is committed stays so, and no replica
    /// has committed anything newer, since that would have come through here or be pending here.
    pub(super) fn repair(&mut self, chunk: ChunkId) {
        if self.is_outdated(chunk) {
            return self.abandon(chunk);
        }
        let slot = self.slots.get_mut(&chunk).expect("invariant: the caller found it");
        slot.phase = Phase::Repairing;
        self.actions.push(Action::Repair { chunk });
    }

    pub(super) fn repaired(&mut self, chunk: ChunkId, result: Result<()>) {
        if self.slots.get(&chunk).is_some_and(|slot| slot.phase == Phase::Repairing) {
            self.finish(chunk, result.map(|()| ChunkVersion::NONE));
        }
    }
}
