//! The chains over a set of servers: pure, and the same for the same input.
//!
//! Each disk carries the same number of targets; replicas of a chain are in different failure domains
//! (see [`crate::domains`]); each server heads as many chains as the others, give or take one; pairs of servers share chains as
//! evenly as a greedy choice reaches, since a failed server's reads fall on those that it shares
//! chains with.

use crate::domains::domains;
use crate::spread::{Draft, even_out};
use kiln_types::{Code, DiskId, Error, NodeId, Result};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A server with its disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its node.
    pub node: NodeId,
    /// Its tags, which name its failure domains.
    pub tags: BTreeMap<String, String>,
    /// Its disks.
    pub disks: Vec<DiskId>,
}

/// The wanted shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Targets in each chain.
    pub replicas: usize,
    /// Targets on each disk.
    pub targets_per_disk: usize,
}

/// Where one target goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// The disk.
    pub disk: DiskId,
}

/// A chain's targets, head first.
pub type Places = Vec<Place>;

/// Plans chains over `servers`, in the order of the chain table. Two replicas never share a failure
/// domain, or a server.
///
/// # Errors
/// `NotReady` when there are fewer of them than replicas; `Invalid` for an impossible shape or
/// a server or disk that is named twice.
pub fn plan(servers: &[Server], shape: Shape) -> Result<Vec<Places>> {
    plan_beside(servers, shape, &[])
}

/// As [`plan`], with chains that are there already: the new ones fill the disks up to the wanted number
/// of targets.
///
/// # Errors
/// As [`plan`].
pub fn plan_beside(servers: &[Server], shape: Shape, there: &[Places]) -> Result<Vec<Places>> {
    check(servers, shape)?;
    let mut planner = Planner::new(servers, shape);
    there.iter().for_each(|chain| planner.note(chain));
    let mut chains = Vec::new();
    for left in (1..=planner.chains_max()).rev() {
        chains.extend(planner.next_chain(left));
    }
    even_out(&mut chains, &planner.group, planner.shared.clone());
    let chains = balance_heads(chains, servers.len());
    Ok(table_order(chains.iter().map(|chain| planner.places(chain)).collect()))
}

fn check(servers: &[Server], shape: Shape) -> Result<()> {
    if shape.replicas == 0 || shape.targets_per_disk == 0 {
        return Err(Error::invalid("a chain has at least one target, and so has a disk"));
    }
    let nodes: BTreeSet<_> = servers.iter().map(|server| server.node).collect();
    let disks: Vec<_> = servers.iter().flat_map(|server| &server.disks).collect();
    if nodes.len() < servers.len() || disks.iter().collect::<BTreeSet<_>>().len() < disks.len() {
        return Err(Error::invalid("a server or a disk is named twice"));
    }
    let with_disks = servers.iter().filter(|server| !server.disks.is_empty()).count();
    let count = domains_of(servers, shape.replicas).values().collect::<BTreeSet<_>>().len();
    let what = if count == with_disks { "servers" } else { "hosts" };
    if count < shape.replicas {
        return Err(Error::new(
            Code::NotReady,
            format!(
                "{} replicas need as many {what} with disks, there are {count}",
                shape.replicas
            ),
        )
        .with_hint(
            "add servers, lower the number of replicas, or correct the servers' host tags",
        ));
    }
    Ok(())
}

/// The failure domain of each server that has disks.
fn domains_of(servers: &[Server], replicas: usize) -> BTreeMap<NodeId, usize> {
    let with_disks = servers.iter().filter(|server| !server.disks.is_empty());
    domains(with_disks.map(|server| (server.node, &server.tags)), replicas)
}

struct Planner<'a> {
    servers: Vec<&'a Server>,
    /// The group of each server from which a chain takes at most one.
    group: Vec<usize>,
    replicas: usize,
    /// Targets that each disk still takes.
    room: Vec<Vec<usize>>,
    /// How many chains two servers share.
    shared: Vec<Vec<usize>>,
    planned: usize,
}

impl<'a> Planner<'a> {
    fn new(servers: &'a [Server], shape: Shape) -> Self {
        let domains = domains_of(servers, shape.replicas);
        let mut servers: Vec<_> = servers.iter().filter(|s| !s.disks.is_empty()).collect();
        servers.sort_by_key(|server| server.node);
        let group = domains.into_values().collect();
        let room = servers.iter().map(|s| vec![shape.targets_per_disk; s.disks.len()]).collect();
        let shared = vec![vec![0; servers.len()]; servers.len()];
        Self { servers, group, replicas: shape.replicas, room, shared, planned: 0 }
    }

    /// Takes note of a chain that is there.
    fn note(&mut self, chain: &Places) {
        let server = |place: &Place| self.servers.iter().position(|s| s.node == place.node);
        let known: Vec<_> =
            chain.iter().filter_map(|place| Some((server(place)?, place.disk))).collect();
        for (i, (server, disk)) in known.iter().enumerate() {
            if let Some(at) = self.servers[*server].disks.iter().position(|d| d == disk) {
                let room = &mut self.room[*server][at];
                *room = room.saturating_sub(1);
            }
            for (other, _) in known[..i].iter().filter(|(other, _)| other != server) {
                self.shared[*server][*other] += 1;
                self.shared[*other][*server] += 1;
            }
        }
    }

