//! Targets that move: a new member is made elsewhere and filled while the chain serves; then the old one
//! ceases to serve, leaves the chain, and is deleted.
//!
//! A move is a durable record; how far it is follows from its chain, so that a restarted manager goes on where
//! the one before it was. Who is removed from a chain has ceased to serve before (see
//! [`kiln_chain::membership::remove`]): its server is told to step out and says that it has, or its lease ends.
//! Until the old target is removed a move can be cancelled: then the new one leaves instead.

use crate::manager::Manager;
use crate::state::retire;
use kiln_chain::membership;
use kiln_rpc::{Heartbeat, Move, Reason, Retired, TargetOrder, TargetOrders};
use kiln_types::{Chain, LocalState, Monotonic, NodeId, PublicState, Target, TargetId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Moves at a time that fill a target on one server, or from one server.
const MOVES_PER_SERVER: usize = 4;
/// A disk that is there without a retired target for so long will not show it any more.
const FORGET_RETIRED: Duration = Duration::from_secs(600);
/// How often it is looked what could move.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is known while the manager runs.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    /// Since when targets are out of their chains, as far as this manager saw it.
    pub(crate) gone: BTreeMap<TargetId, Monotonic>,
    /// Since when the disks of retired targets are there without them.
    absent: BTreeMap<TargetId, Monotonic>,
    /// Bytes of each target, as reported last.
    pub(crate) bytes: BTreeMap<TargetId, u64>,
    /// Why targets that should move do not.
    pub(crate) stuck: BTreeMap<TargetId, String>,
    next_look: Monotonic,
}

/// The target that leaves the chain in the end.
fn leaver(what: &Move) -> Option<TargetId> {
    if what.cancelled { what.to } else { Some(what.from) }
}

impl Manager {
    /// Targets that are to take no part any more: enough others serve.
    pub(crate) fn leaving(&self) -> BTreeSet<TargetId> {
        let leaves = |what: &Move| {
            let leaver = leaver(what)?;
            let chain = self.state.routing.chains.get(&what.chain)?;
            let serves = |target| chain.state_of(target) == Some(PublicState::Serving);
            let leaves = match chain.state_of(leaver)? {
                PublicState::LastServing => false,
                _ if !what.cancelled => serves(what.to?) && membership::may_leave(chain, leaver),
                PublicState::Serving => membership::may_leave(chain, leaver),
                _ => true,
            };
            leaves.then_some(leaver)
        };
        self.state.moves.values().filter_map(leaves).collect()
    }

    /// What a server is to do with its targets.
    pub(crate) fn orders(&self, heartbeat: &Heartbeat) -> TargetOrders {
        let mut orders =
            TargetOrders { create: self.planned_orders(heartbeat), ..TargetOrders::default() };
        let reported: BTreeSet<_> = heartbeat.targets.iter().map(|report| report.target).collect();
        let routing = &self.state.routing;
        let new = self.state.moves.values().filter(|what| !what.cancelled).filter_map(|m| m.to);
        let new = new.filter_map(|target| routing.targets.get(&target));
        let missing = new.filter(|t| t.node == heartbeat.node && !reported.contains(&t.id));
        orders.create.extend(missing.map(|target| order(target, true)));
        if !self.state.moves.is_empty() {
            orders.leave = self.leaving().intersection(&reported).copied().collect();
        }
        // Wherever its disk is now.
        let retired = |target: &&TargetId| self.state.retired.contains_key(target);
        orders.remove = reported.iter().filter(retired).copied().collect();
        orders
    }

    /// Notes what a heartbeat says of sizes, and forgets retired targets that are gone.
    pub(crate) fn observe(&mut self, heartbeat: &Heartbeat, now: Monotonic) {
        let known = |target| self.state.routing.targets.contains_key(&target);
        for report in heartbeat.targets.iter().filter(|report| known(report.target)) {
            self.observed.bytes.insert(report.target, report.used_bytes);
        }
        if self.state.retired.is_empty() {
            return;
        }
        let there = |target| heartbeat.targets.iter().any(|report| report.target == target);
        let mine = self
            .state
            .retired
            .values()
            .filter(|retired| heartbeat.disks.iter().any(|disk| disk.disk == retired.disk));
        let mut forgotten = Vec::new();
        for retired in mine {
            if there(retired.target) {
                self.observed.absent.remove(&retired.target);
                continue;
            }
            let since = *self.observed.absent.entry(retired.target).or_insert(now);
            if now.since(since) >= FORGET_RETIRED {
                forgotten.push(retired.target);
            }
        }
        for target in forgotten {
            self.state.retired.remove(&target);
            self.observed.absent.remove(&target);
            self.changed = true;
        }
    }

