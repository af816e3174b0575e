//! The state machine of a replica.

use super::{Action, Event, ReadRule, Ticket, View, refuses};
use kiln_types::rehearsal::{mark, planted};
use kiln_types::{
    ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, Code, Consistency, Error, Result,
    RetryKey, Sequence, TargetId,
};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

/// Most chunks of which a refused version is remembered.
const REFUSED_MAX: usize = 16_384;
/// The pause after a forward failed; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// The state of one replica: see the module's documentation.
pub struct Replica {
    pub(super) target: TargetId,
    pub(super) view: Option<View>,
    /// The highest version seen: the head's next one is above it.
    pub(super) version_max: ChunkVersion,
    pub(super) slots: BTreeMap<ChunkId, Slot>,
    /// Which write of a channel waits or is in progress, and where.
    pub(super) channels: HashMap<(ClientId, ChannelId), (Sequence, ChunkId)>,
    /// The last version of a chunk that was refused here or behind: the predecessor drops it when it
    /// hears so, and a copy of the forward that comes late must not bring it back. Lives as long as the
    /// connections over which such a copy could come.
    pub(super) refused: HashMap<ChunkId, ChunkVersion>,
    pub(super) works: usize,
    pub(super) actions: Vec<Action>,
}

/// A chunk that is being written; an idle one has no slot.
pub(super) struct Slot {
    pub(super) current: Work,
    pub(super) phase: Phase,
    pub(super) queue: VecDeque<Work>,
}

pub(super) struct Work {
    pub(super) source: Source,
    /// The chain version under which it was taken.
    pub(super) accepted: ChainVersion,
    /// [`ChunkVersion::NONE`] until the head orders it.
    pub(super) version: ChunkVersion,
    pub(super) previous: ChunkVersion,
    pub(super) tickets: Vec<Ticket>,
    pub(super) attempt: u32,
    pub(super) pauses: u32,
    /// Why a replica behind this one refused it, while it is discarded.
    refusal: Option<Error>,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Source {
    Client(Option<RetryKey>),
    Predecessor,
    Recovered,
    /// A copy from the predecessor, which fills this replica.
    Install,
    /// This replica fills its successor.
    Sync,
    /// The chunk is damaged here.
    Repair,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    Beginning,
    Preparing {
        commit: bool,
    },
    /// Passed on, and waiting for the answer.
    Forwarding,
    /// Prepared, and waiting for a pause to end or for another view.
    Waiting,
    /// Decided, and being marked as committed.
    Committing,
    Discarding,
    /// Becoming a copy of the predecessor's chunk.
    Installing,
    /// The successor's chunk is made the same.
    Syncing,
    /// Being written anew.
    Repairing,
}

impl Replica {
    /// The replica `target`, whose store has seen versions up to `version_max`.
    pub fn new(target: TargetId, version_max: ChunkVersion) -> Self {
        Self {
            target,
            view: None,
            version_max,
            slots: BTreeMap::new(),
            channels: HashMap::new(),
            refused: HashMap::new(),
            works: 0,
            actions: Vec::new(),
        }
    }

