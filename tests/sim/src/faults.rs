//! What goes wrong.

use crate::cluster::{Cluster, quiet_network};
use crate::log::note;
use crate::manager::{ManagerHost, STORE};
use crate::options::Fault;
use crate::server::ServerHost;
use kiln_disk::Fault as DiskFault;
use kiln_env::Host;
use kiln_net::SimulatedOptions;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often somebody looks for failed disks.
const ROUND: Duration = Duration::from_secs(3);

/// Lets one fault follow the other, for ever.
pub(crate) async fn rage(cluster: Arc<Cluster>) {
    if cluster.options.faults.is_empty() {
        return;
    }
    loop {
        let factor = cluster.ground.random_below(2000) as f64 / 1000.0;
        cluster.ground.sleep(cluster.options.fault_every.mul_f64(factor)).await;
        let fault = pick(&cluster);
        cluster.workload.faults.fetch_add(1, Ordering::Relaxed);
        strike(&cluster, fault);
    }
}

/// Looks after failed disks, for ever: their servers are started again.
pub(crate) async fn operate(cluster: Arc<Cluster>) {
    loop {
        cluster.ground.sleep(ROUND).await;
        for server in cluster.servers.iter().filter(|server| server.has_failed()) {
            note!(cluster.log, "{} has a failed disk: it is started again", server.name);
            server.crash(false);
            server.start();
        }
    }
}

fn pick(cluster: &Cluster) -> Fault {
    let faults = &cluster.options.faults;
    let sum: u32 = faults.iter().map(|(_, weight)| weight).sum();
    let mut at = cluster.ground.random_below(u64::from(sum)) as u32;
    let found = faults.iter().find(|(_, weight)| {
        let found = at < *weight;
        at = at.wrapping_sub(*weight);
        found
    });
    found.map_or(faults[0].0, |(fault, _)| *fault)
}

/// Undoes something after a while.
fn later(cluster: &Arc<Cluster>, after: Duration, undo: impl FnOnce(&Cluster) + Send + 'static) {
    let held = Arc::clone(cluster);
    let task = async move {
        held.ground.sleep(after).await;
        undo(&held);
    };
    cluster.ground.spawn("repair", task).detach();
}

/// How long something stays broken: shorter or longer than a lease.
fn outage(cluster: &Cluster) -> Duration {
    let long = cluster.ground.random_below(100) < u64::from(cluster.options.long_outages);
    let (min, max) = if long { (5_500, 15_000) } else { (20, 2_500) };
    Duration::from_millis(min + cluster.ground.random_below(max - min))
}

fn some_server(cluster: &Cluster) -> Arc<ServerHost> {
    let at = cluster.ground.random_below(cluster.servers.len() as u64) as usize;
    Arc::clone(&cluster.servers[at])
}

fn some_manager(cluster: &Cluster) -> Arc<ManagerHost> {
    let at = cluster.ground.random_below(cluster.managers.len() as u64) as usize;
    Arc::clone(&cluster.managers[at])
}

fn strike(cluster: &Arc<Cluster>, fault: Fault) {
    match fault {
        Fault::KillServer => crash(cluster, &some_server(cluster), false),
        Fault::PowerLoss => crash(cluster, &some_server(cluster), true),
        Fault::PowerLossOfSeveral => {
            let several = 2 + cluster.ground.random_below(cluster.servers.len() as u64 - 1);
            let first = cluster.ground.random_below(cluster.servers.len() as u64);
            for i in first..first + several {
                let server = &cluster.servers[i as usize % cluster.servers.len()];
                crash(cluster, server, true);
            }
        }
        Fault::KillManager => {
            let manager = some_manager(cluster);
            note!(cluster.log, "fault: {} dies", manager.name);
            manager.crash();
            later(cluster, outage(cluster), move |_| manager.start());
        }
        Fault::KillClient => {
            let at = cluster.ground.random_below(cluster.clients.len() as u64) as usize;
            note!(cluster.log, "fault: client {} dies", at + 1);
            cluster.clients[at].crash();
            later(cluster, outage(cluster) / 4, move |cluster| cluster.clients[at].start());
        }
        Fault::Halt => halt(cluster),
        Fault::SlowDisk | Fault::DiskError => harm_disk(cluster, fault),
        Fault::Drift | Fault::JumpWall => harm_clock(cluster, fault),
        _ => harm_network(cluster, fault),
    }
}

fn crash(cluster: &Arc<Cluster>, server: &Arc<ServerHost>, loses_power: bool) {
    if !server.is_up() {
        return;
    }
    let what = if loses_power { "loses its power" } else { "is killed" };
    note!(cluster.log, "fault: {} {what}", server.name);
    server.crash(loses_power);
    let server = Arc::clone(server);
    later(cluster, outage(cluster), move |_| server.start());
}

