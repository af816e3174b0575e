//! The machines of a run.

use crate::client::ClientHost;
use crate::log::Log;
use crate::manager::ManagerHost;
use crate::options::Options;
use crate::road::{Breaks, Managers, Road};
use crate::server::ServerHost;
use crate::workload::Workload;
use kiln_env::{Env, Executor};
use kiln_kv::MemoryKv;
use kiln_manager_link::RoutingWatch;
use kiln_net::{Peer, PeerKind, SimulatedNetwork, SimulatedOptions};
use kiln_types::{
    ClusterId, CredentialLimits, KeyId, Monotonic, Node, NodeId, Result, RoutingInfo, Secret,
    ServerKey, TargetId,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The room of a file system that is never full.
pub(crate) const ROOM: u64 = 1 << 40;

/// All machines, the network between them, and what the clients do.
pub(crate) struct Cluster {
    pub(crate) options: Options,
    pub(crate) ground: Env,
    pub(crate) network: SimulatedNetwork,
    pub(crate) managers: Vec<Arc<ManagerHost>>,
    pub(crate) servers: Vec<Arc<ServerHost>>,
    pub(crate) clients: Vec<Arc<ClientHost>>,
    /// A client that does nothing until the end.
    pub(crate) auditor: Arc<ClientHost>,
    pub(crate) workload: Arc<Workload>,
    pub(crate) log: Log,
    road: Road,
    /// How many faults cut each way now.
    cuts: Mutex<BTreeMap<(String, String), u32>>,
    observer: OnceLock<RoutingWatch>,
    is_calm: AtomicBool,
    /// Before this no great fault strikes again.
    pub(crate) quiet_at: Mutex<Monotonic>,
}

impl Cluster {
    /// Machines of which none is started yet.
    pub(crate) fn new(options: Options, executor: &Executor, log: Log) -> Arc<Self> {
        let ground = executor.env();
        let key = ServerKey { cluster: ClusterId(7), id: KeyId(1), secret: Secret([7; 32]) };
        let network = SimulatedNetwork::new(quiet_network(), ground.clone());
        let (known, breaks) = (Managers::default(), Breaks::default());
        let workload = Workload::new(options.clone(), &key, ground.clone(), log.clone());
        let road = |member: String, kind, node| Road {
            peer: Arc::new(peer(&key, &member, kind, node)),
            member,
            managers: Arc::clone(&known),
            breaks: Arc::clone(&breaks),
            network: network.clone(),
            ground: ground.clone(),
        };
        let server = |number: usize| {
            let node = NodeId(100 + number as u64);
            let road = road(format!("server{number}"), PeerKind::Server, Some(node));
            let place = (node, executor.host());
            let workload = Arc::clone(&workload);
            ServerHost::new(&options, place, key.clone(), road, workload, log.clone())
        };
        let client = |number: usize| {
            let limits = CredentialLimits::default();
            let kind = PeerKind::Client { name: "admin".into(), limits };
            let road = road(format!("client{number}"), kind, None);
            let place = (number, executor.host());
            let workload = Arc::clone(&workload);
            ClientHost::new(&options, place, key.clone(), road, workload, log.clone())
        };
        let kv = MemoryKv::new(&ground);
        let manager = |number: usize| {
            let road = road(manager_name(number), PeerKind::Server, Some(NodeId(number as u64)));
            ManagerHost::new(&options, number, executor.host(), key.clone(), &kv, road, log.clone())
        };
        let managers: Vec<_> = (1..=options.managers).map(manager).collect();
        known.get_or_init(|| managers.iter().map(Arc::downgrade).collect());
        let observer = road("observer".into(), PeerKind::Server, None);
        Arc::new(Self {
            servers: (1..=options.servers).map(server).collect(),
            clients: (1..=options.clients).map(client).collect(),
            auditor: client(0),
            managers,
            road: observer,
            cuts: Mutex::default(),
            observer: OnceLock::new(),
            is_calm: AtomicBool::new(false),
            quiet_at: Mutex::new(Monotonic(0)),
            options,
            ground,
            network,
            workload,
            log,
        })
    }

    /// Starts everything but the auditor.
    pub(crate) fn start(&self) {
        let drift = self.options.drift_ppm;
        let hosts = self.servers.iter().map(|server| &server.host);
        let hosts = hosts.chain(self.clients.iter().map(|client| &client.host));
        for host in hosts.chain(self.managers.iter().map(|manager| &manager.host)) {
            host.add_uptime(Duration::from_secs(self.ground.random_below(1_000_000)));
            if drift > 0 {
                host.set_drift(self.ground.random_below(2 * drift as u64 + 1) as i64 - drift);
            }
        }
        self.managers.iter().for_each(|manager| manager.start());
        self.servers.iter().for_each(|server| server.start());
        self.clients.iter().for_each(|client| client.start());
    }

    /// What the managers publish, seen from a place that is never cut off.
    pub(crate) fn observe(&self) -> Result<&RoutingWatch> {
        if let Some(watch) = self.observer.get() {
            return Ok(watch);
        }
        let road = Arc::new(self.road.clone());
        let watch = RoutingWatch::start_over(road, named_managers(), &self.ground)?;
        Ok(self.observer.get_or_init(|| watch))
    }

    /// The manager that is said to be the primary; some manager if none is.
    pub(crate) fn primary(&self) -> &Arc<ManagerHost> {
        let routing = self.observe().map(|watch| watch.routing().now());
        let leads = |node: &&Node| node.tags.get("role").is_some_and(|role| role == "primary");
        let primary = routing.ok().and_then(|routing| Some(routing.nodes.values().find(leads)?.id));
        let NodeId(primary) = primary.unwrap_or(NodeId(1));
        &self.managers[(primary as usize - 1).min(self.managers.len() - 1)]
    }

    /// Lets nothing pass from one host to another, until it is mended as often.
    pub(crate) fn cut(&self, from: &str, to: &str) {
        if self.is_calm() {
            return;
        }
        *self.cuts.lock().entry((from.to_owned(), to.to_owned())).or_default() += 1;
        self.network.cut(from, to);
    }

    /// Takes one cut back.
    pub(crate) fn mend(&self, from: &str, to: &str) {
        let mut cuts = self.cuts.lock();
        let Some(count) = cuts.get_mut(&(from.to_owned(), to.to_owned())) else { return };
        *count -= 1;
        if *count == 0 {
            cuts.remove(&(from.to_owned(), to.to_owned()));
            self.network.mend(from, to);
        }
    }

    /// Breaks the connections between two hosts; what is on its way is lost.
    pub(crate) fn break_between(&self, a: &str, b: &str) {
        self.network.break_between(a, b);
        let mut breaks = self.road.breaks.lock();
        for (member, manager) in [(a, b), (b, a)] {
            *breaks.entry((member.to_owned(), manager.to_owned())).or_default() += 1;
        }
    }

    /// The server that has a target.
    pub(crate) fn server_of(
        &self,
        target: TargetId,
        routing: &RoutingInfo,
    ) -> Option<&Arc<ServerHost>> {
        let node = routing.node_of(target)?.id;
        self.servers.iter().find(|server| server.node == node)
    }

    /// Whether there are no more faults, also none that were to come later.
    pub(crate) fn is_calm(&self) -> bool {
        self.is_calm.load(Ordering::Relaxed)
    }

    /// Takes all faults back: what is down starts, what is cut is mended.
    pub(crate) fn calm(&self) {
        self.is_calm.store(true, Ordering::Relaxed);
        self.cuts.lock().clear();
        self.network.heal();
        self.network.set_options(quiet_network());
        for manager in &self.managers {
            manager.host.resume();
            manager.start();
        }
        for server in &self.servers {
            server.host.resume();
            for disk in server.disks() {
                disk.set_slowness(1);
                disk.hang(false);
                disk.set_physical_capacity(ROOM);
                disk.fail_no_more();
            }
            server.start();
        }
        for client in &self.clients {
            client.host.resume();
            client.start();
        }
    }
}

fn manager_name(number: usize) -> String {
    format!("manager{number}")
}

/// The manager that everybody is told of; the others are known from it.
pub(crate) fn named_managers() -> Vec<String> {
    vec![format!("{}:1", manager_name(1))]
}

/// A network without faults; patience is what it has with what is cut.
pub(crate) fn quiet_network() -> SimulatedOptions {
    SimulatedOptions { patience: Duration::from_secs(4), ..SimulatedOptions::default() }
}

fn peer(key: &ServerKey, name: &str, kind: PeerKind, node: Option<NodeId>) -> Peer {
    let (cluster, key, version, features) = (key.cluster, key.id, 1, 0);
    Peer { kind, node, cluster, key, version, features, address: name.to_owned() }
}