    /// Takes an event and says what to do about it, in order.
    pub fn apply(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::View(view) => self.take_view(view),
            Event::Recovered { chunk, version } => self.recover(chunk, version),
            Event::Write { ticket, chain_version, chunk, retry, remembered } => {
                if let Err(error) = self.write(ticket, chain_version, chunk, retry, remembered) {
                    self.answer(ticket, Err(error));
                }
            }
            Event::Forward { ticket, chain_version, from, chunk, version, previous } => {
                let work =
                    Work::new(Source::Predecessor, chain_version, version, previous, Some(ticket));
                if let Err(error) = self.forward_in(chain_version, from, chunk, work) {
                    self.answer(ticket, Err(error));
                }
            }
            Event::Install { ticket, chain_version, from, chunk, version } => {
                if let Err(error) = self.install_in(ticket, chain_version, from, chunk, version) {
                    self.answer(ticket, Err(error));
                }
            }
            Event::Sync { ticket, chain_version, chunk } => {
                if let Err(error) = self.sync_in(ticket, chain_version, chunk) {
                    self.answer(ticket, Err(error));
                }
            }
            Event::Installed { chunk, ticket, result } => self.installed(chunk, ticket, result),
            Event::Synced { chunk, attempt, result } => self.synced(chunk, attempt, result),
            Event::Repair { ticket, chunk } => {
                if let Err(error) = self.repair_in(ticket, chunk) {
                    self.answer(ticket, Err(error));
                }
            }
            Event::Repaired { chunk, result } => self.repaired(chunk, result),
            Event::Began { chunk, versions, remembered } => {
                self.began(chunk, versions, remembered);
            }
            Event::Prepared { chunk, version, result } => self.prepared(chunk, version, result),
            Event::Forwarded { chunk, version, attempt, result } => {
                self.forwarded(chunk, version, attempt, result);
            }
            Event::PauseOver { chunk, version, attempt } => {
                if self.is_current(chunk, version, Phase::Waiting, attempt) {
                    self.decide(chunk);
                }
            }
            Event::Committed { chunk, version, result } => {
                let slot = self.slots.get(&chunk);
                // A commit of the version before, ahead of a prepare, has nobody waiting for it.
                let waits = |slot: &Slot| {
                    slot.phase == Phase::Committing && slot.current.version == version
                };
                if slot.is_some_and(waits) {
                    self.finish(chunk, result.map(|()| version));
                }
            }
            Event::Discarded { chunk, version } => {
                let slot = self.slots.get_mut(&chunk);
                let slot = slot.filter(|slot| slot.current.version == version);
                if let Some(refusal) = slot.and_then(|slot| slot.current.refusal.take()) {
                    self.finish(chunk, Err(refusal));
                }
            }
        }
        std::mem::take(&mut self.actions)
    }

    /// How a read of `chunk` is answered here now. A relaxed one shows what is committed here, unless that
    /// was forgotten at a restart: what is recovered as pending may have been acknowledged.
    pub fn read_rule(&self, chunk: &ChunkId, consistency: Consistency) -> ReadRule {
        let Some(slot) = self.slots.get(chunk) else { return ReadRule::Committed };
        let recovered = slot.current.source == Source::Recovered;
        if consistency == Consistency::Relaxed && !recovered {
            return ReadRule::Committed;
        }
        let undecided = match slot.phase {
            Phase::Beginning => recovered,
            Phase::Preparing { .. } => false,
            // What was prepared may wait for the successor's chunk.
            Phase::Syncing => slot.current.source != Source::Sync,
            Phase::Installing | Phase::Repairing => false,
            Phase::Forwarding | Phase::Waiting | Phase::Committing | Phase::Discarding => true,
        };
        match &self.view {
            _ if !undecided => ReadRule::Committed,
            // The commit point itself: an earlier one, or this one before it restarted, may have shown the
            // version to readers.
            Some(View { commit_point: Some(target), .. }) if *target != self.target => {
                ReadRule::Ask(*target)
            }
            _ => ReadRule::Wait,
        }
    }

    /// The view that it acts under.
    pub fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// Writes that wait or are in progress.
    pub fn works(&self) -> usize {
        self.works
    }

    fn take_view(&mut self, view: Option<View>) {
        if let (Some(old), Some(new)) = (&self.view, &view)
            && (new.chain_version < old.chain_version || old == new)
        {
            return;
        }
        self.view = view;
        if self.syncs() {
            // What was refused as a member that serves may be stored meanwhile.
            self.refused.clear();
        }
        let undecided: Vec<ChunkId> = self
            .slots
            .iter()
            .filter(|(_, slot)| {
                matches!(slot.phase, Phase::Forwarding | Phase::Waiting | Phase::Syncing)
            })
            .map(|(chunk, _)| *chunk)
            .collect();
        if !undecided.is_empty() && self.view.is_some_and(|view| view.is_head) {
            mark("a head takes a view with versions undecided");
        }
        for chunk in undecided {
            self.decide(chunk);
        }
    }

    fn recover(&mut self, chunk: ChunkId, version: ChunkVersion) {
        // One that is in progress is settled by that.
        if !self.slots.contains_key(&chunk) {
            let none = ChunkVersion::NONE;
            let work = Work::new(Source::Recovered, ChainVersion(0), version, none, None);
            self.enqueue(chunk, work);
        }
    }

