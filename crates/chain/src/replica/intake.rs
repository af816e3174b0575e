//! Which requests a replica takes, and which of them it knows already.

use super::machine::{Replica, Source, Work};
use super::{Action, Ticket, View};
use kiln_types::rehearsal::{mark, planted};
use kiln_types::{
    ChainVersion, ChunkId, ChunkVersion, Code, Error, Result, RetryKey, RetryRecord, TargetId,
};

/// Most writes that may wait for one chunk.
const QUEUE_MAX: usize = 256;
/// Most writes of one replica, waiting or in progress.
const WORKS_MAX: usize = 65_536;
/// Most callers that may wait for one write: a client's impatient retries.
const TICKETS_MAX: usize = 16;

impl Replica {
    /// Checks a request's chain version; who may ask what is up to the callers.
    pub(super) fn current_view(&self, chain_version: ChainVersion) -> Result<View> {
        let view = self.view.ok_or_else(|| {
            Error::new(Code::NotServing, format!("target {} is not in its chain", self.target))
        })?;
        if view.chain_version != chain_version && !planted("any chain version will do") {
            mark("a request names another chain version");
            let text = format!(
                "the chain is at version {}, the request at {chain_version}",
                view.chain_version
            );
            return Err(Error::new(Code::StaleChainVersion, text));
        }
        if !view.state.takes_writes() {
            let text = format!("target {} is {}", self.target, view.state);
            return Err(Error::new(Code::NotServing, text));
        }
        Ok(view)
    }

    pub(super) fn write(
        &mut self,
        ticket: Ticket,
        chain_version: ChainVersion,
        chunk: ChunkId,
        retry: Option<RetryKey>,
        remembered: Option<RetryRecord>,
    ) -> Result<()> {
        let view = self.current_view(chain_version)?;
        if !view.is_head {
            let text = format!("target {} is not the head", self.target);
            return Err(Error::new(Code::WrongTarget, text));
        }
        if let Some(key) = retry
            && self.join_retry(ticket, key, remembered)?
        {
            return Ok(());
        }
        if !view.enough_serving {
            let text = "too few replicas serve: writes wait for more";
            return Err(Error::new(Code::BelowMinServing, text));
        }
        self.admit(chunk)?;
        if let Some(key) = retry {
            self.channels.insert((key.client, key.channel), (key.sequence, chunk));
        }
        let none = ChunkVersion::NONE;
        let source = Source::Client(retry);
        self.enqueue(chunk, Work::new(source, chain_version, none, none, Some(ticket)));
        Ok(())
    }

    /// Whether the write is known already: then the ticket is answered, or waits for its outcome.
    fn join_retry(
        &mut self,
        ticket: Ticket,
        key: RetryKey,
        remembered: Option<RetryRecord>,
    ) -> Result<bool> {
        if let Some((sequence, chunk)) = self.channels.get(&(key.client, key.channel)).copied() {
            if sequence > key.sequence {
                return Err(duplicate(key));
            }
            if sequence < key.sequence {
                let text = format!("write {sequence} of the channel is still in progress");
                return Err(Error::new(Code::Busy, text));
            }
            let same = |work: &Work| work.source == Source::Client(Some(key));
            return self.join(chunk, ticket, same).map(|()| true);
        }
        match remembered {
            Some(known) if known.key.sequence > key.sequence => Err(duplicate(key)),
            Some(known) if known.key.sequence == key.sequence => {
                let version = answer_of(&known)?;
                let same = |work: &Work| work.version == version;
                if self.slots.get(&known.chunk).is_some_and(|slot| same(&slot.current)) {
                    return self.join(known.chunk, ticket, same).map(|()| true);
                }
                mark("a retry is answered from its record");
                self.answer(ticket, Ok(version));
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn join(&mut self, chunk: ChunkId, ticket: Ticket, same: impl Fn(&Work) -> bool) -> Result<()> {
        let slot = self.slots.get_mut(&chunk);
        let works =
            slot.into_iter().flat_map(|s| std::iter::once(&mut s.current).chain(&mut s.queue));
        let Some(work) = works.into_iter().find(|work| same(work)) else {
            return Err(Error::internal(format!("chunk {chunk}: a known write is not queued")));
        };
        if work.tickets.len() >= TICKETS_MAX {
            let text = "the write is in progress, and too many retries of it wait";
            return Err(Error::new(Code::Overloaded, text));
        }
        work.tickets.push(ticket);
        self.actions.push(Action::Joined { ticket });
        Ok(())
    }

    pub(super) fn forward_in(
        &mut self,
        chain_version: ChainVersion,
        from: TargetId,
        chunk: ChunkId,
        work: Work,
    ) -> Result<()> {
        self.require_predecessor(chain_version, from)?;
        if self.refused.get(&chunk) == Some(&work.version) {
            let text = format!("version {} was refused before", work.version);
            mark("a late copy of a refused version");
            return Err(Error::new(Code::NoSpace, text));
        }
        self.version_max = self.version_max.max(work.version);
        let known = self.slots.get(&chunk).is_some_and(|slot| {
            std::iter::once(&slot.current).chain(&slot.queue).any(|w| w.version == work.version)
        });
        if known {
            let version = work.version;
            return self.join(chunk, work.tickets[0], |work| work.version == version);
        }
        self.admit(chunk)?;
        self.enqueue(chunk, work);
        Ok(())
    }

    pub(super) fn require_predecessor(
        &self,
        chain_version: ChainVersion,
        from: TargetId,
    ) -> Result<View> {
        let view = self.current_view(chain_version)?;
        if view.predecessor != Some(from) && !planted("any chain version will do") {
            let text = format!("target {from} is not the predecessor of {}", self.target);
            return Err(Error::new(Code::WrongTarget, text));
        }
        Ok(view)
    }

    pub(super) fn admit(&self, chunk: ChunkId) -> Result<()> {
        let waiting = self.slots.get(&chunk).map_or(0, |slot| slot.queue.len());
        if waiting >= QUEUE_MAX || self.works >= WORKS_MAX {
            return Err(Error::new(Code::Overloaded, "too many writes wait at the replica"));
        }
        Ok(())
    }
}

/// What a write that is remembered is answered again. Of one before a write that was discarded only
/// that it is over is known.
pub(super) fn answer_of(known: &RetryRecord) -> Result<ChunkVersion> {
    match known.version {
        ChunkVersion::NONE => Err(duplicate(known.key)),
        version => Ok(version),
    }
}

fn duplicate(key: RetryKey) -> Error {
    let text = format!("write {} of its channel was answered long ago", key.sequence);
    Error::new(Code::DuplicateRequest, text)
}
