//! Where single targets go: one that leaves its disk, and those that even out the disks after servers
//! were added. Pure, and the same for the same input.

use crate::placement::Place;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Where it is.
    pub place: Place,
    /// Its failure domain (see [`crate::domains`]).
    pub domain: usize,
    /// Whether it may take targets: it is there and not drained.
    pub open: bool,
    /// Bytes that it can still take.
    pub free: u64,
}

/// A chain: on which disks its members are, and how many bytes each has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Numbers of slots.
    pub slots: Vec<usize>,
    /// Bytes of one member.
    pub bytes: u64,
}

/// A member that goes to another disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// The number of its chain.
    pub chain: usize,
    /// The slot that it leaves.
    pub from: usize,
    /// The slot that it goes to.
    pub to: usize,
}

/// All disks and chains.
#[derive(Clone, Debug)]
pub struct Map {
    slots: Vec<Slot>,
    chains: Vec<Members>,
    /// Targets on each slot.
    counts: Vec<usize>,
    /// How many chains two nodes share, by their places in `node_of`.
    shared: Vec<Vec<usize>>,
    /// The number of each slot's node.
    node_of: Vec<usize>,
}

impl Map {
    /// The map of `chains` over `slots`.
    pub fn new(slots: Vec<Slot>, chains: Vec<Members>) -> Self {
        let mut nodes = BTreeMap::new();
        let node_of: Vec<_> = slots
            .iter()
            .map(|slot| {
                let next = nodes.len();
                *nodes.entry(slot.place.node).or_insert(next)
            })
            .collect();
        let mut map = Self {
            counts: vec![0; slots.len()],
            shared: vec![vec![0; nodes.len()]; nodes.len()],
            slots,
            chains: Vec::new(),
            node_of,
        };
        for chain in chains {
            map.add(chain);
        }
        map
    }

    fn add(&mut self, chain: Members) {
        for (i, slot) in chain.slots.iter().enumerate() {
            self.counts[*slot] += 1;
            for other in &chain.slots[..i] {
                self.share(*slot, *other, true);
            }
        }
        self.chains.push(chain);
    }

    fn share(&mut self, one: usize, other: usize, more: bool) {
        let (one, other) = (self.node_of[one], self.node_of[other]);
        for (a, b) in [(one, other), (other, one)] {
            let count = &mut self.shared[a][b];
            *count = if more { *count + 1 } else { count.saturating_sub(1) };
        }
    }

    /// Where a member of a chain goes that leaves `from`: another failure domain than the others', the
    /// disk with the fewest targets, the server that shares the fewest chains with the others.
    pub fn choose(&self, chain: usize, from: usize) -> Option<usize> {
        let fits = (0..self.slots.len()).filter(|slot| self.fits(chain, from, *slot));
        fits.min_by_key(|slot| {
            let free = Reverse(self.slots[*slot].free);
            (self.counts[*slot], self.cost(chain, from, *slot), free, *slot)
        })
    }

    /// Whether a member of a chain may go from one slot to another.
    pub fn fits(&self, chain: usize, from: usize, to: usize) -> bool {
        let Members { slots, bytes } = &self.chains[chain];
        let slot = &self.slots[to];
        let apart = |other: &usize| {
            let other = &self.slots[*other];
            other.domain != slot.domain && other.place.node != slot.place.node
        };
        slot.open
            && slot.free > *bytes
            && !slots.contains(&to)
            && slots.iter().filter(|other| **other != from).all(apart)
    }

    /// How much a failure of `to`'s server, with this member on it, asks of the others.
    fn cost(&self, chain: usize, from: usize, to: usize) -> usize {
        let others = self.chains[chain].slots.iter().filter(|other| **other != from);
        others.map(|other| self.shared[self.node_of[to]][self.node_of[*other]]).sum()
    }

    /// Carries a relocation out.
    pub fn apply(&mut self, relocation: Relocation) {
        let Relocation { chain, from, to } = relocation;
        let members = self.chains[chain].clone();
        for other in members.slots.iter().filter(|other| **other != from) {
            self.share(from, *other, false);
            self.share(to, *other, true);
        }
        self.counts[from] -= 1;
        self.counts[to] += 1;
        self.slots[to].free = self.slots[to].free.saturating_sub(members.bytes);
        let slots = &mut self.chains[chain].slots;
        slots.iter_mut().filter(|slot| **slot == from).for_each(|slot| *slot = to);
    }

