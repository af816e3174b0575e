//! Targets that move, in random histories: servers die, come back or do not, are drained and added, the
//! manager restarts, and operators change their minds. A ghost knows who holds which acknowledged writes.
#![allow(clippy::unwrap_used, reason = "tests")]

use kiln_chain::lease::{LeaseTimes, Patience};
use kiln_chain::membership::validate;
use kiln_config::BootstrapConfig;
use kiln_mgmtd::{Answer, Event, Manager, Operation, Options, State};
use kiln_rpc::{DiskReport, Drain, Drained, Heartbeat, Registration, TargetOrders, TargetReport};
use kiln_types::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SECOND: u64 = 1_000_000_000;
const REBUILD_AFTER: u64 = 30;
/// A server fences itself so long after its last answered heartbeat.
const FENCE: u64 = 4 * SECOND;

fn options() -> Options {
    Options {
        own: Node {
            id: NodeId(1),
            kind: ServiceKind::Mgmtd,
            address: "m:1".into(),
            incarnation: Incarnation(1),
            alive: true,
            tags: BTreeMap::new(),
        },
        lease: LeaseTimes::SERVER,
        patience: Patience::default(),
        bootstrap: BootstrapConfig {
            storage_servers: 4,
            targets_per_disk: 3,
            ..BootstrapConfig::default()
        },
        key: KeyId(1),
        rebuild_after: Duration::from_secs(REBUILD_AFTER),
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Completeness {
    Complete,
    Leaves,
    Left,
}

/// Whether a target was told to take no part.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Standing {
    In,
    Out,
    Returning,
}

/// A target on a disk, and what it believes.
#[derive(Clone, Debug)]
struct Replica {
    chain: ChainId,
    writes: u128,
    completeness: Completeness,
    standing: Standing,
    /// Its chain as it acts under it.
    view: Option<(ChainVersion, PublicState)>,
    filled: Option<ChainVersion>,
}

struct Server {
    incarnation: u128,
    sequence: u64,
    up: bool,
    /// Its disks are lost.
    lost: bool,
    heard: u64,
    routing: RoutingInfo,
    disks: Vec<DiskId>,
    replicas: BTreeMap<TargetId, Replica>,
}

impl Server {
    fn adopt(&mut self, routing: &RoutingInfo) {
        self.routing = routing.clone();
        for (id, replica) in &mut self.replicas {
            let chain = routing.chains.get(&replica.chain);
            let view = chain.and_then(|c| c.state_of(*id).map(|state| (c.version, state)));
            let serves = view.is_some_and(|(_, state)| state <= PublicState::LastServing);
            let synced = replica.view.is_some_and(|(_, state)| state == PublicState::Syncing);
            replica.completeness = match replica.completeness {
                Completeness::Complete => Completeness::Complete,
                Completeness::Left if serves && synced => Completeness::Complete,
                _ if serves => Completeness::Leaves,
                _ => Completeness::Left,
            };
            let serving = view.is_some_and(|(_, state)| state == PublicState::Serving);
            if replica.standing == Standing::Returning && !serving {
                replica.standing = Standing::In;
            }
            let takes_part =
                replica.completeness != Completeness::Leaves && replica.standing == Standing::In;
            replica.view = view.filter(|_| takes_part);
        }
    }

    fn local(replica: &Replica) -> LocalState {
        match replica.view {
            None if replica.standing != Standing::In => LocalState::Offline,
            _ if replica.completeness == Completeness::Leaves => LocalState::Offline,
            Some((_, PublicState::Serving | PublicState::LastServing)) => LocalState::UpToDate,
            Some((version, PublicState::Syncing)) if replica.filled == Some(version) => {
                LocalState::UpToDate
            }
            _ => LocalState::Online,
        }
    }

    fn obey(&mut self, orders: &TargetOrders, manager: &RoutingInfo) {
        for order in &orders.create {
            let completeness =
                if order.incomplete { Completeness::Left } else { Completeness::Complete };
            assert!(self.disks.contains(&order.disk));
            self.replicas.entry(order.target).or_insert(Replica {
                chain: order.chain,
                writes: 0,
                completeness,
                standing: Standing::In,
                view: None,
                filled: None,
            });
        }
        for target in &orders.remove {
            let gone = self.replicas.remove(target).unwrap();
            let member = manager.chains.get(&gone.chain).and_then(|c| c.state_of(*target));
            assert_eq!(member, None, "a member is deleted");
        }
        for (id, replica) in &mut self.replicas {
            replica.standing = match (orders.leave.contains(id), replica.standing) {
                (true, _) => Standing::Out,
                (false, Standing::In) => Standing::In,
                (false, _) => Standing::Returning,
            };
        }
        let routing = self.routing.clone();
        self.adopt(&routing);
    }
}

struct World {
    manager: Manager,
    now: u64,
    servers: BTreeMap<NodeId, Server>,
    acknowledged: BTreeMap<ChainId, u128>,
    next_write: u32,
    next_incarnation: u128,
    /// Each target that ever was.
    targets: BTreeMap<TargetId, (ChainId, DiskId)>,
    finished: usize,
    recovered: usize,
}

impl World {
    fn new() -> Self {
        let state = State::new(ClusterId(7));
        let manager = Manager::new(options(), state, Monotonic(SECOND));
        let mut world = Self {
            manager,
            now: SECOND,
            servers: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            next_write: 0,
            next_incarnation: 100,
            targets: BTreeMap::new(),
            finished: 0,
            recovered: 0,
        };
        (0..4).for_each(|_| world.add_server());
        world.run(5);
        assert_eq!(world.manager.routing().chains.len(), 8);
        world
    }

    fn add_server(&mut self) {
        let number = self.servers.len() as u64 + 101;
        let disks = [0, 1].map(|disk| DiskId(u128::from(number * 10 + disk))).to_vec();
        let server = Server {
            incarnation: 0,
            sequence: 0,
            up: true,
            lost: false,
            heard: 0,
            routing: RoutingInfo::default(),
            disks,
            replicas: BTreeMap::new(),
        };
        self.servers.insert(NodeId(number), server);
        self.start(NodeId(number));
    }

    fn apply(&mut self, event: Event) -> Result<Answer> {
        let before = self.manager.state().moves.len();
        let answer = self.manager.apply(event, Monotonic(self.now));
        let state = self.manager.state();
        self.finished += before.saturating_sub(state.moves.len());
        for chain in state.routing.chains.values() {
            validate(chain).unwrap();
            let moving = state.moves.values().filter(|m| m.chain == chain.id && m.to.is_some());
            let moving = moving.count();
            assert!(moving <= 1 && chain.members.len() <= chain.replicas as usize + moving);
            for member in &chain.members {
                assert!(state.routing.targets.contains_key(&member.target));
            }
        }
        for target in state.routing.targets.values() {
            let known = self.targets.entry(target.id).or_insert((target.chain, target.disk));
            assert_eq!(*known, (target.chain, target.disk), "an id is given twice");
        }
        answer
    }

    /// A run of a server's program begins.
    fn start(&mut self, node: NodeId) {
        self.next_incarnation += 1;
        let server = self.servers.get_mut(&node).unwrap();
        server.incarnation = self.next_incarnation;
        server.sequence = 0;
        server.up = true;
        for replica in server.replicas.values_mut() {
            (replica.view, replica.filled, replica.standing) = (None, None, Standing::In);
            if replica.completeness == Completeness::Left {
                replica.completeness = Completeness::Leaves;
            }
        }
        self.register(node);
    }

    fn register(&mut self, node: NodeId) {
        let server = &self.servers[&node];
        let registration = Registration {
            cluster: ClusterId(7),
            node,
            kind: ServiceKind::Storage,
            address: format!("s:{node}"),
            incarnation: Incarnation(server.incarnation),
            disks: server.disks.iter().map(|disk| report(*disk)).collect(),
            tags: BTreeMap::new(),
            version: "test".into(),
        };
        if self.apply(Event::Register(registration)).is_ok() {
            let (now, routing) = (self.now, self.manager.routing().clone());
            let server = self.servers.get_mut(&node).unwrap();
            server.heard = now;
            server.adopt(&routing);
        }
    }

    fn beat(&mut self, node: NodeId) {
        let server = self.servers.get_mut(&node).unwrap();
        if !server.up {
            return;
        }
        server.sequence += 1;
        let report_of = |(id, replica): (&TargetId, &Replica)| TargetReport {
            target: *id,
            local: Server::local(replica),
            chain_version: replica.view.map_or(ChainVersion(0), |(version, _)| version),
            used_bytes: 1,
            oldest_io: Duration::ZERO,
            unreachable: None,
            fill: None,
        };
        let heartbeat = Heartbeat {
            node,
            incarnation: Incarnation(server.incarnation),
            sequence: server.sequence,
            routing: server.routing.version,
            targets: server.replicas.iter().map(report_of).collect(),
            disks: server.disks.iter().map(|disk| report(*disk)).collect(),
            stopping: false,
        };
        let sent = self.now;
        match self.apply(Event::Heartbeat(heartbeat)) {
            Ok(Answer::Alive { orders }) => {
                let routing = self.manager.routing().clone();
                let server = self.servers.get_mut(&node).unwrap();
                server.heard = sent;
                server.obey(&orders, &routing);
            }
            _ => self.register(node),
        }
    }

    fn leased(&self, node: NodeId) -> bool {
        let server = &self.servers[&node];
        server.up && self.now < server.heard + FENCE
    }

    fn adopt(&mut self, node: NodeId) {
        let routing = self.manager.routing().clone();
        let server = self.servers.get_mut(&node).unwrap();
        if server.up {
            server.adopt(&routing);
        }
    }

    /// The replica of a target, if it takes part under a version of its chain.
    fn partner(&mut self, target: TargetId, version: ChainVersion) -> Option<&mut Replica> {
        let node = self.manager.routing().targets.get(&target).map(|target| target.node);
        let node = node.filter(|node| self.leased(*node))?;
        let replica = self.servers.get_mut(&node).unwrap().replicas.get_mut(&target)?;
        let (known, state) = replica.view?;
        (known == version && state.takes_writes()).then_some(replica)
    }

    /// The heads of a server's own view write along it; a write may be lost on the way.
    fn write(&mut self, node: NodeId, random: &mut fastrand::Rng) {
        if !self.leased(node) {
            return;
        }
        let chains: Vec<_> = self.servers[&node].routing.chains.values().cloned().collect();
        for chain in chains {
            let Some(head) = chain.head() else { continue };
            let mine = self.servers[&node].replicas.get(&head);
            let writes = chain.serving().count() >= chain.min_serving as usize;
            if !writes || mine.is_none_or(|r| r.view != Some((chain.version, PublicState::Serving)))
            {
                continue;
            }
            let bit = 1u128 << self.next_write;
            self.next_write = (self.next_write + 1) % 128;
            // A bit that is used anew is lost first.
            self.acknowledged.entry(chain.id).and_modify(|all| *all &= !bit);
            for server in self.servers.values_mut() {
                let replicas = server.replicas.values_mut().filter(|r| r.chain == chain.id);
                replicas.for_each(|replica| replica.writes &= !bit);
            }
            let taken = chain.members.iter().filter(|m| m.state.takes_writes()).all(|member| {
                let lost = random.u8(..16) == 0;
                match self.partner(member.target, chain.version) {
                    Some(replica) if !lost => {
                        replica.writes |= bit;
                        true
                    }
                    _ => false,
                }
            });
            if taken {
                *self.acknowledged.entry(chain.id).or_default() |= bit;
            }
        }
    }

    /// The commit points fill those behind them.
    fn fill(&mut self) {
        for chain in self.manager.routing().chains.clone().values() {
            let syncs = |m: &&Member| m.state == PublicState::Syncing;
            let Some(to) = chain.members.iter().find(syncs).map(|m| m.target) else { continue };
            let Some(tail) = chain.tail() else { continue };
            let writes = self.partner(tail, chain.version).map(|replica| replica.writes);
            let Some(writes) = writes else { continue };
            if let Some(replica) = self.partner(to, chain.version) {
                (replica.writes, replica.filled) = (writes, Some(chain.version));
            }
        }
    }

    fn check(&self, seed: u64) {
        for (node, server) in self.servers.iter().filter(|(node, _)| self.leased(**node)) {
            for (id, replica) in &server.replicas {
                let serves = replica.view.is_some_and(|(_, state)| state == PublicState::Serving);
                let acknowledged = self.acknowledged.get(&replica.chain).copied().unwrap_or(0);
                let missing = acknowledged & !replica.writes;
                assert!(
                    !serves || missing == 0,
                    "seed {seed}: target {id} on {node} serves without {missing:b}"
                );
            }
        }
        for chain in self.manager.routing().chains.values() {
            let nodes = |state: PublicState| {
                let members = chain.members.iter().filter(move |member| member.state == state);
                members.map(|m| self.manager.routing().targets[&m.target].node)
            };
            let serving: Vec<_> = nodes(PublicState::Serving).collect();
            let apart: BTreeSet<_> = serving.iter().collect();
            assert!(apart.len() + 1 >= serving.len(), "only a move shares a server for a while");
        }
    }

    /// Half-second heartbeats and ticks for some seconds, everybody adopting at once.
    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 2 {
            self.now += SECOND / 2;
            for node in self.servers.keys().copied().collect::<Vec<_>>() {
                self.beat(node);
                self.adopt(node);
                self.fill();
            }
            self.apply(Event::Tick).unwrap();
        }
    }

    fn operate(&mut self, random: &mut fastrand::Rng) {
        let nodes: Vec<_> = self.servers.keys().copied().collect();
        let node = nodes[random.usize(..nodes.len())];
        let disk = self.servers[&node].disks[random.usize(..2)];
        let what = if random.bool() { Drained::Node(node) } else { Drained::Disk(disk) };
        let operation = match random.u8(..8) {
            0..=2 => Operation::Drain(Drain { what, onto: None }),
            3..=4 => match self.manager.state().drains.keys().next() {
                Some(what) => Operation::CancelDrain(*what),
                None => Operation::List,
            },
            5 => Operation::Rebalance { dry_run: random.bool() },
            6 => Operation::CancelRebalance,
            _ => Operation::ExtendTable { targets_per_disk: 4 },
        };
        drop(self.apply(Event::Operate(operation)));
    }

    /// One server is lost for good, if the cluster can bear it now.
    fn lose(&mut self, node: NodeId) {
        let whole = self.manager.routing().chains.values().all(|chain| {
            let others = chain
                .serving()
                .filter(|target| self.manager.routing().targets[target].node != node);
            others.count() >= chain.min_serving as usize
        });
        let up =
            self.servers.iter().all(|(id, server)| *id == node || self.leased(*id) && !server.lost);
        if whole && up {
            let server = self.servers.get_mut(&node).unwrap();
            (server.up, server.lost) = (false, true);
        }
    }

    fn step(&mut self, random: &mut fastrand::Rng) {
        self.now += random.u64(..SECOND / 4);
        let nodes: Vec<_> = self.servers.keys().copied().collect();
        let node = nodes[random.usize(..nodes.len())];
        match random.u16(..200) {
            0..=79 => self.beat(node),
            80..=109 => self.adopt(node),
            110..=139 => self.write(node, random),
            140..=154 => self.fill(),
            155..=179 => drop(self.apply(Event::Tick)),
            180..=182 => self.servers.get_mut(&node).unwrap().up = false,
            183..=189 if !self.servers[&node].up && !self.servers[&node].lost => self.start(node),
            190..=194 => self.operate(random),
            195..=196 => {
                let state = self.manager.state().clone();
                self.manager = Manager::new(options(), state, Monotonic(self.now));
            }
            197 if self.servers.len() < 7 => self.add_server(),
            198 if random.u8(..4) == 0 => self.lose(node),
            _ => {}
        }
    }

    /// Everything that goes on ends, once nothing new comes.
    fn settle(&mut self, seed: u64) {
        for node in self.servers.keys().copied().collect::<Vec<_>>() {
            if !self.servers[&node].up && !self.servers[&node].lost {
                self.start(node);
            }
        }
        // Enough room for what is drained and lost.
        while self.usable() < 4 {
            self.add_server();
        }
        for _ in 0..40 {
            self.run(30);
            self.check(seed);
            self.recover(seed);
            if self.trouble().is_none() {
                return;
            }
        }
        panic!("seed {seed}: {:?}", self.trouble());
    }

    /// Of chains whose last server is lost an operator names another member, which has everything that was
    /// acknowledged: as many servers as that have it were lost at once.
    fn recover(&mut self, seed: u64) {
        for chain in self.manager.routing().chains.clone().into_values() {
            let last = chain.members.iter().find(|m| m.state == PublicState::LastServing);
            let Some(last) = last.map(|member| member.target) else { continue };
            let acknowledged = self.acknowledged.get(&chain.id).copied().unwrap_or(0);
            let servers = self.servers.values().filter(|server| server.up);
            let holds = |(id, replica): (&TargetId, &Replica)| {
                let all = acknowledged & !replica.writes == 0;
                let complete = replica.completeness == Completeness::Complete;
                (*id != last && replica.chain == chain.id && all && complete).then_some(*id)
            };
            let from = servers.flat_map(|s| &s.replicas).find_map(holds);
            let from = from.unwrap_or_else(|| panic!("seed {seed}: {chain:?} is lost"));
            let recover = |from| Event::Operate(Operation::RecoverChain { chain: chain.id, from });
            assert!(self.apply(recover(last)).is_err());
            self.apply(recover(from)).unwrap();
            assert!(self.apply(recover(from)).is_err(), "it serves already");
            self.recovered += 1;
        }
    }

    fn usable(&self) -> usize {
        let state = self.manager.state();
        let usable = |(node, server): &(&NodeId, &Server)| {
            let drained = state.drains.contains_key(&Drained::Node(**node));
            let disks = server.disks.iter().any(|d| !state.drains.contains_key(&Drained::Disk(*d)));
            !server.lost && !drained && disks
        };
        self.servers.iter().filter(usable).count()
    }

    fn trouble(&self) -> Option<String> {
        let state = self.manager.state();
        let routing = &state.routing;
        if let Some(what) = state.moves.values().next() {
            return Some(format!("{what:?} in {:?}", routing.chains[&what.chain]));
        }
        for chain in routing.chains.values() {
            if chain.is_degraded() || chain.members.len() != chain.replicas as usize {
                return Some(format!("{chain:?}"));
            }
        }
        for target in routing.targets.values() {
            let disk = state.drains.contains_key(&Drained::Disk(target.disk));
            if disk || state.drains.contains_key(&Drained::Node(target.node)) {
                return Some(format!("{target:?} is still there"));
            }
        }
        let present = |server: &Server| -> Vec<_> { server.replicas.keys().copied().collect() };
        let up = self.servers.values().filter(|server| server.up);
        let stray = up.flat_map(present).find(|target| !routing.targets.contains_key(target));
        stray.map(|target| format!("target {target} is not deleted"))
    }
}

