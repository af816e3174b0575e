//! One replica's part in chain replication (CRAQ: Terrace and Freedman, USENIX ATC 2009).
//!
//! A write enters at the head, which gives it a version; each replica prepares it durably and only then
//! passes it on; the last serving replica, the commit point, commits as it prepares; acknowledgements
//! run back, and each replica commits as they pass. Writes of one chunk go one after another, those of
//! different chunks do not wait for each other.
//!
//! Invariants:
//! - What a replica holds (committed or pending), each replica before it in the chain holds too: a write
//!   is passed on only once it is durable here. So whoever becomes the commit point may commit its
//!   pending version, and a version that was refused below was never stored below.
//! - A version is acknowledged only when every serving replica of the current view has it durable.
//! - A chunk has at most one version pending, and takes no new write before that is settled: after a
//!   restart or a change of the chain, a pending version is passed on again (or committed by the commit
//!   point), under its own version number.
//! - A write of a client that is known by its [`RetryKey`] is ordered once.
//!
//! A syncing replica stands behind the commit point, which fills it (see [`crate::resync`]): it takes
//! every write and commits it as it prepares it, since all before it hold it by then, but decides
//! nothing. A write whose base it lacks it refuses with `VersionMismatch`; the commit point then makes
//! the chunk the same there ([`Action::Sync`]) and passes the write on again.
//!
//! The state machine is pure: the shell feeds [`Event`]s to [`Replica::apply`] and carries out the
//! [`Action`]s; each action that has an outcome comes back as an event.

mod began;
mod intake;
mod machine;
mod repair;
mod syncing;

pub use machine::Replica;

use kiln_types::{
    Chain, ChainVersion, ChunkId, ChunkVersion, PublicState, Result, RetryKey, RetryRecord,
    TargetId,
};
use std::time::Duration;

/// Names a waiting caller; the shell knows whom. Also names the payload that came with the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A chain as one of its replicas sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The chain's version.
    pub chain_version: ChainVersion,
    /// This replica's state.
    pub state: PublicState,
    /// Whether writes enter here.
    pub is_head: bool,
    /// Whether writes are decided here: the last serving replica.
    pub is_commit_point: bool,
    /// Who passes writes to this replica.
    pub predecessor: Option<TargetId>,
    /// To whom this replica passes writes.
    pub successor: Option<TargetId>,
    /// Whether the successor is being filled by this replica.
    pub successor_syncs: bool,
    /// Where writes are decided.
    pub commit_point: Option<TargetId>,
    /// Whether enough replicas serve for new writes.
    pub enough_serving: bool,
}

impl View {
    /// How `target` sees `chain`; `None` when it is not a member.
    pub fn of(chain: &Chain, target: TargetId) -> Option<Self> {
        let state = chain.state_of(target)?;
        let before = chain.members.iter().take_while(|m| m.target != target);
        let successor = chain.successor_of(target);
        let successor_state = successor.and_then(|successor| chain.state_of(successor));
        Some(Self {
            chain_version: chain.version,
            state,
            is_head: chain.head() == Some(target),
            is_commit_point: chain.tail() == Some(target),
            predecessor: before.filter(|m| m.state.takes_writes()).map(|m| m.target).last(),
            successor,
            successor_syncs: successor_state == Some(PublicState::Syncing),
            commit_point: chain.tail(),
            enough_serving: chain.serving().count() >= chain.min_serving as usize,
        })
    }
}

impl View {
    /// Whether this replica commits what it has prepared without asking anyone: nobody is behind it,
    /// and it decides, or follows in all what the commit point does.
    pub fn commits_alone(&self) -> bool {
        let last = self.is_commit_point || self.state == PublicState::Syncing;
        last && self.successor.is_none()
    }
}

/// What the store has of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The committed version, a removal's included; [`ChunkVersion::NONE`] if nothing is known.
    pub committed: ChunkVersion,
    /// Whether the committed version has content, so that a write follows it. A removed chunk has none:
    /// what follows a removal follows [`ChunkVersion::NONE`].
    pub present: bool,
    /// The pending version.
    pub pending: Option<ChunkVersion>,
}

impl Versions {
    /// The version that the next write names as the one that it follows.
    pub fn base(&self) -> ChunkVersion {
        if self.present { self.committed } else { ChunkVersion::NONE }
    }
}