    /// How many retired targets are being deleted: their disks are there, and have them.
    pub(crate) fn deleting(&self) -> usize {
        let there = |retired: &&Retired| {
            self.disks_of(retired.node).any(|disk| disk.disk == retired.disk)
                && self.state.routing.nodes.get(&retired.node).is_some_and(|node| node.alive)
                && !self.observed.absent.contains_key(&retired.target)
        };
        self.state.retired.values().filter(there).count()
    }

    /// Targets that leave and are out stay out: what is alive there does not join again.
    pub(crate) fn stays_out(&self, leaving: &BTreeSet<TargetId>, target: TargetId) -> bool {
        let state = || self.state.chain_of(target).and_then(|chain| chain.state_of(target));
        leaving.contains(&target) && state() != Some(PublicState::Serving)
    }

    /// Lets moves go on whose chains allow the next step.
    pub(crate) fn advance_moves(&mut self) {
        let moves: Vec<_> = self.state.moves.values().filter(|m| m.to.is_some()).copied().collect();
        for what in moves {
            let Some(chain) = self.state.routing.chains.get(&what.chain).cloned() else { continue };
            let (Some(to), Some(leaver)) = (what.to, leaver(&what)) else { continue };
            let serves = |target| chain.state_of(target) == Some(PublicState::Serving);
            if what.reason == Reason::Rebuild && !what.cancelled && serves(what.from) && !serves(to)
            {
                self.cancel_move(what.from, "the target is back");
                continue;
            }
            let ready = match what.cancelled {
                true => true,
                false => serves(to) && membership::may_leave(&chain, leaver),
            };
            if ready && let Ok(without) = membership::remove(&chain, leaver) {
                self.finish_move(what, leaver, without);
            }
        }
    }

    fn finish_move(&mut self, what: Move, leaver: TargetId, without: Chain) {
        tracing::info!(
            chain = %what.chain, version = %without.version, target = %leaver, reason = %what.reason,
            cancelled = what.cancelled, "a target has left its chain"
        );
        self.state.routing.chains.insert(what.chain, without);
        self.retire(leaver);
        self.state.moves.remove(&what.from);
        self.changed = true;
        let chains = BTreeSet::from([what.chain]);
        self.advance_chains(&chains, "a member left");
    }

    /// Ends a move: the target that was made for it leaves. Too late once the old one is removed.
    pub(crate) fn cancel_move(&mut self, from: TargetId, why: &str) {
        let Some(what) = self.state.moves.get_mut(&from) else { return };
        if what.to.is_none() {
            self.state.moves.remove(&from);
        } else if what.cancelled {
            return;
        } else {
            what.cancelled = true;
        }
        tracing::info!(target = %from, why, "a move is cancelled");
        self.changed = true;
    }

    /// Time has passed: what could move now?
    pub(crate) fn look_for_moves(&mut self, now: Monotonic) {
        self.note_gone(now);
        if now < self.observed.next_look {
            return;
        }
        self.observed.next_look = now.plus(LOOK_EVERY);
        if !self.knows_disks() {
            return;
        }
        self.drop_lost_moves(now);
        self.begin_moves(now);
        self.plan_lost_anew(now);
    }

    fn note_gone(&mut self, now: Monotonic) {
        let routing = &self.state.routing;
        let out = |target: &&Target| {
            let out_of = |chain: &Chain| {
                let state = chain.state_of(target.id);
                chain.head().is_some() && state == Some(PublicState::Offline)
            };
            let chain = self.state.chain_of(target.id);
            target.local == LocalState::Offline && chain.is_none_or(out_of)
        };
        let out: BTreeSet<_> = routing.targets.values().filter(out).map(|t| t.id).collect();
        self.observed.gone.retain(|target, _| out.contains(target));
        for target in out {
            self.observed.gone.entry(target).or_insert(now);
        }
    }

