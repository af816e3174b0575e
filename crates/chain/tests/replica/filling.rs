//! How a replica of the world is filled by its predecessor: the walk through its chunks, and copies.

use crate::world::{Caller, Copied, Flight, Plant, World};
use kiln_chain::replica::{Event, View};
use kiln_chain::resync;
use kiln_types::*;

/// Chunks on a page: few, so that there are several.
const PAGE: usize = 2;

/// Who fills whom: (node, life) and the chain version in which it does.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    node: usize,
    life: u64,
    to: usize,
    chain_version: ChainVersion,
    /// Tells this walk from others.
    session: u64,
    /// The first chunk of the page.
    from: u64,
    /// Chunks of the page that are to be made the same.
    left: Vec<ChunkId>,
    last: Option<ChunkId>,
}

#[derive(Clone, Debug)]
pub(crate) enum Stage {
    Start,
    Here,
    There(HeldPage, Vec<ChunkId>),
    Chunks,
    Retries,
    Done,
}

fn number(chunk: ChunkId) -> u64 {
    chunk.as_file().unwrap().2
}

impl World {
    pub(crate) fn begin_walk(&mut self, node: usize, old: Option<View>, new: Option<View>) {
        let changed = old.map(|view| view.chain_version) != new.map(|view| view.chain_version);
        let Some(view) = new.filter(|view| changed && view.successor_syncs) else { return };
        let walk = Walk {
            node,
            life: self.nodes[node].life,
            to: view.successor.unwrap().0 as usize,
            chain_version: view.chain_version,
            session: self.next_ticket(),
            from: 0,
            left: Vec::new(),
            last: None,
        };
        self.flights.push(Flight::Walk(walk, Stage::Start));
    }

    fn fills(&self, walk: &Walk) -> bool {
        let node = &self.nodes[walk.node];
        let view = node.replica.view();
        node.life == walk.life && view.is_some_and(|v| v.chain_version == walk.chain_version)
    }

    /// Whether a step of the walk reaches the replica that is filled, and is taken there.
    fn reaches(&mut self, walk: &Walk) -> bool {
        let lost = self.lost();
        let to = &self.nodes[walk.to];
        let taken = match to.replica.filled_by(walk.chain_version, TargetId(walk.node as u64)) {
            Err(error) if error.code() == Code::Busy => {
                self.options.plant == Some(Plant::ListsTooEarly)
            }
            result => result.is_ok(),
        };
        !lost && to.answers() && taken
    }

    /// Whether the replica that is filled knows of this walk: not after it restarted.
    fn is_known(&self, walk: &Walk) -> bool {
        self.nodes[walk.to].session == Some(walk.session)
    }

    pub(crate) fn walk(&mut self, mut walk: Walk, stage: Stage) {
        if !self.fills(&walk) {
            return;
        }
        let next = match stage {
            Stage::Here => {
                let replica = &self.nodes[walk.node].replica;
                let changing = replica.changing_since_before(walk.chain_version);
                let behind = changing.filter(|chunk| number(*chunk) >= walk.from);
                let skip = self.options.plant == Some(Plant::SkipsChanging);
                let changing = behind.filter(|_| !skip).collect();
                Stage::There(self.page(walk.node, walk.from), changing)
            }
            Stage::Chunks => {
                let Some(chunk) = walk.left.last().copied() else { return self.turn(walk) };
                let chain_version = walk.chain_version;
                let node = walk.node;
                let ticket = self.ticket(node, Caller::Walk(walk), 0, None);
                return self.apply(node, Event::Sync { ticket, chain_version, chunk });
            }
            stage if !self.reaches(&walk) => stage,
            Stage::Start => {
                self.nodes[walk.to].session = Some(walk.session);
                self.nodes[walk.to].store.retries.clear();
                Stage::Here
            }
            _ if !self.is_known(&walk) => {
                (walk.from, walk.session) = (0, self.next_ticket());
                Stage::Start
            }
            Stage::There(here, changing) => {
                let there = self.page(walk.to, walk.from);
                let compared = resync::compare(&here, &there, changing);
                walk.left = compared.differing;
                walk.last = compared.last;
                Stage::Chunks
            }
            Stage::Retries => {
                self.pass_retries(&walk);
                Stage::Done
            }
            Stage::Done => {
                self.nodes[walk.to].filled = Some(walk.chain_version);
                self.flights.push(Flight::Report(walk.to));
                // It may restart before it has reported.
                if self.chain.version != walk.chain_version {
                    return;
                }
                Stage::Done
            }
        };
        self.flights.push(Flight::Walk(walk, next));
    }

    fn turn(&mut self, mut walk: Walk) {
        let next = match walk.last {
            Some(last) => {
                walk.from = number(last) + 1;
                Stage::Here
            }
            None => Stage::Retries,
        };
        self.flights.push(Flight::Walk(walk, next));
    }

    pub(crate) fn walk_on(&mut self, mut walk: Walk, done: bool) {
        if done {
            walk.left.pop();
        }
        self.flights.push(Flight::Walk(walk, Stage::Chunks));
    }

