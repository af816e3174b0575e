//! What goes wrong in the network.

use crate::cluster::{Cluster, quiet_network};
use crate::faults::{fail_disk, later, outage, some_client, some_host, some_manager, some_server};
use crate::log::note;
use crate::manager::STORE;
use crate::options::Fault;
use crate::server::ServerHost;
use kiln_disk::Fault as DiskFault;
use kiln_net::SimulatedOptions;
use std::sync::Arc;
use std::time::Duration;

/// Longer than any lease.
fn long(cluster: &Cluster) -> Duration {
    Duration::from_millis(6_000 + cluster.ground.random_below(9_000))
}

fn up_to(cluster: &Cluster, milliseconds: u64) -> Duration {
    Duration::from_millis(cluster.ground.random_below(milliseconds))
}

fn is_lucky(cluster: &Cluster) -> bool {
    cluster.ground.random_below(2) == 0
}

/// Ways that are cut together.
#[derive(Default)]
struct Cuts(Vec<(String, String)>);

impl Cuts {
    fn one_way(&mut self, from: &str, to: &str) {
        if from != to {
            self.0.push((from.to_owned(), to.to_owned()));
        }
    }

    fn both(&mut self, a: &str, b: &str) {
        self.one_way(a, b);
        self.one_way(b, a);
    }

    /// Cuts them after a while, and mends them after another one.
    fn strike(self, cluster: &Arc<Cluster>, after: Duration, lasting: Duration) {
        let held = Arc::clone(cluster);
        later(cluster, after, move |cluster| {
            self.0.iter().for_each(|(from, to)| cluster.cut(from, to));
            later(&held, lasting, move |cluster| {
                self.0.iter().for_each(|(from, to)| cluster.mend(from, to));
            });
        });
    }
}

/// All hosts, in two parts.
fn halves(cluster: &Cluster) -> [Vec<String>; 2] {
    let servers = cluster.servers.iter().map(|server| &server.name);
    let clients = cluster.clients.iter().map(|client| &client.name);
    let managers = cluster.managers.iter().map(|manager| &manager.name);
    let store = STORE.to_owned();
    let mut halves = [Vec::new(), Vec::new()];
    for name in servers.chain(clients).chain(managers).chain([&store]) {
        halves[usize::from(is_lucky(cluster))].push(name.clone());
    }
    halves
}

pub(crate) fn strike(cluster: &Arc<Cluster>, fault: Fault) {
    match fault {
        Fault::Strand => return strand(cluster),
        Fault::Disown => return disown(cluster),
        Fault::Depose => return depose(cluster),
        Fault::Rival => return rival(cluster),
        Fault::Deafen => return deafen(cluster),
        Fault::BadNetwork => return worsen(cluster),
        _ => {}
    }
    let (one, other) = (some_server(cluster).name.clone(), some_host(cluster).0);
    let manager = &some_manager(cluster).name;
    note!(cluster.log, "fault: {fault:?} of {one} (and {other}, {manager})");
    let mut cuts = Cuts::default();
    match fault {
        Fault::Break => return cluster.break_between(&one, &other),
        Fault::Part => cuts.both(&one, &other),
        Fault::PartFromManager => cuts.both(&one, manager),
        Fault::PartFromStore => cuts.both(manager, STORE),
        Fault::Split => {
            let halves = halves(cluster);
            for a in &halves[0] {
                halves[1].iter().for_each(|b| cuts.both(a, b));
            }
        }
        Fault::Isolate => {
            cluster.servers.iter().for_each(|server| cuts.both(&one, &server.name));
            if is_lucky(cluster) {
                cuts.both(&one, manager);
            }
        }
        _ if is_lucky(cluster) => cuts.one_way(&one, &other),
        _ => cuts.one_way(&other, &one),
    }
    cuts.strike(cluster, Duration::ZERO, outage(cluster));
}