/// How a replica answers a read of a chunk so that no later read can contradict it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadRule {
    /// With what is committed here: nothing newer can be committed anywhere.
    Committed,
    /// A newer version is stored here and may be committed at the commit point. Ask it which version is:
    /// what is committed here answers if it is not older, the pending version if it is that one.
    Ask(TargetId),
    /// The chunk is being settled after a restart: try again soon.
    Wait,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The chain changed, or is known for the first time; `None`: this target is not in it.
    View(Option<View>),
    /// The store held this pending version when it was opened.
    Recovered {
        /// The chunk.
        chunk: ChunkId,
        /// Its pending version.
        version: ChunkVersion,
    },
    /// A client's write.
    Write {
        /// Who waits.
        ticket: Ticket,
        /// The chain version that the client believes.
        chain_version: ChainVersion,
        /// The chunk.
        chunk: ChunkId,
        /// Who asked.
        retry: Option<RetryKey>,
        /// What the store remembers of that client's channel.
        remembered: Option<RetryRecord>,
    },
    /// A write that the predecessor passed on.
    Forward {
        /// Who waits.
        ticket: Ticket,
        /// The chain version that the predecessor believes.
        chain_version: ChainVersion,
        /// The predecessor.
        from: TargetId,
        /// The chunk.
        chunk: ChunkId,
        /// The version that the head gave.
        version: ChunkVersion,
        /// The version that it follows.
        previous: ChunkVersion,
    },
    /// The predecessor fills this replica: the chunk becomes what came with the request.
    Install {
        /// Who waits.
        ticket: Ticket,
        /// The chain version that the predecessor believes.
        chain_version: ChainVersion,
        /// The predecessor.
        from: TargetId,
        /// The chunk.
        chunk: ChunkId,
        /// The version that it becomes.
        version: ChunkVersion,
    },
    /// This replica fills its successor, and the chunk is not known to be the same there.
    Sync {
        /// Who waits.
        ticket: Ticket,
        /// The chain version in which the successor is filled.
        chain_version: ChainVersion,
        /// The chunk.
        chunk: ChunkId,
    },
    /// The chunk is damaged here: a good copy is to be fetched, in turn with its writes.
    Repair {
        /// Who waits.
        ticket: Ticket,
        /// The chunk.
        chunk: ChunkId,
    },
    /// The outcome of [`Action::Begin`].
    Began {
        /// The chunk.
        chunk: ChunkId,
        /// What the store has.
        versions: Result<Versions>,
        /// What it remembers of the channel that the action named.
        remembered: Option<RetryRecord>,
    },
    /// The outcome of [`Action::Prepare`].
    Prepared {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
        /// An error means that nothing was stored.
        result: Result<()>,
    },
    /// The outcome of [`Action::Forward`].
    Forwarded {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
        /// The attempt, as the action named it.
        attempt: u32,
        /// An error of [`refuses`] means that the successor has not stored it.
        result: Result<()>,
    },
    /// The outcome of [`Action::Install`].
    Installed {
        /// The chunk.
        chunk: ChunkId,
        /// Whose copy it is.
        ticket: Ticket,
        /// An error means that nothing changed.
        result: Result<()>,
    },
    /// The outcome of [`Action::Repair`].
    Repaired {
        /// The chunk.
        chunk: ChunkId,
        /// An error means that it is as it was.
        result: Result<()>,
    },
    /// The outcome of [`Action::Sync`].
    Synced {
        /// The chunk.
        chunk: ChunkId,
        /// The attempt, as the action named it.
        attempt: u32,
        /// Whether the successor's committed version is this replica's now.
        result: Result<()>,
    },
    /// The pause of [`Action::Pause`] is over.
    PauseOver {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
        /// The attempt, as the action named it.
        attempt: u32,
    },
    /// The outcome of [`Action::Commit`].
    Committed {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
        /// An error means that the disk failed.
        result: Result<()>,
    },
    /// The outcome of [`Action::Discard`].
    Discarded {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Look up what the store has of a chunk, and what it remembers of a channel.
    Begin {
        /// The chunk.
        chunk: ChunkId,
        /// Whose channel.
        retry: Option<RetryKey>,
    },
    /// Make a pending version durable; with `commit`, committed at once.
    Prepare {
        /// The chunk.
        chunk: ChunkId,
        /// Whose payload it is.
        ticket: Ticket,
        /// The version.
        version: ChunkVersion,
        /// The committed version that it follows.
        previous: ChunkVersion,
        /// Whether this is the commit point.
        commit: bool,
    },
    /// Commit the pending version: visible when it is done, durable with a later write. Done before the
    /// actions behind it are begun.
    Commit {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// Drop the pending version, durably.
    Discard {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// Pass a pending version on: the payload of the request that brought it, or the stored content.
    Forward {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
        /// The committed version that it follows here.
        previous: ChunkVersion,
        /// The successor.
        to: TargetId,
        /// The chain version to name.
        chain_version: ChainVersion,
        /// Comes back in the outcome.
        attempt: u32,
    },
    /// Make the chunk durably what came with the request, if it is what the request expects.
    Install {
        /// The chunk.
        chunk: ChunkId,
        /// Whose copy it is.
        ticket: Ticket,
    },
    /// Write the committed version of the chunk anew, from the copy of a replica that has the same.
    Repair {
        /// The chunk.
        chunk: ChunkId,
    },
    /// Make the committed version of the chunk at the successor, whatever it has, the one here.
    Sync {
        /// The chunk.
        chunk: ChunkId,
        /// The successor.
        to: TargetId,
        /// The chain version to name.
        chain_version: ChainVersion,
        /// Comes back in the outcome.
        attempt: u32,
    },
    /// Wait, then report [`Event::PauseOver`].
    Pause {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
        /// Comes back in the event.
        attempt: u32,
        /// How long.
        duration: Duration,
    },
    /// Answer a caller.
    Answer {
        /// Who waits.
        ticket: Ticket,
        /// The version that the write has.
        result: Result<ChunkVersion>,
    },
    /// The caller waits for a write that is known already: its payload is not needed.
    Joined {
        /// Who waits.
        ticket: Ticket,
    },
    /// The chunk is settled: what was kept for it (payloads) may go.
    Settled {
        /// The chunk.
        chunk: ChunkId,
    },
}

/// Whether `code`, answered to a forward, says for sure that the successor has not stored the version
/// and never will: then it is dropped here too. An older build answers `Unsupported` to a change that it
/// does not know.
pub fn refuses(code: kiln_types::Code) -> bool {
    use kiln_types::Code as C;
    matches!(code, C::NoSpace | C::StaleEpoch | C::Invalid | C::FileTooLarge | C::Unsupported)
}