fn report(disk: DiskId) -> DiskReport {
    DiskReport { disk, capacity_bytes: 1 << 30, used_bytes: 0 }
}

#[test]
fn whatever_moves_no_write_is_lost_and_everything_ends() {
    let (mut finished, mut acknowledged, mut lost) = (0, 0, 0);
    for seed in 0..100 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::new();
        for _ in 0..2_500 {
            world.step(&mut random);
            world.check(seed);
        }
        world.settle(seed);
        finished += world.finished;
        acknowledged += world.acknowledged.values().map(|all| all.count_ones()).sum::<u32>();
        lost += world.servers.values().filter(|server| server.lost).count();
    }
    assert!(finished > 1_000, "{finished} moves");
    assert!(acknowledged > 5_000 && lost > 10, "{acknowledged} writes, {lost} lost servers");
}

#[test]
fn a_chain_whose_last_server_is_lost_goes_on_when_an_operator_says_from_where() {
    let mut random = fastrand::Rng::with_seed(1);
    let mut world = World::new();
    let chain = world.manager.routing().chains.values().next().unwrap().clone();
    let nodes: Vec<_> =
        chain.members.iter().map(|m| world.manager.routing().targets[&m.target].node).collect();
    for node in nodes.iter().rev() {
        for node in &nodes {
            world.write(*node, &mut random);
        }
        let server = world.servers.get_mut(node).unwrap();
        (server.up, server.lost) = (false, *node == nodes[0]);
        world.run(8);
    }
    nodes[1..].iter().for_each(|node| world.start(*node));
    world.run(40);
    let known = &world.manager.routing().chains[&chain.id];
    assert_eq!(known.head(), None, "it waits for the last one: {known:?}");
    assert!(world.acknowledged[&chain.id] != 0);
    world.settle(0);
    assert!(world.recovered > 0);
    let known = &world.manager.routing().chains[&chain.id];
    assert!(!known.is_degraded() && known.state_of(chain.members[0].target).is_none());
}