fn worsen(cluster: &Arc<Cluster>) {
    let delay_max = Duration::from_millis(1 + cluster.ground.random_below(300));
    let losses_per_million = cluster.ground.random_below(20_000) as u32;
    note!(cluster.log, "fault: the network takes {delay_max:?}, loses {losses_per_million} ppm");
    let options = SimulatedOptions { delay_max, losses_per_million, ..quiet_network() };
    cluster.network.set_options(options);
    later(cluster, outage(cluster), |cluster| cluster.network.set_options(quiet_network()));
}

/// Some clients, and not all.
fn some_clients(cluster: &Cluster) -> Vec<&String> {
    let count = cluster.clients.len() as u64;
    let (first, some) =
        (cluster.ground.random_below(count), 1 + cluster.ground.random_below(count - 1));
    let at = |i: u64| &cluster.clients[((first + i) % count) as usize].name;
    (0..some).map(at).collect()
}

/// A server and some clients do not hear the managers, which may hear them.
fn unheard(cluster: &Cluster, server: &str, hears: bool, lasting: Duration) -> Cuts {
    let mut stranded = some_clients(cluster);
    let server = server.to_owned();
    stranded.push(&server);
    note!(cluster.log, "fault: stranded for {lasting:?}: {stranded:?}, heard: {hears}");
    let mut cuts = Cuts::default();
    for manager in &cluster.managers {
        for host in &stranded {
            cuts.one_way(&manager.name, host);
            if !hears {
                cuts.one_way(host, &manager.name);
            }
        }
    }
    cuts
}

/// What a server answers that has lost its role shows in clients that have not heard of that either.
fn strand(cluster: &Arc<Cluster>) {
    let server = &some_server(cluster).name;
    // That the managers hear it and do not reach it is the hardest case: they take it for alive.
    let hears = cluster.ground.random_below(5) < 2;
    let lasting = Duration::from_millis(9_000) + up_to(cluster, 6_000);
    let after = up_to(cluster, 2_500);
    unheard(cluster, server, hears, lasting).strike(cluster, after, lasting);
    match cluster.ground.random_below(4) {
        // The next manager does not know when it was heard last.
        0 if !hears => {
            let primary = Arc::clone(cluster.primary());
            later(cluster, after + up_to(cluster, 500), move |_| primary.stop());
        }
        1 if !hears => {}
        _ => {
            let mut cuts = Cuts::default();
            for other in cluster.servers.iter().map(|server| &server.name) {
                cuts.one_way(other, server);
                if !hears {
                    cuts.one_way(server, other);
                }
            }
            let lasting = Duration::from_millis(5_000) + up_to(cluster, 4_500);
            cuts.strike(cluster, up_to(cluster, 1_000), lasting);
        }
    }
}

/// The managers hear of its failure, and it hears of nothing that they do about it.
fn disown(cluster: &Arc<Cluster>) {
    let server = Arc::clone(some_server(cluster));
    let after = Duration::from_millis(500);
    let lasting = Duration::from_millis(5_000) + up_to(cluster, 3_000);
    unheard(cluster, &server.name, true, lasting).strike(cluster, after, lasting);
    later(cluster, up_to(cluster, 500), move |cluster| {
        // What it has stays readable: one read of each target, or so.
        (1..4).for_each(|within| fail_disk(cluster, &server, DiskFault::Read, within));
    });
}

/// The servers of a chain that is used, the head first, as far as they serve.
fn some_chain(cluster: &Cluster) -> Vec<&Arc<ServerHost>> {
    let Ok(observer) = cluster.observe() else { return Vec::new() };
    let routing = observer.routing().now();
    if routing.chains.is_empty() {
        return Vec::new();
    }
    let chunk = cluster.ground.random_below(cluster.options.chunks as u64) as usize;
    let chain = &routing.chains[&cluster.workload.place(chunk, &routing).chain];
    chain.serving().filter_map(|target| cluster.server_of(target, &routing)).collect()
}

