//! The cluster's disks and chains as [`kiln_chain::relocation`] sees them.

use crate::manager::Manager;
use kiln_chain::domains::domains;
use kiln_chain::placement::Place;
use kiln_chain::relocation::{Map, Members, Relocation, Slot};
use kiln_rpc::{Move, Reason};
use kiln_types::{Chain, ChainId, DiskId, NodeId, ServiceKind, Target, TargetId};
use std::collections::{BTreeMap, BTreeSet};

/// Of a disk this part stays free for what is written meanwhile.
const SPARE: u64 = 20;

/// A map, with the names of what it numbers.
pub(crate) struct Places {
    map: Map,
    slots: Vec<Slot>,
    number: BTreeMap<(NodeId, DiskId), usize>,
    chains: Vec<ChainId>,
}

impl Manager {
    /// The map as it will be when the moves under way are done.
    pub(crate) fn map(&self) -> Places {
        let routing = &self.state.routing;
        let slots = self.slots();
        let number: BTreeMap<_, _> = slots
            .iter()
            .enumerate()
            .map(|(i, slot)| ((slot.place.node, slot.place.disk), i))
            .collect();
        let leavers: BTreeSet<_> = self
            .state
            .moves
            .values()
            .filter_map(|what| if what.cancelled { what.to } else { what.to.map(|_| what.from) })
            .collect();
        let members = |chain: &Chain| {
            let targets = chain.members.iter().filter(|m| !leavers.contains(&m.target));
            let targets = targets.filter_map(|m| routing.targets.get(&m.target));
            let bytes = chain.members.iter().filter_map(|m| self.observed.bytes.get(&m.target));
            Members {
                slots: targets.filter_map(|t| number.get(&(t.node, t.disk)).copied()).collect(),
                bytes: bytes.max().copied().unwrap_or(0),
            }
        };
        let planned = |targets: &Vec<TargetId>| {
            let targets = targets.iter().filter_map(|target| routing.targets.get(target));
            let slots = targets.filter_map(|t| number.get(&(t.node, t.disk)).copied()).collect();
            Members { slots, bytes: 0 }
        };
        let mut chains: BTreeMap<_, _> =
            routing.chains.values().map(|chain| (chain.id, members(chain))).collect();
        chains.extend(self.unpublished.iter().map(|(id, targets)| (*id, planned(targets))));
        let ids = chains.keys().copied().collect();
        let map = Map::new(slots.clone(), chains.into_values().collect());
        Places { map, slots, number, chains: ids }
    }

    /// Whether this manager has heard of the disks of all servers that are alive: before, any choice of a
    /// place would be one among few.
    pub(crate) fn knows_disks(&self) -> bool {
        let nodes = self.state.routing.nodes.values();
        let mut storage = nodes.filter(|node| node.alive && node.kind == ServiceKind::Storage);
        storage.all(|node| self.disks_of(node.id).next().is_some())
    }

    fn slots(&self) -> Vec<Slot> {
        let routing = &self.state.routing;
        let storage = || routing.nodes.values().filter(|node| node.kind == ServiceKind::Storage);
        let replicas = routing.chains.values().map(|chain| chain.replicas).max().unwrap_or(1);
        let domains = domains(storage().map(|node| (node.id, &node.tags)), replicas as usize);
        let domain = |node: NodeId| domains.get(&node).copied().unwrap_or(usize::MAX);
        let mut slots = BTreeMap::new();
        for node in storage() {
            for disk in self.disks_of(node.id) {
                let open = node.alive && self.state.drain_of(node.id, disk.disk).is_none();
                let spare = disk.capacity_bytes / SPARE;
                let free = disk.capacity_bytes.saturating_sub(disk.used_bytes + spare);
                let place = Place { node: node.id, disk: disk.disk };
                slots.insert(place, Slot { place, domain: domain(node.id), open, free });
            }
        }
        // Those that are not there count, as they have targets.
        for target in routing.targets.values() {
            let place = Place { node: target.node, disk: target.disk };
            let gone = Slot { place, domain: domain(target.node), open: false, free: 0 };
            slots.entry(place).or_insert(gone);
        }
        slots.into_values().collect()
    }

    /// The moves after which the disks carry equally many targets.
    pub(crate) fn plan_rebalance(&self) -> Vec<Move> {
        let Places { map, slots, chains, .. } = self.map();
        let routing = &self.state.routing;
        let mut moves: Vec<Move> = Vec::new();
        for Relocation { chain, from, to } in map.rebalance() {
            let (chain, from, to) = (chains[chain], slots[from].place, slots[to].place);
            let members = routing.chains.get(&chain).into_iter().flat_map(|c| &c.members);
            let mut targets = members.filter_map(|m| routing.targets.get(&m.target));
            let found = targets.find(|t| (t.node, t.disk) == (from.node, from.disk));
            let Some(found) = found.filter(|target| !self.is_moving(target.id)) else { continue };
            moves.push(Move {
                from: found.id,
                chain,
                node: to.node,
                disk: to.disk,
                to: None,
                reason: Reason::Rebalance,
                cancelled: false,
            });
        }
        moves
    }

    fn is_moving(&self, target: TargetId) -> bool {
        self.state.moves.get(&target).is_some_and(|what| what.to.is_some())
    }
}

impl Places {
    fn numbers(&self, target: &Target) -> Option<(usize, usize)> {
        let chain = self.chains.binary_search(&target.chain).ok()?;
        Some((chain, *self.number.get(&(target.node, target.disk))?))
    }

    /// Where a target goes; `onto`: there or nowhere.
    pub(crate) fn choose(&self, target: &Target, onto: Option<DiskId>) -> Option<Place> {
        let (chain, from) = self.numbers(target)?;
        let slot = match onto {
            None => self.map.choose(chain, from)?,
            Some(disk) => {
                let slot = self.slots.iter().position(|slot| slot.place.disk == disk)?;
                Some(slot).filter(|slot| self.map.fits(chain, from, *slot))?
            }
        };
        Some(self.slots[slot].place)
    }

    /// Whether a disk is there and takes targets.
    pub(crate) fn takes(&self, disk: DiskId) -> bool {
        self.slots.iter().any(|slot| slot.place.disk == disk && slot.open)
    }

    /// A target goes to `place`.
    pub(crate) fn moved(&mut self, target: &Target, place: Place) {
        if let Some((chain, from)) = self.numbers(target)
            && let Some(to) = self.number.get(&(place.node, place.disk))
        {
            self.map.apply(Relocation { chain, from, to: *to });
        }
    }
}
