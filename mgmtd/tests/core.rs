//! The manager's decisions in simulated time, without a network.
#![allow(clippy::unwrap_used, reason = "tests")]

use kiln_chain::lease::{LeaseTimes, Patience};
use kiln_chain::membership::validate;
use kiln_config::BootstrapConfig;
use kiln_mgmtd::{Answer, Event, FIRST_TABLE, Manager, Options, State};
use kiln_rpc::{DiskReport, Heartbeat, Registration, TargetOrder, TargetReport};
use kiln_types::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const CLUSTER: ClusterId = ClusterId(7);
const SECOND: u64 = 1_000_000_000;

fn options(storage_servers: u32) -> Options {
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
            storage_servers,
            credential: "admin".into(),
            ..BootstrapConfig::default()
        },
        key: KeyId(1),
        rebuild_after: Duration::ZERO,
    }
}

/// A storage server as the manager sees it.
#[derive(Clone)]
struct Server {
    incarnation: u128,
    sequence: u64,
    disks: Vec<DiskId>,
    targets: BTreeMap<TargetId, LocalState>,
    beats: bool,
}

struct World {
    manager: Manager,
    now: u64,
    servers: BTreeMap<NodeId, Server>,
    next_incarnation: u128,
}

impl World {
    fn new(storage_servers: u32) -> Self {
        let manager =
            Manager::new(options(storage_servers), State::new(CLUSTER), Monotonic(SECOND));
        let mut world =
            Self { manager, now: SECOND, servers: BTreeMap::new(), next_incarnation: 100 };
        for n in 1..=u64::from(storage_servers) {
            let node = NodeId(100 + n);
            let server = Server {
                incarnation: 0,
                sequence: 0,
                disks: vec![DiskId(u128::from(n))],
                targets: BTreeMap::new(),
                beats: true,
            };
            world.servers.insert(node, server);
        }
        world
    }

    /// A cluster whose chains all serve.
    fn serving(storage_servers: u32) -> Self {
        let mut world = Self::new(storage_servers);
        for node in world.nodes() {
            world.register(node).unwrap();
        }
        world.run(Duration::from_secs(2));
        assert_eq!(world.count(PublicState::Serving), 6 * storage_servers as usize);
        world
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.servers.keys().copied().collect()
    }

    fn now(&self) -> Monotonic {
        Monotonic(self.now)
    }

    fn apply(&mut self, event: Event) -> Result<Answer> {
        let before = self.manager.state().clone();
        let answer = self.manager.apply(event, Monotonic(self.now));
        let after = self.manager.state();
        let mut unversioned = after.clone();
        unversioned.routing.version = before.routing.version;
        let bumped = after.routing.version.0 - before.routing.version.0;
        assert_eq!(bumped, u64::from(unversioned != before), "the version tells every change");
        assert!(answer.is_ok() || unversioned == before, "a refusal changes nothing");
        for (id, chain) in &after.routing.chains {
            validate(chain).unwrap();
            let Some(old) = before.routing.chains.get(id) else { continue };
            let grown = chain.version.0 - old.version.0;
            assert_eq!(grown, u64::from(chain.members != old.members));
        }
        answer
    }

    fn registration(&self, node: NodeId) -> Registration {
        let server = &self.servers[&node];
        Registration {
            cluster: CLUSTER,
            node,
            kind: ServiceKind::Storage,
            address: format!("s:{node}"),
            incarnation: Incarnation(server.incarnation),
            disks: server.disks.iter().map(|disk| report(*disk)).collect(),
            tags: BTreeMap::new(),
            version: "test".into(),
        }
    }

    /// A new run of the server's program.
    fn register(&mut self, node: NodeId) -> Result<Answer> {
        self.next_incarnation += 1;
        let incarnation = self.next_incarnation;
        let server = self.servers.get_mut(&node).unwrap();
        server.incarnation = incarnation;
        server.sequence = 0;
        server.beats = true;
        self.apply(Event::Register(self.registration(node)))
    }

