//! What operators order: drains, rebalancing, more chains, the recovery of a chain.

use crate::bootstrap::FIRST_TABLE;
use crate::manager::{Answer, Manager};
use kiln_chain::membership;
use kiln_rpc::{
    DiskState, Drain, DrainProgress, Drained, Move, MoveProgress, Operations, Reason,
    WaitingRebuild,
};
use kiln_types::{
    ChainId, Code, DiskId, Error, LocalState, Monotonic, NodeId, PublicState, Result, ServiceKind,
    TargetId,
};
use std::collections::{BTreeMap, BTreeSet};

/// What an operator orders.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Everything leaves a node or a disk.
    Drain(Drain),
    /// It takes targets again; what has not left yet stays.
    CancelDrain(Drained),
    /// Targets move until the disks carry equally many.
    Rebalance {
        /// Only say which.
        dry_run: bool,
    },
    /// What has not moved yet for a rebalance stays.
    CancelRebalance,
    /// A chain whose last server is lost goes on from another member.
    RecoverChain {
        /// The chain.
        chain: ChainId,
        /// The member.
        from: TargetId,
    },
    /// More chains, until each disk has so many targets.
    ExtendTable {
        /// Targets on each disk.
        targets_per_disk: u32,
    },
    /// A server that is gone for good is not known any more.
    ForgetNode(NodeId),
    /// What goes on?
    List,
}

impl Manager {
    pub(crate) fn operate(&mut self, operation: Operation, now: Monotonic) -> Result<Answer> {
        match operation {
            Operation::Drain(drain) => self.drain(drain)?,
            Operation::CancelDrain(what) => self.cancel_drain(what)?,
            Operation::Rebalance { dry_run } => return self.rebalance(dry_run),
            Operation::CancelRebalance => {
                self.cancel_moves("the operator", |what| what.reason == Reason::Rebalance)
            }
            Operation::RecoverChain { chain, from } => self.recover_chain(chain, from)?,
            Operation::ExtendTable { targets_per_disk } => {
                return self.extend_table(targets_per_disk);
            }
            Operation::ForgetNode(node) => self.forget_node(node)?,
            Operation::List => return Ok(Answer::Operations(self.operations(now))),
        }
        Ok(Answer::Done)
    }

    fn drain(&mut self, drain: Drain) -> Result<()> {
        self.check_drained(drain.what)?;
        if let Some(onto) = drain.onto {
            let node = self.node_of_disk(onto).ok_or_else(|| unknown_disk(onto))?;
            if drain.what == Drained::Disk(onto) || self.state.drain_of(node, onto).is_some() {
                return Err(Error::invalid(format!("disk {onto} takes no targets: it is drained")));
            }
        }
        if self.state.drains.get(&drain.what) == Some(&drain) {
            return Ok(());
        }
        tracing::info!(what = %drain.what, onto = ?drain.onto, "drained");
        self.state.drains.insert(drain.what, drain);
        // What waits to come here goes elsewhere, or nowhere.
        self.changed = true;
        Ok(())
    }

    fn check_drained(&self, what: Drained) -> Result<()> {
        match what {
            Drained::Node(id) => match self.state.routing.nodes.get(&id) {
                Some(node) if node.kind == ServiceKind::Storage => Ok(()),
                Some(node) => Err(Error::invalid(format!(
                    "node {id} is a {} server: it has no targets",
                    node.kind
                ))),
                None => Err(Error::new(Code::NotFound, format!("there is no node {id}"))
                    .with_hint("kiln admin nodes lists them")),
            },
            Drained::Disk(disk) => match self.node_of_disk(disk) {
                Some(_) => Ok(()),
                None => Err(unknown_disk(disk)),
            },
        }
    }

    /// The node of a disk that has targets, or was reported.
    fn node_of_disk(&self, disk: DiskId) -> Option<NodeId> {
        let nodes = self.state.routing.nodes.keys();
        let mut reported = nodes.filter(|node| self.disks_of(**node).any(|d| d.disk == disk));
        let mut targets = self.state.routing.targets.values();
        let used = || targets.find(|target| target.disk == disk).map(|target| target.node);
        reported.next().copied().or_else(used)
    }