/// A machine of the cluster, with its name; clients come rarely.
fn some_host(cluster: &Cluster) -> (String, Host) {
    match cluster.ground.random_below(8) {
        0 | 1 => {
            let manager = some_manager(cluster);
            (manager.name.clone(), manager.host.clone())
        }
        2 => {
            let at = cluster.ground.random_below(cluster.clients.len() as u64) as usize;
            let client = &cluster.clients[at];
            (client.name.clone(), client.host.clone())
        }
        _ => {
            let server = some_server(cluster);
            (server.name.clone(), server.host.clone())
        }
    }
}

/// All hosts, in two parts.
fn halves(cluster: &Cluster) -> [Vec<String>; 2] {
    let servers = cluster.servers.iter().map(|server| &server.name);
    let clients = cluster.clients.iter().map(|client| &client.name);
    let mut halves = [Vec::new(), Vec::new()];
    let managers = cluster.managers.iter().map(|manager| &manager.name);
    let store = STORE.to_owned();
    for name in servers.chain(clients).chain(managers).chain([&store]) {
        halves[cluster.ground.random_below(2) as usize].push(name.clone());
    }
    halves
}

fn halt(cluster: &Arc<Cluster>) {
    let ((name, host), outage) = (some_host(cluster), outage(cluster));
    note!(cluster.log, "fault: {name} stands still for {outage:?}");
    host.halt();
    later(cluster, outage, move |cluster| {
        note!(cluster.log, "{name} goes on");
        host.resume();
    });
}

fn harm_clock(cluster: &Arc<Cluster>, fault: Fault) {
    let (name, host) = some_host(cluster);
    if fault == Fault::Drift {
        let drift = cluster.options.drift_ppm;
        let ppm = cluster.ground.random_below(2 * drift as u64 + 1) as i64 - drift;
        note!(cluster.log, "fault: the clock of {name} is off by {ppm} ppm");
        host.set_drift(ppm);
        return;
    }
    // Most jumps are such as capabilities survive.
    let far = if cluster.ground.random_below(4) == 0 { 3600 } else { 4 };
    let seconds = cluster.ground.random_below(2 * far + 1) as i64 - far as i64;
    note!(cluster.log, "fault: the wall clock of {name} jumps by {seconds} s");
    host.jump_wall(seconds * 1_000_000_000);
    later(cluster, outage(cluster), move |_| host.jump_wall(-seconds * 1_000_000_000));
}

fn harm_disk(cluster: &Arc<Cluster>, fault: Fault) {
    let server = some_server(cluster);
    let disks = server.disks();
    let disk = Arc::clone(&disks[cluster.ground.random_below(disks.len() as u64) as usize]);
    if fault == Fault::SlowDisk {
        let times = 10 + cluster.ground.random_below(1000) as u32;
        note!(cluster.log, "fault: a disk of {} is {times} times slower", server.name);
        disk.set_slowness(times);
        later(cluster, outage(cluster), move |_| {
            server.disks().iter().for_each(|disk| disk.set_slowness(1));
        });
        return;
    }
    let kinds = [DiskFault::Read, DiskFault::Write, DiskFault::Sync];
    let kind = kinds[cluster.ground.random_below(3) as usize];
    note!(cluster.log, "fault: a {kind:?} of {} will fail", server.name);
    disk.fail_next(kind, cluster.ground.random_below(20));
}

fn harm_network(cluster: &Arc<Cluster>, fault: Fault) {
    let (network, manager) = (&cluster.network, &some_manager(cluster).name);
    let (one, other) = (some_server(cluster).name.clone(), some_host(cluster).0);
    note!(cluster.log, "fault: {fault:?} of {one} (and {other})");
    match fault {
        Fault::BadNetwork => {
            let delay_max = Duration::from_millis(1 + cluster.ground.random_below(300));
            let losses_per_million = cluster.ground.random_below(20_000) as u32;
            let options = SimulatedOptions { delay_max, losses_per_million, ..quiet_network() };
            network.set_options(options);
            let calm = |cluster: &Cluster| cluster.network.set_options(quiet_network());
            return later(cluster, outage(cluster), calm);
        }
        Fault::Break => return network.break_between(&one, &other),
        _ => {}
    }
    let mut cuts = Vec::new();
    let mut both = |a: &str, b: &str| {
        cuts.push((a.to_owned(), b.to_owned()));
        cuts.push((b.to_owned(), a.to_owned()));
    };
    match fault {
        Fault::Part => both(&one, &other),
        Fault::PartFromManager => both(&one, manager),
        Fault::PartFromStore => both(manager, STORE),
        Fault::Split => {
            let halves = halves(cluster);
            for a in &halves[0] {
                halves[1].iter().for_each(|b| both(a, b));
            }
        }
        Fault::Isolate => {
            for server in &cluster.servers {
                both(&one, &server.name);
            }
            if cluster.ground.random_below(2) == 0 {
                both(&one, manager);
            }
        }
        _ => cuts.push(match cluster.ground.random_below(2) {
            0 => (one, other),
            _ => (other, one),
        }),
    }
    cuts.retain(|(from, to)| from != to);
    cuts.iter().for_each(|(from, to)| network.cut(from, to));
    later(cluster, outage(cluster), move |cluster| {
        cuts.iter().for_each(|(from, to)| cluster.network.mend(from, to));
    });
}