    /// The server's next heartbeat, with the chain versions that are published.
    fn heartbeat(&mut self, node: NodeId, stopping: bool) -> Heartbeat {
        let routing = self.manager.routing().clone();
        let server = self.servers.get_mut(&node).unwrap();
        server.sequence += 1;
        let chain = |target| {
            let target: &Target = routing.targets.get(target)?;
            routing.chains.get(&target.chain)
        };
        let reports = server.targets.iter().map(|(target, local)| TargetReport {
            target: *target,
            local: *local,
            chain_version: chain(target).map_or(ChainVersion(0), |chain| chain.version),
            used_bytes: 0,
            oldest_io: Duration::ZERO,
            unreachable: None,
            fill: None,
        });
        Heartbeat {
            node,
            incarnation: Incarnation(server.incarnation),
            sequence: server.sequence,
            routing: routing.version,
            targets: reports.collect(),
            disks: server.disks.iter().map(|disk| report(*disk)).collect(),
            stopping,
        }
    }

    fn beat(&mut self, node: NodeId) -> Result<Vec<TargetOrder>> {
        let heartbeat = self.heartbeat(node, false);
        let Answer::Alive { orders } = self.apply(Event::Heartbeat(heartbeat))? else {
            panic!("another answer")
        };
        let server = self.servers.get_mut(&node).unwrap();
        for order in &orders.create {
            assert!(server.disks.contains(&order.disk));
            server.targets.insert(order.target, LocalState::Online);
        }
        Ok(orders.create)
    }

    /// Heartbeats each half second and ticks each tenth, as they really come.
    fn run(&mut self, duration: Duration) {
        let end = self.now + duration.as_nanos() as u64;
        while self.now < end {
            self.now += SECOND / 10;
            if self.now.is_multiple_of(SECOND / 2) {
                for node in self.nodes() {
                    if self.servers[&node].beats && self.beat(node).is_err() {
                        // Declared dead: the same run registers again.
                        self.apply(Event::Register(self.registration(node))).unwrap();
                        self.beat(node).unwrap();
                    }
                }
            }
            self.apply(Event::Tick).unwrap();
        }
    }

    /// What the server says of all its targets from now on.
    fn report_all(&mut self, node: u64, local: LocalState) {
        let server = self.servers.get_mut(&NodeId(node)).unwrap();
        server.targets.values_mut().for_each(|old| *old = local);
    }

    fn kill(&mut self, node: u64) {
        self.servers.get_mut(&NodeId(node)).unwrap().beats = false;
    }

    fn count(&self, state: PublicState) -> usize {
        self.manager.count(state)
    }

    fn states_of(&self, node: u64) -> BTreeSet<PublicState> {
        let routing = self.manager.routing();
        let mine = routing.targets.values().filter(|target| target.node == NodeId(node));
        mine.filter_map(|t| routing.chains.get(&t.chain)?.state_of(t.id)).collect()
    }

    /// The manager's process dies and starts again with what was durable.
    fn restart_manager(&mut self) {
        let state = self.manager.state().clone();
        self.manager = Manager::new(options(self.servers.len() as u32), state, self.now());
    }
}