    fn cancel_drain(&mut self, what: Drained) -> Result<()> {
        if self.state.drains.remove(&what).is_none() {
            return Err(Error::new(Code::NotFound, format!("{what} is not drained")));
        }
        tracing::info!(%what, "not drained any more");
        self.changed = true;
        let still: BTreeSet<_> = self
            .state
            .moves
            .values()
            .filter(|m| m.reason == Reason::Drain && self.drain_of_target(m.from).is_none())
            .map(|m| m.from)
            .collect();
        self.cancel_moves("the drain is cancelled", |what| still.contains(&what.from));
        Ok(())
    }

    fn cancel_moves(&mut self, why: &str, which: impl Fn(&Move) -> bool) {
        let moves: Vec<_> =
            self.state.moves.values().filter(|m| which(m)).map(|m| m.from).collect();
        moves.into_iter().for_each(|from| self.cancel_move(from, why));
    }

    fn rebalance(&mut self, dry_run: bool) -> Result<Answer> {
        if !self.knows_disks() {
            let text = "the manager has not heard of all servers' disks since it started";
            return Err(Error::new(Code::NotReady, text).with_hint("try again in some seconds"));
        }
        let moves = self.plan_rebalance();
        if dry_run {
            return Ok(Answer::Moves(moves));
        }
        // An earlier plan that has not begun is replaced.
        let before = self.state.moves.clone();
        self.state.moves.retain(|_, what| what.to.is_some());
        for what in &moves {
            self.state.moves.insert(what.from, *what);
        }
        self.changed |= self.state.moves != before;
        tracing::info!(moves = moves.len(), "rebalanced");
        Ok(Answer::Moves(moves))
    }

    fn recover_chain(&mut self, id: ChainId, from: TargetId) -> Result<()> {
        let routing = &self.state.routing;
        let Some(chain) = routing.chains.get(&id) else {
            return Err(Error::new(Code::NotFound, format!("there is no chain {id}")));
        };
        let targets = &routing.targets;
        let local =
            |target: TargetId| targets.get(&target).map_or(LocalState::Offline, |t| t.local);
        let next = membership::recover(chain, from, local)?;
        tracing::error!(
            chain = %id, version = %next.version, %from, before = ?chain.members,
            "an operator lets a chain go on without the last target that served: acknowledged writes \
             may be lost"
        );
        self.state.routing.chains.insert(id, next);
        self.changed = true;
        self.advance_chains(&BTreeSet::from([id]), "recovered by an operator");
        Ok(())
    }

    fn forget_node(&mut self, id: NodeId) -> Result<()> {
        let Some(node) = self.state.routing.nodes.get(&id) else {
            return Err(Error::new(Code::NotFound, format!("there is no node {id}")));
        };
        if node.alive {
            let text = format!("node {id} is alive: it would register again");
            return Err(Error::new(Code::Busy, text).with_hint("stop it first"));
        }
        let targets = self.by_node.get(&id).map_or(0, Vec::len);
        if targets > 0 {
            let text = format!("node {id} has {targets} targets");
            return Err(Error::new(Code::Busy, text)
                .with_hint(format!("kiln admin drain {id} moves them to other servers")));
        }
        tracing::info!(node = %id, "a node is forgotten");
        self.state.routing.nodes.remove(&id);
        self.state.drains.remove(&Drained::Node(id));
        self.by_node.remove(&id);
        self.forget_contact(id);
        self.changed = true;
        Ok(())
    }

    fn extend_table(&mut self, targets_per_disk: u32) -> Result<Answer> {
        if self.state.extension.is_some() || !self.unpublished.is_empty() {
            return Err(Error::new(Code::Busy, "chains are being made already")
                .with_hint("kiln admin operations shows them"));
        }
        if self.state.routing.newest_table(FIRST_TABLE).is_none() {
            return Err(Error::new(Code::NotReady, "there is no chain table yet"));
        }
        self.plan_extension(targets_per_disk).map(Answer::Extended)
    }

