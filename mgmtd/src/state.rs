//! What the manager keeps in its store.

use kiln_rpc::{Drain, Drained, Extension, Move, Retired};
use kiln_types::{
    Chain, ChainId, ClusterId, DiskId, NodeId, RoutingInfo, SettingChange, Target, TargetId,
};
use std::collections::{BTreeMap, VecDeque};

/// Everything durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// What everyone is told.
    pub routing: RoutingInfo,
    /// Whether the first chains are planned. Their targets are in `routing` then; a chain follows
    /// when all its targets exist, the chain table when all chains do.
    pub planned: bool,
    /// The last changes of settings, oldest first.
    pub changes: VecDeque<SettingChange>,
    /// The id of the next target: none is given twice.
    pub next_target: TargetId,
    /// What everything leaves.
    pub drains: BTreeMap<Drained, Drain>,
    /// What moves, by the target that leaves.
    pub moves: BTreeMap<TargetId, Move>,
    /// Targets that no chain has any more, until their disks are known not to have them.
    pub retired: BTreeMap<TargetId, Retired>,
    /// Further chains that are planned, as the first ones were.
    pub extension: Option<Extension>,
}

impl State {
    /// The state of a cluster's first start.
    pub fn new(cluster: ClusterId) -> Self {
        Self {
            routing: RoutingInfo { cluster, ..RoutingInfo::default() },
            planned: false,
            next_target: TargetId(1),
            drains: BTreeMap::new(),
            moves: BTreeMap::new(),
            retired: BTreeMap::new(),
            extension: None,
            changes: VecDeque::new(),
        }
    }

    /// The targets of each node.
    pub(crate) fn targets_by_node(&self) -> BTreeMap<NodeId, Vec<TargetId>> {
        let mut by_node: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for target in self.routing.targets.values() {
            by_node.entry(target.node).or_default().push(target.id);
        }
        by_node
    }

    /// The planned chains that are not published yet, with their targets, head first.
    pub(crate) fn unpublished(&self) -> BTreeMap<ChainId, Vec<TargetId>> {
        let mut chains: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for target in self.routing.targets.values() {
            if !self.routing.chains.contains_key(&target.chain) {
                chains.entry(target.chain).or_default().push(target.id);
            }
        }
        chains
    }

    /// The chain of a target.
    pub(crate) fn chain_of(&self, target: TargetId) -> Option<&Chain> {
        let target = self.routing.targets.get(&target)?;
        self.routing.chains.get(&target.chain)
    }

    /// Why a disk takes no new targets, if so.
    pub(crate) fn drain_of(&self, node: NodeId, disk: DiskId) -> Option<&Drain> {
        let disk = self.drains.get(&Drained::Disk(disk));
        disk.or_else(|| self.drains.get(&Drained::Node(node)))
    }

    /// Makes sense of a change that was written in part: what was new of it is dropped, what was
    /// removed stays removed. Records are written before others are cleared, so what leaves a chain is
    /// retired already, and what is not in a chain was never told to anyone.
    pub(crate) fn repair(&mut self) {
        let State { routing, retired, .. } = self;
        let (next, table) = (self.next_target, !routing.tables.is_empty());
        let extension = self.extension;
        let planned =
            |chain: ChainId| !table || extension.is_some_and(|e| e.chains().any(|c| c == chain));
        let chains = &routing.chains;
        let belongs = |target: &Target| match chains.get(&target.chain) {
            Some(chain) => chain.state_of(target.id).is_some(),
            None => target.id < next && planned(target.chain),
        };
        let strays = routing.targets.values().filter(|target| !belongs(target));
        for target in strays.cloned().collect::<Vec<_>>() {
            routing.targets.remove(&target.id);
            retired.insert(target.id, retire(&target));
        }
        let targets = &routing.targets;
        retired.retain(|id, _| !targets.contains_key(id));
        self.moves.retain(|from, what| {
            let there = |target: &TargetId| targets.contains_key(target);
            there(from) && what.to.as_ref().is_none_or(there)
        });
        let has_targets = |chain| {
            chains.contains_key(&chain) || targets.values().any(|target| target.chain == chain)
        };
        self.extension = extension.filter(|e| e.chains().all(has_targets));
        let last = targets.keys().chain(retired.keys()).max();
        self.next_target = next.max(TargetId(last.map_or(0, |last| last.0) + 1));
    }
}

/// What is kept of a target that leaves its chain.
pub(crate) fn retire(target: &Target) -> Retired {
    Retired { target: target.id, chain: target.chain, node: target.node, disk: target.disk }
}