    pub(super) fn enqueue(&mut self, chunk: ChunkId, work: Work) {
        self.works += 1;
        match self.slots.get_mut(&chunk) {
            Some(slot) => slot.queue.push_back(work),
            None => {
                let slot = Slot { current: work, phase: Phase::Beginning, queue: VecDeque::new() };
                self.slots.insert(chunk, slot);
                self.begin(chunk);
            }
        }
    }

    fn begin(&mut self, chunk: ChunkId) {
        let slot = self.slots.get(&chunk).expect("invariant: the caller found it");
        let retry = match slot.current.source {
            Source::Client(retry) => retry,
            Source::Predecessor | Source::Recovered => None,
            Source::Install => return self.install(chunk),
            Source::Sync => return self.sync(chunk),
            Source::Repair => return self.repair(chunk),
        };
        self.actions.push(Action::Begin { chunk, retry });
    }

    pub(super) fn prepare(&mut self, chunk: ChunkId) {
        let commit = self.view.is_some_and(|view| view.commits_alone());
        let slot = self.slots.get_mut(&chunk).expect("invariant: the caller found it");
        slot.phase = Phase::Preparing { commit };
        let Work { version, previous, .. } = slot.current;
        let ticket = *slot.current.tickets.first().expect("invariant: a request has a ticket");
        self.actions.push(Action::Prepare { chunk, ticket, version, previous, commit });
    }

    fn prepared(&mut self, chunk: ChunkId, version: ChunkVersion, result: Result<()>) {
        let Some(slot) = self.slots.get(&chunk) else { return };
        let Phase::Preparing { commit } = slot.phase else { return };
        if slot.current.version != version {
            return;
        }
        match result {
            Err(error) => self.finish(chunk, Err(error)),
            Ok(()) if commit => self.finish(chunk, Ok(version)),
            Ok(()) => self.decide(chunk),
        }
    }

    /// A prepared version: commit it, pass it on, or wait for a view that says which.
    pub(super) fn decide(&mut self, chunk: ChunkId) {
        if self.is_outdated(chunk) {
            return self.abandon(chunk);
        }
        let slot = self.slots.get_mut(&chunk).expect("invariant: the caller found it");
        slot.current.attempt += 1;
        let Work { version, previous, attempt, .. } = slot.current;
        let Some(view) = self.view.filter(|view| view.state.takes_writes()) else {
            slot.phase = Phase::Waiting;
            return self.shed(chunk);
        };
        match view.successor {
            Some(to) => {
                slot.phase = Phase::Forwarding;
                let chain_version = view.chain_version;
                let forward =
                    Action::Forward { chunk, version, previous, to, chain_version, attempt };
                self.actions.push(forward);
                let early = view.successor_syncs && planted("a syncing target is not waited for");
                if early || planted("commit before the successor has it") {
                    slot.phase = Phase::Committing;
                    self.actions.push(Action::Commit { chunk, version });
                }
            }
            None if view.commits_alone() => {
                slot.phase = Phase::Committing;
                self.actions.push(Action::Commit { chunk, version });
            }
            None => slot.phase = Phase::Waiting,
        }
    }

    /// Sends everyone who waits for `chunk` elsewhere: this replica does not take part for now.
    pub(super) fn shed(&mut self, chunk: ChunkId) {
        let slot = self.slots.get_mut(&chunk).expect("invariant: the caller found it");
        let mut tickets = std::mem::take(&mut slot.current.tickets);
        for work in slot.queue.drain(..) {
            self.works -= 1;
            if let Source::Client(Some(key)) = work.source {
                self.channels.remove(&(key.client, key.channel));
            }
            tickets.extend(work.tickets);
        }
        for ticket in tickets {
            let text = format!("target {} does not serve", self.target);
            self.answer(ticket, Err(Error::new(Code::NotServing, text)));
        }
    }