    /// After so long a target is rebuilt elsewhere; zero: never.
    pub(crate) fn rebuild_after(&self) -> Duration {
        let set = self.state.routing.settings.get("mgmtd.rebuild.after");
        let set = set.and_then(|text| kiln_config::parse_duration(text).ok());
        set.unwrap_or(self.options.rebuild_after)
    }

    /// Whether a target has been gone for so long that it is rebuilt elsewhere.
    pub(crate) fn is_lost(&self, target: TargetId, now: Monotonic) -> bool {
        let after = self.rebuild_after();
        let since = self.observed.gone.get(&target);
        !after.is_zero() && since.is_some_and(|since| now.since(*since) >= after)
    }

    /// Moves whose new place is lost or drained itself begin anew, to another one.
    fn drop_lost_moves(&mut self, now: Monotonic) {
        let lost = |what: &&Move| {
            let drained = self.state.drain_of(what.node, what.disk).is_some();
            !what.cancelled && (drained || what.to.is_some_and(|to| self.is_lost(to, now)))
        };
        let lost: Vec<_> = self.state.moves.values().filter(lost).map(|m| m.from).collect();
        for from in lost {
            self.cancel_move(from, "its new place is gone");
        }
        self.advance_moves();
    }

    /// Begins what is most urgent, a few at a time.
    fn begin_moves(&mut self, now: Monotonic) {
        self.observed.stuck.clear();
        let wanted = self.wanted_moves(now);
        if wanted.is_empty() {
            return;
        }
        let mut map = self.map();
        let mut busy: BTreeMap<NodeId, usize> = BTreeMap::new();
        let mut chains = BTreeSet::new();
        for what in self.state.moves.values().filter(|what| what.to.is_some()) {
            chains.insert(what.chain);
            self.ends_of(what).into_iter().for_each(|node| *busy.entry(node).or_default() += 1);
        }
        for (from, reason, onto) in wanted {
            let Some(target) = self.state.routing.targets.get(&from).cloned() else { continue };
            if chains.contains(&target.chain) {
                continue;
            }
            if self.state.chain_of(from).and_then(Chain::head).is_none() {
                self.observed.stuck.insert(from, "its chain does not serve".into());
                continue;
            }
            let Some(place) = map.choose(&target, onto) else {
                let why = match onto {
                    Some(disk) => format!(
                        "disk {disk} is not there, full, or not apart from the chain's others"
                    ),
                    None => "no disk in another failure domain has room for it".into(),
                };
                self.observed.stuck.insert(from, why);
                // One that waits for its turn may wait for its disk too.
                if onto.is_none_or(|disk| map.takes(disk)) {
                    self.cancel_move(from, "it fits nowhere");
                }
                continue;
            };
            let (node, disk) = (place.node, place.disk);
            let what =
                Move { from, chain: target.chain, node, disk, to: None, reason, cancelled: false };
            let ends = self.ends_of(&what);
            if ends.iter().any(|node| busy.get(node).is_some_and(|n| *n >= MOVES_PER_SERVER)) {
                continue;
            }
            ends.into_iter().for_each(|node| *busy.entry(node).or_default() += 1);
            chains.insert(target.chain);
            map.moved(&target, place);
            self.begin_move(what);
        }
    }

    /// Targets of planned chains that cannot be made where they should are planned elsewhere: they
    /// have no data yet.
    fn plan_lost_anew(&mut self, now: Monotonic) {
        if self.unpublished.is_empty() {
            return;
        }
        let mut map = self.map();
        let planned: Vec<_> = self.unpublished.values().flatten().copied().collect();
        for id in planned {
            let lost = self.is_lost(id, now) || self.drain_of_target(id).is_some();
            let Some(target) = self.state.routing.targets.get(&id).filter(|_| lost) else {
                continue;
            };
            let Some(place) = map.choose(target, None) else { continue };
            map.moved(target, place);
            let to = self.state.next_target;
            self.state.next_target = TargetId(to.0 + 1);
            tracing::info!(chain = %target.chain, from = %id, %to, "a target is planned elsewhere");
            let (node, disk, local) = (place.node, place.disk, LocalState::Offline);
            let new = Target { id: to, chain: target.chain, node, disk, local };
            self.replace_planned(id, new);
        }
    }