    fn page(&self, node: usize, from: u64) -> HeldPage {
        let all = self.nodes[node].store.chunks.keys().filter(|chunk| number(**chunk) >= from);
        let mut chunks: Vec<_> = all.map(|chunk| (*chunk, self.held(node, chunk))).collect();
        let last = chunks.get(PAGE - 1).map(|(chunk, _)| *chunk);
        chunks.truncate(PAGE);
        HeldPage { chunks, last }
    }

    fn held(&self, node: usize, chunk: &ChunkId) -> Held {
        let stored = self.nodes[node].store.chunks.get(chunk).cloned().unwrap_or_default();
        Held { committed: stored.committed.0, pending: stored.pending.map(|pending| pending.0) }
    }

    fn pass_retries(&mut self, walk: &Walk) {
        if self.options.plant == Some(Plant::SkipsRetries) {
            return;
        }
        let records = self.nodes[walk.node].store.retries.clone();
        for (channel, record) in records {
            let pending = self.held(walk.node, &record.chunk).pending == Some(record.version);
            if pending && self.options.plant != Some(Plant::PassesUndecided) {
                continue;
            }
            let known = self.nodes[walk.to].store.retries.entry(channel).or_insert(record);
            if known.key.sequence < record.key.sequence {
                *known = record;
            }
        }
    }

    pub(crate) fn look_up(
        &mut self,
        to: usize,
        from: (usize, u64),
        chunk: ChunkId,
        chain_version: ChainVersion,
        attempt: u32,
    ) {
        let taken = self.nodes[to].replica.filled_by(chain_version, TargetId(from.0 as u64));
        let reached = !self.lost() && self.nodes[to].answers() && taken.is_ok();
        let found = reached.then(|| self.held(to, &chunk));
        self.flights.push(Flight::Found { from, chunk, attempt, to, chain_version, found });
    }

    pub(crate) fn found(
        &mut self,
        (node, life): (usize, u64),
        chunk: ChunkId,
        attempt: u32,
        to: usize,
        chain_version: ChainVersion,
        found: Option<Held>,
    ) {
        let caller = Caller::Filler(node, life, chunk, attempt);
        if self.nodes[node].life != life {
            return;
        }
        let copy = self.nodes[node].store.chunks.get(&chunk).cloned().unwrap_or_default().committed;
        let Some(expected) = found else {
            let result = Err(Error::from(Code::ConnectionLost));
            return self.flights.push(Flight::Reply { to: caller, result });
        };
        if expected == (Held { committed: copy.0, pending: None }) {
            return self.flights.push(Flight::Reply { to: caller, result: Ok(copy.0) });
        }
        let life = self.nodes[to].life;
        let copied = Copied { expected, copy };
        let install = |late| Flight::Install {
            to,
            life,
            from: caller.clone(),
            chunk,
            chain_version,
            copied,
            late,
        };
        if self.random.u8(..100) < self.options.loss {
            self.flights.push(install(true));
        }
        self.flights.push(install(false));
    }

    pub(crate) fn install(
        &mut self,
        to: usize,
        life: u64,
        from: Caller,
        chunk: ChunkId,
        chain_version: ChainVersion,
        copied: Copied,
    ) {
        let lost = self.lost() || self.nodes[to].life != life || !self.nodes[to].answers();
        let Caller::Filler(node, ..) = from else { unreachable!("only fillers install") };
        if lost {
            let result = Err(Error::from(Code::ConnectionLost));
            return self.flights.push(Flight::Reply { to: from, result });
        }
        let ticket = self.ticket(to, from, 0, None);
        self.nodes[to].copies.insert(ticket, copied);
        let (from, version) = (TargetId(node as u64), copied.copy.0);
        self.apply(to, Event::Install { ticket, chain_version, from, chunk, version });
    }

    pub(crate) fn carry_out_install(
        &mut self,
        node: usize,
        chunk: ChunkId,
        ticket: kiln_chain::replica::Ticket,
    ) {
        let Copied { expected, copy } = self.nodes[node].copies[&ticket];
        let held = self.held(node, &chunk);
        let blind = self.options.plant == Some(Plant::InstallsBlindly);
        let full = !self.calm && self.random.u8(..100) < self.options.full;
        let store = &mut self.nodes[node].store;
        let result = if full {
            Err(Error::from(Code::NoSpace))
        } else if held == (Held { committed: copy.0, pending: None }) {
            Ok(())
        } else if held == expected || blind {
            for stored in store.chunks.values_mut() {
                stored.undo = None;
            }
            if let Some(dropped) = held.pending {
                store.undo_retry(dropped);
            }
            let stored = store.chunks.entry(chunk).or_default();
            (stored.committed, stored.pending) = (copy, None);
            if copy.0 == ChunkVersion::NONE {
                store.chunks.remove(&chunk);
            }
            store.version_max = store.version_max.max(copy.0);
            Ok(())
        } else {
            Err(Error::from(Code::VersionMismatch))
        };
        self.apply(node, Event::Installed { chunk, ticket, result });
    }
}