fn depose(cluster: &Arc<Cluster>) {
    let chain = some_chain(cluster);
    let [head, rest @ ..] = &chain[..] else { return strand(cluster) };
    let clients = some_clients(cluster);
    // It is back while the target that the next head cannot reach has not left the chain yet.
    let last = rest.get(1..).and_then(<[_]>::last).filter(|_| cluster.ground.random_below(3) > 0);
    let (alone, unheard) = match last {
        Some(_) => (Duration::from_millis(5_500) + up_to(cluster, 1_500), up_to(cluster, 300)),
        None => (Duration::from_millis(6_000) + up_to(cluster, 2_500), up_to(cluster, 3_000)),
    };
    note!(cluster.log, "fault: {} is alone with {clients:?} for {alone:?}", head.name);
    let mut cuts = Cuts::default();
    cluster.servers.iter().for_each(|server| cuts.both(&head.name, &server.name));
    cuts.strike(cluster, Duration::ZERO, alone);
    let mut cuts = Cuts::default();
    for manager in &cluster.managers {
        cuts.both(&head.name, &manager.name);
        clients.iter().for_each(|client| cuts.one_way(&manager.name, client));
    }
    cuts.strike(cluster, Duration::ZERO, alone + unheard);
    if let Some(last) = last {
        let after = Duration::from_millis(3_000) + up_to(cluster, 1_000);
        note!(cluster.log, "fault: {} reaches no server from {after:?} on", last.name);
        let mut cuts = Cuts::default();
        cluster.servers.iter().for_each(|server| cuts.both(&last.name, &server.name));
        cuts.strike(cluster, after, Duration::from_millis(8_000) + up_to(cluster, 2_000));
    }
}

/// Another manager takes the seat, and the one before goes on to talk with a server and some clients, which do
/// not reach the next one. It steps down when it misses somebody, so the other servers leave it late, although
/// they follow the next one already.
fn rival(cluster: &Arc<Cluster>) {
    let primary = &cluster.primary().name;
    let lasting = Duration::from_millis(12_000) + up_to(cluster, 3_000);
    let (loyal, disloyal) = (&some_server(cluster).name, some_clients(cluster));
    note!(
        cluster.log,
        "fault: {primary} is left with {loyal} and not {disloyal:?} for {lasting:?}"
    );
    let mut cuts = Cuts::default();
    cuts.both(primary, STORE);
    let clients = cluster.clients.iter().map(|client| &client.name);
    for host in clients.filter(|client| !disloyal.contains(client)).chain([loyal]) {
        for manager in cluster.managers.iter().filter(|manager| manager.name != *primary) {
            cuts.both(&manager.name, host);
        }
    }
    cuts.strike(cluster, Duration::ZERO, lasting);
    let servers = cluster.servers.iter().map(|server| &server.name);
    let others = servers.filter(|server| *server != loyal).chain(disloyal);
    let mut cuts = Cuts::default();
    for host in others {
        cuts.both(primary, host);
    }
    let left: Vec<_> = cuts.0.clone();
    later(cluster, Duration::from_millis(2_500) + up_to(cluster, 700), move |cluster| {
        left.iter().for_each(|(from, to)| cluster.break_between(from, to));
    });
    let after = Duration::from_millis(3_500) + up_to(cluster, 1_500);
    cuts.strike(cluster, after, lasting - after);
}

/// What the client asks for is done, and it asks again.
fn deafen(cluster: &Arc<Cluster>) {
    deafen_for(cluster, long(cluster));
}

pub(crate) fn deafen_for(cluster: &Arc<Cluster>, lasting: Duration) {
    let client = &some_client(cluster).name;
    note!(cluster.log, "fault: {client} hears no server for {lasting:?}");
    let mut cuts = Cuts::default();
    cluster.servers.iter().for_each(|server| cuts.one_way(&server.name, client));
    cuts.strike(cluster, Duration::ZERO, lasting);
}