    fn forwarded(
        &mut self,
        chunk: ChunkId,
        version: ChunkVersion,
        attempt: u32,
        result: Result<()>,
    ) {
        if !self.is_current(chunk, version, Phase::Forwarding, attempt) {
            return;
        }
        let syncs = self.view.is_some_and(|view| view.successor_syncs);
        let slot = self.slots.get_mut(&chunk).expect("invariant: is_current found it");
        match result {
            Ok(()) => {
                slot.phase = Phase::Committing;
                self.actions.push(Action::Commit { chunk, version });
            }
            // Whatever it refuses the write for: what is good here decides.
            Err(error)
                if syncs && (error.code() == Code::VersionMismatch || refuses(error.code())) =>
            {
                mark("a write finds another base at the syncing target");
                self.sync(chunk);
            }
            Err(error) if refuses(error.code()) => {
                mark("a successor refuses a version");
                slot.phase = Phase::Discarding;
                slot.current.refusal = Some(error);
                self.actions.push(Action::Discard { chunk, version });
            }
            Err(_) => self.pause(chunk),
        }
    }

    pub(super) fn pause(&mut self, chunk: ChunkId) {
        let slot = self.slots.get_mut(&chunk).expect("invariant: the caller found it");
        slot.phase = Phase::Waiting;
        let duration = PAUSE_MAX.min(PAUSE_MIN * (1 << slot.current.pauses.min(8)));
        slot.current.pauses += 1;
        let Work { version, attempt, .. } = slot.current;
        self.actions.push(Action::Pause { chunk, version, attempt, duration });
    }

    pub(super) fn is_current(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        phase: Phase,
        attempt: u32,
    ) -> bool {
        self.slots.get(&chunk).is_some_and(|slot| {
            slot.phase == phase
                && slot.current.version == version
                && slot.current.attempt == attempt
        })
    }

    /// Ends the current write of a chunk and starts the next one.
    pub(super) fn finish(&mut self, chunk: ChunkId, result: Result<ChunkVersion>) {
        let Some(slot) = self.slots.get_mut(&chunk) else { return };
        let next = slot.queue.pop_front();
        let ended = match next {
            Some(next) => {
                slot.phase = Phase::Beginning;
                let ended = std::mem::replace(&mut slot.current, next);
                self.actions.push(Action::Settled { chunk });
                self.begin(chunk);
                ended
            }
            None => {
                let slot = self.slots.remove(&chunk).expect("invariant: found above");
                self.actions.push(Action::Settled { chunk });
                slot.current
            }
        };
        self.works -= 1;
        if let Source::Client(Some(key)) = ended.source {
            self.channels.remove(&(key.client, key.channel));
        }
        let result = match ended.source {
            Source::Predecessor | Source::Recovered if !self.syncs() => {
                self.remember_refusal(chunk, ended.version, result)
            }
            _ => result,
        };
        for ticket in ended.tickets {
            self.answer(ticket, result.clone());
        }
    }

    /// A refusal may be told to the predecessor only if it is remembered here: else it tries again.
    fn remember_refusal(
        &mut self,
        chunk: ChunkId,
        version: ChunkVersion,
        result: Result<ChunkVersion>,
    ) -> Result<ChunkVersion> {
        let known = self.refused.get(&chunk).copied();
        if result.as_ref().is_err_and(|error| refuses(error.code())) {
            if self.refused.len() >= REFUSED_MAX && known.is_none() {
                return Err(Error::new(Code::Overloaded, "too many refused writes to remember"));
            }
            self.refused.insert(chunk, known.unwrap_or(version).max(version));
        } else if result.is_ok() && known.is_some_and(|known| version > known) {
            // Copies of the refused one are now older than what is stored.
            self.refused.remove(&chunk);
        }
        result
    }

    pub(super) fn answer(&mut self, ticket: Ticket, result: Result<ChunkVersion>) {
        self.actions.push(Action::Answer { ticket, result });
    }
}

impl Work {
    pub(super) fn new(
        source: Source,
        accepted: ChainVersion,
        version: ChunkVersion,
        previous: ChunkVersion,
        ticket: Option<Ticket>,
    ) -> Self {
        let tickets = ticket.into_iter().collect();
        Self { source, accepted, version, previous, tickets, attempt: 0, pauses: 0, refusal: None }
    }
}