fn report(disk: DiskId) -> DiskReport {
    DiskReport { disk, capacity_bytes: 1 << 30, used_bytes: 0 }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn only(state: PublicState) -> BTreeSet<PublicState> {
    BTreeSet::from([state])
}

#[test]
fn chains_are_published_when_all_their_targets_exist() {
    let mut world = World::new(3);
    let routing = world.manager.routing();
    assert_eq!(routing.version, RoutingVersion(1));
    assert_eq!(routing.credentials[0].name, "admin");
    world.register(NodeId(101)).unwrap();
    world.register(NodeId(102)).unwrap();
    assert!(world.beat(NodeId(101)).unwrap().is_empty());
    assert!(world.manager.routing().targets.is_empty());
    world.register(NodeId(103)).unwrap();
    assert_eq!(world.manager.routing().targets.len(), 18);
    for node in [101, 102] {
        assert_eq!(world.beat(NodeId(node)).unwrap().len(), 6);
        assert_eq!(world.beat(NodeId(node)).unwrap().len(), 0);
    }
    assert!(world.manager.routing().chains.is_empty());

    // The manager restarts in between: orders are given again.
    world.restart_manager();
    assert_eq!(world.beat(NodeId(103)).unwrap().len(), 6);
    let half: Vec<_> = world.servers[&NodeId(103)].targets.keys().copied().take(3).collect();
    let rest = world.servers.get_mut(&NodeId(103)).unwrap();
    let rest = std::mem::replace(
        &mut rest.targets,
        half.into_iter().map(|t| (t, LocalState::Online)).collect(),
    );
    world.beat(NodeId(103)).unwrap();
    assert_eq!(world.manager.routing().chains.len(), 3);
    assert_eq!(world.manager.routing().newest_table(FIRST_TABLE), None);
    world.servers.get_mut(&NodeId(103)).unwrap().targets = rest;
    world.beat(NodeId(103)).unwrap();
    let routing = world.manager.routing();
    let table = routing.newest_table(FIRST_TABLE).unwrap();
    assert_eq!((table.version, table.chains.len()), (1, 6));
    for chain in routing.chains.values() {
        assert_eq!((chain.version, chain.min_serving), (ChainVersion(1), 2));
        assert_eq!(chain.serving().count(), 3);
        let nodes: BTreeSet<_> = chain.serving().map(|t| routing.targets[&t].node).collect();
        assert_eq!(nodes.len(), 3);
    }
    let heads: Vec<_> = routing.chains.values().filter_map(Chain::head).collect();
    let nodes: BTreeSet<_> = heads[..3].iter().map(|t| routing.targets[t].node).collect();
    assert_eq!(nodes.len(), 3, "neighbours in the table have different heads");
}

#[test]
fn a_dead_server_is_out_after_its_lease_and_is_filled_when_it_returns() {
    let mut world = World::serving(3);
    world.kill(102);
    world.run(secs(4));
    assert_eq!(world.count(PublicState::Serving), 18);
    world.run(secs(2));
    assert_eq!(world.count(PublicState::Serving), 12);
    assert_eq!(world.states_of(102), only(PublicState::Offline));
    assert!(!world.manager.routing().nodes[&NodeId(102)].alive);
    let late = world.heartbeat(NodeId(102), false);
    assert_eq!(world.apply(Event::Heartbeat(late)).unwrap_err().code(), Code::UnknownMember);
    world.servers.get_mut(&NodeId(102)).unwrap().beats = true;
    world.run(secs(3));
    assert_eq!(world.states_of(102), only(PublicState::Syncing));
    assert_eq!(world.count(PublicState::Serving), 12);
    world.report_all(102, LocalState::UpToDate);
    world.run(secs(1));
    assert_eq!(world.count(PublicState::Serving), 18);
}

#[test]
fn a_target_that_its_neighbour_cannot_reach_is_kept_out_for_a_while() {
    let mut world = World::serving(3);
    let chain = world.manager.routing().chains.values().next().unwrap().clone();
    let [first, second] = [0, 1].map(|place| chain.members[place].target);
    let complain = |world: &mut World, from: TargetId, about: TargetId| {
        let node = world.manager.routing().targets[&from].node;
        let mut heartbeat = world.heartbeat(node, false);
        let report = heartbeat.targets.iter_mut().find(|report| report.target == from);
        report.unwrap().unreachable = Some(about);
        world.apply(Event::Heartbeat(heartbeat)).unwrap();
        world.manager.routing().chains[&chain.id].state_of(about).unwrap()
    };
    let server = world.manager.routing().targets[&second].node;
    // Of one that is not right behind it a target knows nothing.
    let third = chain.members[2].target;
    assert_eq!(complain(&mut world, first, third), PublicState::Serving);
    let state = |world: &World| world.manager.routing().chains[&chain.id].state_of(second);
    assert_eq!(complain(&mut world, first, second), PublicState::Serving, "its lease runs");
    assert_eq!(world.beat(server).map_err(|e| e.code()), Err(Code::UnknownMember));
    assert_eq!(state(&world), Some(PublicState::Serving), "it may not have heard that");
    world.apply(Event::Register(world.registration(server))).unwrap();
    assert_eq!(state(&world), Some(PublicState::Offline));
    world.run(secs(8));
    assert_eq!(state(&world), Some(PublicState::Offline), "its heartbeats do not bring it back");
    world.run(secs(3));
    assert_eq!(state(&world), Some(PublicState::Syncing));
}

#[test]
fn a_restart_within_the_lease_changes_no_chain() {
    let mut world = World::serving(3);
    let chains = world.manager.routing().chains.clone();
    let old = world.heartbeat(NodeId(103), false);
    world.kill(103);
    world.run(secs(3));
    world.register(NodeId(103)).unwrap();
    world.run(secs(8));
    assert_eq!(world.manager.routing().chains, chains);
    assert_eq!(world.apply(Event::Heartbeat(old)).unwrap_err().code(), Code::StaleIncarnation);
}

#[test]
fn a_restarted_manager_declares_nobody_dead_for_one_lease() {
    let mut world = World::serving(3);
    world.kill(101);
    world.run(Duration::from_millis(4900));
    world.restart_manager();
    world.run(Duration::from_millis(4900));
    assert_eq!(world.count(PublicState::Serving), 18);
    // It never made contact with this manager: it gets the longer time of a start.
    world.run(secs(9));
    assert_eq!(world.count(PublicState::Serving), 18);
    world.run(secs(2));
    assert_eq!(world.states_of(101), only(PublicState::Offline));

    // Heartbeats of a manager's predecessor are taken up without a new registration.
    world.restart_manager();
    world.beat(NodeId(102)).unwrap();
    world.kill(102);
    world.run(Duration::from_millis(5100));
    assert_eq!(world.states_of(102), only(PublicState::Offline));
}

#[test]
fn a_manager_that_stood_still_blames_nobody() {
    let mut world = World::serving(3);
    world.now += 3600 * SECOND;
    world.apply(Event::Tick).unwrap();
    world.run(secs(2));
    assert_eq!(world.count(PublicState::Serving), 18);
}

#[test]
fn when_all_servers_die_the_chains_wait_for_the_last_ones() {
    let mut world = World::serving(3);
    world.kill(101);
    world.run(secs(7));
    world.kill(102);
    world.kill(103);
    world.run(secs(7));
    assert_eq!(world.count(PublicState::LastServing), 6);
    assert_eq!(world.states_of(101), only(PublicState::Offline));
    // The one that missed writes is back first: it must not serve.
    world.register(NodeId(101)).unwrap();
    world.run(secs(3));
    assert_eq!((world.count(PublicState::Serving), world.count(PublicState::Waiting)), (0, 6));
    world.restart_manager();
    for node in [102, 103] {
        world.register(NodeId(node)).unwrap();
    }
    world.run(secs(3));
    assert_eq!(world.count(PublicState::LastServing), 0);
    // They fill the others, one of each chain at a time.
    let counts = [PublicState::Serving, PublicState::Syncing, PublicState::Waiting];
    assert_eq!(counts.map(|state| world.count(state)), [6, 6, 6]);
    assert!(!world.states_of(101).contains(&PublicState::Serving));
}

#[test]
fn a_stopping_server_gives_its_role_away_at_once_where_enough_others_serve() {
    let mut world = World::serving(3);
    for node in [103, 101, 102] {
        let stop = world.heartbeat(NodeId(node), true);
        world.apply(Event::Heartbeat(stop)).unwrap();
        world.kill(node);
        assert_eq!(world.count(PublicState::Serving), 12, "two of three are needed");
    }
    assert_eq!(world.states_of(103), only(PublicState::Offline));
    // One is back before its lease has ended, the other one is not.
    world.register(NodeId(102)).unwrap();
    world.run(secs(1));
    assert_eq!(world.states_of(102), only(PublicState::Serving));
    world.run(secs(6));
    assert_eq!(world.states_of(102), only(PublicState::Serving));
    assert_eq!(world.states_of(101), only(PublicState::Offline));
}

#[test]
fn a_wiped_disk_is_offline_and_never_filled_silently() {
    let mut world = World::serving(3);
    let server = world.servers.get_mut(&NodeId(101)).unwrap();
    server.disks = vec![DiskId(999)];
    server.targets.clear();
    // Nothing proves that the run before is dead: it has to wait for the lease.
    assert_eq!(world.register(NodeId(101)).unwrap_err().code(), Code::Busy);
    world.kill(101);
    world.run(secs(6));
    world.register(NodeId(101)).unwrap();
    world.run(secs(3));
    assert_eq!(world.states_of(101), only(PublicState::Offline));
    assert_eq!(world.beat(NodeId(101)).unwrap(), []);
    assert_eq!(world.manager.routing().targets.len(), 18);

    // Of two disks one is kept: a quick restart is accepted, and the targets of the other are out.
    let mut world = World::new(3);
    for server in world.servers.values_mut() {
        server.disks.push(DiskId(server.disks[0].0 + 50));
    }
    world.nodes().into_iter().for_each(|node| drop(world.register(node)));
    world.run(secs(2));
    assert_eq!(world.count(PublicState::Serving), 36);
    world.servers.get_mut(&NodeId(101)).unwrap().disks.pop();
    world.register(NodeId(101)).unwrap();
    assert_eq!(world.count(PublicState::Serving), 30);
}

#[test]
fn a_failed_target_is_out_at_once_and_old_reports_do_not_bring_it_back() {
    let mut world = World::serving(3);
    let target = *world.servers[&NodeId(102)].targets.keys().next().unwrap();
    let mut stale = world.heartbeat(NodeId(102), false);
    let set = |world: &mut World, local| {
        world.servers.get_mut(&NodeId(102)).unwrap().targets.insert(target, local);
        world.beat(NodeId(102)).unwrap();
        let routing = world.manager.routing();
        routing.chains[&routing.targets[&target].chain].state_of(target).unwrap()
    };
    assert_eq!(set(&mut world, LocalState::Offline), PublicState::Offline);
    let duplicate = world.apply(Event::Heartbeat(stale.clone())).unwrap_err();
    assert_eq!(duplicate.code(), Code::DuplicateRequest);
    stale.sequence = 1000;
    world.servers.get_mut(&NodeId(102)).unwrap().sequence = 1000;
    world.apply(Event::Heartbeat(stale)).unwrap();
    assert_eq!(world.count(PublicState::Waiting), 0, "said under an old chain version");
    assert_eq!(set(&mut world, LocalState::UpToDate), PublicState::Waiting);
    assert_eq!(world.count(PublicState::Serving), 17);
}

#[test]
fn strangers_are_refused() {
    let mut world = World::serving(3);
    let code = |world: &mut World, registration| {
        world.apply(Event::Register(registration)).unwrap_err().code()
    };
    let good = world.registration(NodeId(101));
    let foreign = Registration { cluster: ClusterId(8), ..good.clone() };
    assert_eq!(code(&mut world, foreign), Code::WrongCluster);
    let meta = Registration { kind: ServiceKind::Meta, ..good.clone() };
    assert_eq!(code(&mut world, meta), Code::Invalid);
    let manager = Registration { node: NodeId(1), ..good.clone() };
    assert_eq!(code(&mut world, manager), Code::Invalid);

    // Another process with the id of a storage server, but without its disks.
    let other = Registration { incarnation: Incarnation(9), disks: vec![], ..good.clone() };
    assert_eq!(code(&mut world, other), Code::Busy);

    // A server without disks is replaced at once, and the one before stays out.
    let meta = Registration {
        node: NodeId(2),
        kind: ServiceKind::Meta,
        address: "a:1".into(),
        disks: vec![],
        incarnation: Incarnation(1),
        ..good
    };
    world.apply(Event::Register(meta.clone())).unwrap();
    let elsewhere =
        Registration { address: "b:1".into(), incarnation: Incarnation(2), ..meta.clone() };
    world.apply(Event::Register(elsewhere)).unwrap();
    assert_eq!(world.manager.routing().nodes[&NodeId(2)].address, "b:1");
    assert_eq!(code(&mut world, meta), Code::StaleIncarnation);
}

#[test]
fn credential_names_are_given_once() {
    let mut world = World::new(3);
    let create = |name: &str| Event::CreateCredential {
        name: name.into(),
        limits: CredentialLimits::default(),
    };
    let revoke = |name: &str| Event::RevokeCredential { name: name.into() };
    world.apply(create("a")).unwrap();
    assert_eq!(world.apply(create("a")).unwrap_err().code(), Code::Exists);
    assert_eq!(world.apply(create("a b")).unwrap_err().code(), Code::Invalid);
    assert_eq!(world.apply(revoke("b")).unwrap_err().code(), Code::NotFound);
    world.apply(revoke("a")).unwrap();
    world.apply(revoke("a")).unwrap();
    world.restart_manager();
    assert_eq!(world.apply(create("a")).unwrap_err().code(), Code::Exists);
    let records = &world.manager.routing().credentials;
    assert!(records.iter().any(|record| record.name == "a" && record.revoked));
    assert_eq!(records.len(), 2);
}

/// Whoever stops serving was heard to have stopped, or its lease has run out.
#[test]
fn random_histories_take_roles_only_from_those_that_cannot_serve() {
    let mut taken = 0;
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::serving(3 + (seed % 3) as u32);
        let mut heard: BTreeMap<NodeId, u64> = BTreeMap::new();
        let start = world.now;
        for _ in 0..600 {
            world.now += random.u64(..SECOND / 4);
            let nodes = world.nodes();
            let node = nodes[random.usize(..nodes.len())];
            let before = serving(&world);
            let mut excused = None;
            match random.u8(..40) {
                0 => world.kill(node.0),
                1..=2 if world.register(node).is_ok() => drop(heard.insert(node, world.now)),
                3 => {
                    let stop = world.heartbeat(node, true);
                    if world.apply(Event::Heartbeat(stop)).is_ok() {
                        world.kill(node.0);
                        excused = Some(node);
                    }
                }
                4 => {
                    let server = world.servers.get_mut(&node).unwrap();
                    let states = [LocalState::Offline, LocalState::UpToDate, LocalState::Online];
                    for local in server.targets.values_mut() {
                        *local = states[random.usize(..3)];
                    }
                    excused = Some(node);
                    if server.beats && world.beat(node).is_ok() {
                        heard.insert(node, world.now);
                    }
                }
                5 if random.u8(..4) == 0 => {
                    world.restart_manager();
                    heard.values_mut().for_each(|time| *time = (*time).max(world.now));
                    for node in &nodes {
                        heard.entry(*node).or_insert(world.now);
                    }
                }
                6..=9 => drop(world.apply(Event::Tick)),
                _ => {
                    let server = &world.servers[&node];
                    let excuses = server.targets.values().any(|local| !local.is_alive());
                    excused = excuses.then_some(node);
                    if server.beats && world.beat(node).is_ok() {
                        heard.insert(node, world.now);
                    }
                }
            }
            for target in before.difference(&serving(&world)) {
                taken += 1;
                let node = world.manager.routing().targets[target].node;
                let silent = world.now - *heard.get(&node).unwrap_or(&start);
                let ended = silent + SECOND / 2 >= 5 * SECOND;
                assert!(ended || excused == Some(node), "seed {seed}: node {node} serves");
            }
        }
    }
    assert!(taken > 500, "{taken}");
}

fn serving(world: &World) -> BTreeSet<TargetId> {
    world.manager.routing().chains.values().flat_map(|chain| chain.serving()).collect()
}