    /// The relocations after which the open disks carry equally many targets, give or take one, as far
    /// as the failure domains allow; no more than that takes. Each chain's members move one at a time.
    pub fn rebalance(mut self) -> Vec<Relocation> {
        let mut relocations = Vec::new();
        // Each one lowers the sum of squares of the counts: it ends.
        while let Some(next) = self.next_relocation() {
            self.apply(next);
            relocations.push(next);
        }
        relocations
    }

    fn next_relocation(&self) -> Option<Relocation> {
        let open = || (0..self.slots.len()).filter(|slot| self.slots[*slot].open);
        let mut on_slot = vec![Vec::new(); self.slots.len()];
        for (chain, members) in self.chains.iter().enumerate() {
            members.slots.iter().for_each(|slot| on_slot[*slot].push(chain));
        }
        let mut candidates = Vec::new();
        for from in open() {
            let emptier = open().filter(|to| self.counts[*to] + 2 <= self.counts[from]);
            for to in emptier {
                // The fullest to the emptiest first.
                candidates.push((Reverse(self.counts[from]), self.counts[to], from, to));
            }
        }
        candidates.sort_unstable();
        for group in candidates.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let pairs = group.iter().flat_map(|(_, _, from, to)| {
                on_slot[*from].iter().map(|chain| Relocation {
                    chain: *chain,
                    from: *from,
                    to: *to,
                })
            });
            let fitting = pairs.filter(|r| self.fits(r.chain, r.from, r.to));
            let best = fitting.min_by_key(|r| {
                let after = self.cost(r.chain, r.from, r.to) as i64;
                let before = self.cost(r.chain, r.from, r.from) as i64;
                (after - before, r.from, r.to, r.chain)
            });
            if best.is_some() {
                return best;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_types::{DiskId, NodeId};

    fn slots(nodes: u64, disks: u64) -> Vec<Slot> {
        let slot = |i: u64| Slot {
            place: Place { node: NodeId(i / disks), disk: DiskId(u128::from(i)) },
            domain: (i / disks) as usize,
            open: true,
            free: 1 << 30,
        };
        (0..nodes * disks).map(slot).collect()
    }

    fn spread(map: &Map) -> usize {
        map.counts.iter().max().unwrap() - map.counts.iter().min().unwrap()
    }

    #[test]
    fn added_servers_get_their_share_and_no_more_moves_than_that() {
        for (old, new, disks) in [(3, 4, 1), (3, 6, 2), (5, 8, 3), (4, 5, 2)] {
            let count = 6 * old * disks / 3;
            // The old disks in turn.
            let slot = |i: u64, r: u64| {
                let node = (i + r) % old;
                (node * disks + (i / old + r) % disks) as usize
            };
            let chain = |i| Members { slots: (0..3).map(|r| slot(i, r)).collect(), bytes: 1 };
            let map = Map::new(slots(new, disks), (0..count).map(chain).collect());
            let before = map.clone();
            let relocations = map.clone().rebalance();
            let mut after = map;
            relocations.iter().for_each(|r| {
                assert!(after.fits(r.chain, r.from, r.to));
                after.apply(*r);
            });
            assert!(spread(&after) <= 1, "{old} -> {new}: {:?}", after.counts);
            let share = 3 * count / (new * disks);
            let needed = (new - old) * disks * share;
            assert!(relocations.len() as u64 <= needed + (new - old) * disks, "{relocations:?}");
            assert!(after.clone().rebalance().is_empty(), "nothing is left");
            assert_eq!(before.rebalance(), relocations, "the same for the same input");
        }
    }

    #[test]
    fn a_target_goes_to_another_domain_with_room() {
        let mut slots = slots(5, 1);
        slots[3].domain = 1;
        slots[4].free = 0;
        let chains = vec![Members { slots: vec![0, 1, 2], bytes: 10 }];
        let map = Map::new(slots.clone(), chains.clone());
        // Node 3 fails together with node 1, node 4 is full.
        assert_eq!(map.choose(0, 0), None);
        assert_eq!(map.choose(0, 1), Some(3));
        slots[3].open = false;
        assert_eq!(Map::new(slots, chains).choose(0, 1), None);
    }
}