    fn replace_planned(&mut self, old: TargetId, new: Target) {
        let members = self.unpublished.entry(new.chain).or_default();
        members.iter_mut().filter(|id| **id == old).for_each(|id| *id = new.id);
        self.by_node.entry(new.node).or_default().push(new.id);
        self.state.routing.targets.insert(new.id, new);
        self.retire(old);
        self.changed = true;
    }

    /// A target that no chain has any more.
    fn retire(&mut self, id: TargetId) {
        let Some(target) = self.state.routing.targets.remove(&id) else { return };
        self.state.retired.insert(id, retire(&target));
        if let Some(mine) = self.by_node.get_mut(&target.node) {
            mine.retain(|other| *other != id);
        }
        self.state.moves.remove(&id);
        self.observed.gone.remove(&id);
        self.observed.bytes.remove(&id);
    }

    /// The servers that a move keeps busy: the one that is filled, and the one that fills.
    fn ends_of(&self, what: &Move) -> BTreeSet<NodeId> {
        let tail = self.state.routing.chains.get(&what.chain).and_then(Chain::tail);
        let filler = tail.and_then(|tail| self.state.routing.targets.get(&tail));
        filler.map(|target| target.node).into_iter().chain([what.node]).collect()
    }

    fn begin_move(&mut self, mut what: Move) {
        let to = self.state.next_target;
        let Some(chain) = self.state.routing.chains.get_mut(&what.chain) else { return };
        let Ok(with) = membership::add(chain, to) else { return };
        tracing::info!(
            chain = %what.chain, version = %with.version, from = %what.from, %to, node = %what.node,
            disk = %what.disk, reason = %what.reason, "a target moves"
        );
        *chain = with;
        self.state.next_target = TargetId(to.0 + 1);
        let Move { chain, node, disk, .. } = what;
        let target = Target { id: to, chain, node, disk, local: LocalState::Offline };
        self.state.routing.targets.insert(to, target);
        self.by_node.entry(node).or_default().push(to);
        what.to = Some(to);
        self.state.moves.insert(what.from, what);
        self.changed = true;
    }

    /// What should move and does not yet, most urgent first.
    fn wanted_moves(&self, now: Monotonic) -> Vec<(TargetId, Reason, Option<kiln_types::DiskId>)> {
        let mut wanted = Vec::new();
        let under_way =
            |target: &TargetId| self.state.moves.get(target).is_some_and(|what| what.to.is_some());
        for target in self.observed.gone.keys().filter(|t| self.is_lost(**t, now)) {
            let drained = self.drain_of_target(*target).is_some();
            if self.state.chain_of(*target).is_some() && !drained && !under_way(target) {
                wanted.push((*target, Reason::Rebuild, None));
            }
        }
        if !self.state.drains.is_empty() {
            for target in self.state.routing.targets.values() {
                let published = self.state.chain_of(target.id).is_some();
                if let Some(drain) = self.state.drain_of(target.node, target.disk)
                    && published
                    && !under_way(&target.id)
                {
                    wanted.push((target.id, Reason::Drain, drain.onto));
                }
            }
        }
        let queued = self.state.moves.values().filter(|what| what.to.is_none());
        let new = queued.filter(|what| !wanted.iter().any(|(from, ..)| *from == what.from));
        let queued: Vec<_> = new.map(|what| (what.from, what.reason, Some(what.disk))).collect();
        wanted.extend(queued);
        wanted
    }

    /// The drain that a target is part of.
    pub(crate) fn drain_of_target(&self, target: TargetId) -> Option<&kiln_rpc::Drain> {
        let target = self.state.routing.targets.get(&target)?;
        self.state.drain_of(target.node, target.disk)
    }
}

pub(crate) fn order(target: &Target, incomplete: bool) -> TargetOrder {
    let Target { id, chain, disk, .. } = *target;
    TargetOrder { target: id, chain, disk, incomplete }
}
