//! Who is kept out of a chain though its server was heard: not a run of which nobody complained.
#![allow(clippy::unwrap_used, reason = "tests")]

use kiln_chain::lease::{LeaseTimes, Patience};
use kiln_config::BootstrapConfig;
use kiln_mgmtd::{Answer, Event, Manager, Options, State};
use kiln_rpc::{DiskReport, Heartbeat, Registration, TargetReport};
use kiln_types::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const CLUSTER: ClusterId = ClusterId(7);
const NOW: Monotonic = Monotonic(1_000_000_000);

/// Three servers, by number, and which of their heartbeats is next.
struct World {
    manager: Manager,
    sequence: u64,
}

impl World {
    /// All chains serve.
    fn serving() -> Self {
        let own = Node {
            id: NodeId(1),
            kind: ServiceKind::Mgmtd,
            address: "m:1".into(),
            incarnation: Incarnation(1),
            alive: true,
            tags: BTreeMap::new(),
        };
        let options = Options {
            own,
            lease: LeaseTimes::SERVER,
            patience: Patience::default(),
            bootstrap: BootstrapConfig { storage_servers: 3, ..BootstrapConfig::default() },
            key: KeyId(1),
            rebuild_after: Duration::ZERO,
        };
        let manager = Manager::new(options, State::new(CLUSTER), NOW);
        let mut world = Self { manager, sequence: 0 };
        (101..104).for_each(|node| drop(world.register(node, 1).unwrap()));
        let mut targets = BTreeMap::<u64, Vec<TargetId>>::new();
        for node in (101..104).cycle().take(9) {
            let mine = targets.entry(node).or_default();
            let orders = world.heartbeat(node, 1, mine, |_| {}).unwrap();
            let Answer::Alive { orders } = orders else { panic!("another answer") };
            mine.extend(orders.create.iter().map(|order| order.target));
        }
        assert_eq!(world.states_of(102), BTreeSet::from([PublicState::Serving]));
        world
    }

    fn disk(node: u64) -> DiskReport {
        DiskReport { disk: DiskId(node.into()), capacity_bytes: 1 << 30, used_bytes: 0 }
    }

    fn register(&mut self, node: u64, run: u128) -> Result<Answer> {
        let registration = Registration {
            cluster: CLUSTER,
            node: NodeId(node),
            kind: ServiceKind::Storage,
            address: format!("s:{node}"),
            incarnation: Incarnation(run),
            disks: vec![Self::disk(node)],
            tags: BTreeMap::new(),
            version: "test".into(),
        };
        self.manager.apply(Event::Register(registration), NOW)
    }

    /// A heartbeat of a server with these targets, of each of which it says more.
    fn heartbeat(
        &mut self,
        node: u64,
        run: u128,
        targets: &[TargetId],
        more: impl Fn(&mut TargetReport),
    ) -> Result<Answer> {
        let report = |target: &TargetId| {
            let chain = self.manager.routing().chains.values();
            let chain = chain.into_iter().find(|chain| chain.state_of(*target).is_some());
            let mut report = TargetReport {
                target: *target,
                local: LocalState::UpToDate,
                chain_version: chain.map_or(ChainVersion(0), |chain| chain.version),
                used_bytes: 0,
                oldest_io: Duration::ZERO,
                unreachable: None,
                fill: None,
            };
            more(&mut report);
            report
        };
        let targets = targets.iter().map(report).collect();
        self.sequence += 1;
        let heartbeat = Heartbeat {
            node: NodeId(node),
            incarnation: Incarnation(run),
            sequence: self.sequence,
            routing: self.manager.routing().version,
            targets,
            disks: vec![Self::disk(node)],
            stopping: false,
        };
        self.manager.apply(Event::Heartbeat(heartbeat), NOW)
    }

    fn targets_of(&self, node: u64) -> Vec<TargetId> {
        let targets = self.manager.routing().targets.values();
        targets.filter(|target| target.node == NodeId(node)).map(|target| target.id).collect()
    }

    fn states_of(&self, node: u64) -> BTreeSet<PublicState> {
        let chains: Vec<_> = self.manager.routing().chains.values().collect();
        let state = |target| chains.iter().find_map(|chain| chain.state_of(target));
        self.targets_of(node).into_iter().filter_map(state).collect()
    }

    /// Each target before one of server 102 cannot reach that.
    fn complain_of_102(&mut self) {
        let (mine, chains) = (self.targets_of(102), self.manager.routing().chains.clone());
        let behind = |target| chains.values().find_map(|chain| chain.successor_of(target));
        for node in [101, 103] {
            let targets = self.targets_of(node);
            let complaint = self.heartbeat(node, 1, &targets, |report| {
                report.unreachable = behind(report.target).filter(|target| mine.contains(target));
            });
            complaint.unwrap();
        }
    }
}

#[test]
fn a_living_server_is_told_first_and_one_that_died_and_runs_again_is_no_suspect() {
    let code = |result: Result<Answer>| result.map(drop).map_err(|error| error.code());
    for run in [1, 2] {
        let mut world = World::serving();
        world.complain_of_102();
        assert_eq!(world.states_of(102), BTreeSet::from([PublicState::Serving]));
        let mine = world.targets_of(102);
        if run == 1 {
            let refused = world.heartbeat(102, 1, &mine, |_| {});
            assert_eq!(code(refused), Err(Code::UnknownMember));
        }
        world.register(102, run).unwrap();
        world.heartbeat(102, run, &mine, |_| {}).unwrap();
        assert_eq!(world.states_of(102).contains(&PublicState::Offline), run == 1);
    }
}

#[test]
fn a_target_whose_disk_hangs_is_taken_out_unless_it_is_the_last() {
    let mut world = World::serving();
    for node in 101..104 {
        let mine = world.targets_of(node);
        let hangs = |report: &mut TargetReport| report.oldest_io = Duration::from_secs(6);
        if world.heartbeat(node, 1, &mine, hangs).is_err() {
            world.register(node, 1).unwrap();
        }
    }
    assert_eq!(world.states_of(101), BTreeSet::from([PublicState::Offline]));
    assert_eq!(world.states_of(102), BTreeSet::from([PublicState::Offline]));
    assert_eq!(world.states_of(103), BTreeSet::from([PublicState::Serving]));
}
