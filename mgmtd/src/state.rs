//! What the manager keeps in its store.

use kiln_types::{ChainId, ClusterId, NodeId, RoutingInfo, SettingChange, TargetId};
use std::collections::{BTreeMap, VecDeque};

/// Everything durable.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct State {
    /// What everyone is told.
    pub routing: RoutingInfo,
    /// Whether the first chains are planned. Their targets are in `routing` then; a chain follows
    /// when all its targets exist, the chain table when all chains do.
    pub planned: bool,
    /// The last changes of settings, oldest first.
    pub changes: VecDeque<SettingChange>,
}

impl State {
    /// The state of a cluster's first start.
    pub fn new(cluster: ClusterId) -> Self {
        Self { routing: RoutingInfo { cluster, ..RoutingInfo::default() }, ..Self::default() }
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
}