    fn operations(&self, now: Monotonic) -> Operations {
        let fills = self.fills();
        let progress = |what: &Move| MoveProgress {
            what: *what,
            fill: fills.iter().find(|fill| Some(fill.target) == what.to).copied(),
            waits: self.waits_for(what),
        };
        let rebuild = |(target, since): (&TargetId, &Monotonic)| {
            let after = self.rebuild_after();
            let wanted = !after.is_zero()
                && self.state.chain_of(*target).is_some()
                && !self.state.moves.contains_key(target)
                && self.drain_of_target(*target).is_none()
                && !self.state.moves.values().any(|what| what.to == Some(*target));
            wanted.then(|| WaitingRebuild {
                target: *target,
                left: after.saturating_sub(now.since(*since)),
                stuck: self.observed.stuck.get(target).cloned().unwrap_or_default(),
            })
        };
        Operations {
            drains: self.state.drains.values().map(|drain| self.drain_progress(drain)).collect(),
            moves: self.state.moves.values().map(progress).collect(),
            rebuilds: self.observed.gone.iter().filter_map(rebuild).collect(),
            extension: self.state.extension,
            retired: self.deleting() as u64,
            disks: self.disk_states(),
        }
    }

    fn disk_states(&self) -> Vec<DiskState> {
        let routing = &self.state.routing;
        let mut disks = BTreeMap::new();
        let state = |node: NodeId, disk: DiskId| DiskState {
            disk,
            node,
            present: false,
            drained: self.state.drain_of(node, disk).is_some(),
            targets: 0,
            used_bytes: 0,
            capacity_bytes: 0,
        };
        for node in routing.nodes.values() {
            for reported in self.disks_of(node.id) {
                let disk = state(node.id, reported.disk);
                let (used_bytes, capacity_bytes) = (reported.used_bytes, reported.capacity_bytes);
                let disk = DiskState { present: node.alive, used_bytes, capacity_bytes, ..disk };
                disks.insert((node.id, reported.disk), disk);
            }
        }
        for target in routing.targets.values() {
            let (node, disk) = (target.node, target.disk);
            disks.entry((node, disk)).or_insert_with(|| state(node, disk)).targets += 1;
        }
        disks.into_values().collect()
    }

    fn drain_progress(&self, drain: &Drain) -> DrainProgress {
        let targets = self.state.routing.targets.values();
        let mine = targets.filter(|target| match drain.what {
            Drained::Node(node) => target.node == node,
            Drained::Disk(disk) => target.disk == disk,
        });
        let mine: Vec<_> = mine.map(|target| target.id).collect();
        let stuck = mine.iter().find_map(|target| self.observed.stuck.get(target).cloned());
        let stuck = stuck.unwrap_or_default();
        DrainProgress { drain: *drain, targets: mine.len() as u64, stuck }
    }

    fn waits_for(&self, what: &Move) -> String {
        let Some(to) = what.to else {
            let stuck = self.observed.stuck.get(&what.from);
            return stuck.map_or_else(|| "its turn".into(), |stuck| format!("its turn: {stuck}"));
        };
        let Some(chain) = self.state.routing.chains.get(&what.chain) else { return String::new() };
        let local = self.state.routing.targets.get(&to).map(|target| target.local);
        match chain.state_of(to) {
            _ if chain.head().is_none() => "its chain to serve".into(),
            _ if what.cancelled => "the new target to leave".into(),
            Some(PublicState::Serving) if !membership::may_leave(chain, what.from) => {
                "more members to serve".into()
            }
            Some(PublicState::Serving) => "the old target to leave".into(),
            Some(PublicState::Syncing) => String::new(),
            Some(PublicState::Waiting) => "another member to be filled".into(),
            _ if local == Some(LocalState::Offline) => format!("node {} to make it", what.node),
            _ => String::new(),
        }
    }
}

fn unknown_disk(disk: DiskId) -> Error {
    Error::new(Code::NotFound, format!("no server has disk {disk}"))
        .with_hint("kiln admin disks lists them")
}
