//! What becomes of a request when it is known what the store has of its chunk.

use super::intake::answer_of;
use super::machine::{Phase, Replica, Source, Work};
use super::{Action, Versions};
use kiln_types::rehearsal::{mark, planted};
use kiln_types::{ChainVersion, ChunkId, ChunkVersion, Code, Error, Result, RetryRecord};

impl Replica {
    pub(super) fn began(
        &mut self,
        chunk: ChunkId,
        versions: Result<Versions>,
        remembered: Option<RetryRecord>,
    ) {
        if self.slots.get(&chunk).is_none_or(|slot| slot.phase != Phase::Beginning) {
            return;
        }
        if self.is_outdated(chunk) {
            return self.abandon(chunk);
        }
        let Some(slot) = self.slots.get(&chunk) else { return };
        let versions = match versions {
            Ok(versions) => versions,
            Err(error) => return self.finish(chunk, Err(error)),
        };
        match slot.current.source {
            Source::Recovered => self.began_recovered(chunk, versions),
            Source::Client(retry) => {
                let known = remembered.filter(|known| Some(known.key) == retry);
                self.began_client(chunk, versions, known);
            }
            Source::Predecessor => self.began_forwarded(chunk, versions),
            Source::Install | Source::Sync | Source::Repair => {}
        }
    }

    fn began_recovered(&mut self, chunk: ChunkId, versions: Versions) {
        let slot = self.slots.get_mut(&chunk).expect("invariant: the caller found it");
        let version = slot.current.version;
        if versions.pending == Some(version) {
            mark("a recovered version is settled");
            slot.current.previous = versions.base();
            self.decide(chunk);
        } else {
            self.finish(chunk, Ok(version));
        }
    }

    fn began_client(&mut self, chunk: ChunkId, versions: Versions, known: Option<RetryRecord>) {
        // The predecessor's copy of the same write was ahead of it in the queue.
        if let Some(known) = known {
            return self.finish(chunk, answer_of(&known));
        }
        let Some(view) = self.view.filter(|view| view.is_head && view.state.takes_writes()) else {
            let text = format!("target {} is not the head any more", self.target);
            return self.finish(chunk, Err(Error::new(Code::WrongTarget, text)));
        };
        if let Some(pending) = versions.pending {
            let text = format!("chunk {chunk}: version {pending} is pending and not settled");
            return self.finish(chunk, Err(Error::new(Code::Busy, text)));
        }
        let version_max = self.version_max.max(versions.committed);
        if version_max.chain > view.chain_version {
            let text = format!(
                "target {} holds version {version_max}, newer than its chain's version {}",
                self.target, view.chain_version
            );
            return self.finish(chunk, Err(Error::corrupt(text)));
        }
        let mut version = version_max.successor_in(view.chain_version);
        if planted("two heads give the same version") {
            let ChunkVersion { chain, counter } = versions.committed;
            version = ChunkVersion { chain: chain.max(ChainVersion(1)), counter: counter + 1 };
        }
        if planted("versions restart after a removal") && !versions.present {
            version = ChunkVersion::NONE.successor_in(view.chain_version);
        }
        self.version_max = self.version_max.max(version);
        let slot = self.slots.get_mut(&chunk).expect("invariant: the caller found it");
        slot.current.version = version;
        slot.current.previous = versions.base();
        self.prepare(chunk);
    }

    fn began_forwarded(&mut self, chunk: ChunkId, versions: Versions) {
        let slot = self.slots.get_mut(&chunk).expect("invariant: the caller found it");
        let Work { version, previous, .. } = slot.current;
        if versions.committed >= version {
            return self.finish(chunk, Ok(version));
        }
        match versions.pending {
            Some(pending) if pending == version => return self.decide(chunk),
            // The predecessor has committed it: only our own mark was lost.
            Some(pending) if pending == previous => {
                mark("a forward tells that the version before is committed");
                self.actions.push(Action::Commit { chunk, version: pending });
            }
            None if versions.base() == previous => {}
            other => {
                let text = format!(
                    "chunk {chunk} of target {}: version {version} follows {previous}, but {} is \
                     committed and {other:?} is pending here",
                    self.target, versions.committed
                );
                return self.finish(chunk, Err(Error::new(Code::VersionMismatch, text)));
            }
        }
        self.prepare(chunk);
    }
}