    /// The most chains that the groups' room allows: each takes at most one target of a group.
    fn chains_max(&self) -> usize {
        let rooms = self.group_rooms();
        let most = rooms.iter().sum::<usize>() / self.replicas;
        let fits = |chains: usize| {
            let usable: usize = rooms.iter().map(|room| (*room).min(chains)).sum();
            usable >= chains * self.replicas
        };
        (0..=most).rev().find(|chains| fits(*chains)).unwrap_or(0)
    }

    fn group_rooms(&self) -> Vec<usize> {
        let mut rooms = vec![0; self.servers.len()];
        for (server, group) in self.group.iter().enumerate() {
            rooms[*group] += self.server_room(server);
        }
        rooms
    }

    fn server_room(&self, server: usize) -> usize {
        self.room[server].iter().sum()
    }

    /// The next chain, when `left` are still to come. First it takes from each group that has room
    /// for all of them, since what such a group does not get now is left over; any choice of the
    /// others still lets `left` chains come out. Among them it prefers servers that share few
    /// chains with those already taken, then the emptiest, then the next one in turn.
    fn next_chain(&mut self, left: usize) -> Option<Draft> {
        let rooms = self.group_rooms();
        let mut chain = Draft::new();
        while chain.len() < self.replicas {
            let server = self.next_server(&chain, &rooms, left)?;
            let disks = &self.room[server];
            let disk = (0..disks.len()).max_by_key(|d| (disks[*d], Reverse(*d)))?;
            chain.push((server, disk));
        }
        for (i, (server, disk)) in chain.iter().enumerate() {
            self.room[*server][*disk] -= 1;
            for (other, _) in &chain[..i] {
                self.shared[*server][*other] += 1;
                self.shared[*other][*server] += 1;
            }
        }
        self.planned += 1;
        Some(chain)
    }

    fn next_server(&self, chain: &Draft, rooms: &[usize], left: usize) -> Option<usize> {
        let count = self.servers.len();
        let taken = |server: usize| chain.iter().any(|(s, _)| self.group[*s] == self.group[server]);
        let free = (0..count).filter(|server| self.server_room(*server) > 0 && !taken(*server));
        free.min_by_key(|server| {
            let shared = chain.iter().map(|(other, _)| self.shared[*server][*other]);
            let shared = shared.map(|count| count * count).sum::<usize>();
            let group_room = rooms[self.group[*server]];
            let turn = (server + count - self.planned % count) % count;
            let emptiest = Reverse((group_room, self.server_room(*server)));
            (group_room < left, shared, emptiest, turn)
        })
    }

    fn places(&self, chain: &Draft) -> Places {
        let place = |&(server, disk): &(usize, usize)| Place {
            node: self.servers[server].node,
            disk: self.servers[server].disks[disk],
        };
        chain.iter().map(place).collect()
    }
}

/// Chooses each chain's head so that the servers head equally many chains, as far as their
/// memberships allow: as long as one server heads two more than another one that a sequence of
/// swaps leads to, swap.
fn balance_heads(mut chains: Vec<Draft>, servers: usize) -> Vec<Draft> {
    let mut heads = vec![0usize; servers];
    for chain in &mut chains {
        let least = (0..chain.len()).min_by_key(|i| heads[chain[*i].0]).unwrap_or(0);
        chain.swap(0, least);
        heads[chain[0].0] += 1;
    }
    while let Some(swaps) = find_swaps(&chains, &heads) {
        for (chain, at) in swaps {
            heads[chains[chain][0].0] -= 1;
            heads[chains[chain][at].0] += 1;
            chains[chain].swap(0, at);
        }
    }
    chains
}

/// A shortest sequence of (chain, member that becomes its head) from a server to one that heads at
/// least two fewer.
fn find_swaps(chains: &[Draft], heads: &[usize]) -> Option<Vec<(usize, usize)>> {
    let mut headed = vec![Vec::new(); heads.len()];
    for (i, chain) in chains.iter().enumerate() {
        headed[chain[0].0].push(i);
    }
    let least = heads.iter().min().copied().unwrap_or(0);
    for start in (0..heads.len()).filter(|start| heads[*start] >= least + 2) {
        let mut came_by: BTreeMap<usize, (usize, usize, usize)> = BTreeMap::new();
        let mut queue = VecDeque::from([start]);
        while let Some(server) = queue.pop_front() {
            if heads[server] + 2 <= heads[start] {
                return Some(way_back(&came_by, start, server));
            }
            for &chain in &headed[server] {
                for (at, &(next, _)) in chains[chain].iter().enumerate().skip(1) {
                    if next != start && !came_by.contains_key(&next) {
                        came_by.insert(next, (server, chain, at));
                        queue.push_back(next);
                    }
                }
            }
        }
    }
    None
}

fn way_back(
    came_by: &BTreeMap<usize, (usize, usize, usize)>,
    start: usize,
    end: usize,
) -> Vec<(usize, usize)> {
    let mut swaps = Vec::new();
    let mut server = end;
    while server != start {
        let (before, chain, at) = came_by[&server];
        swaps.push((chain, at));
        server = before;
    }
    swaps
}

/// Neighbours in the table have different heads, as far as possible: layouts take windows of it.
fn table_order(chains: Vec<Places>) -> Vec<Places> {
    let mut rounds = BTreeMap::new();
    let mut ordered: Vec<_> = chains
        .into_iter()
        .map(|chain| {
            let round = rounds.entry(chain[0].node).or_insert(0usize);
            *round += 1;
            (*round, chain[0].node, chain)
        })
        .collect();
    ordered.sort();
    ordered.into_iter().map(|(_, _, chain)| chain).collect()
}
