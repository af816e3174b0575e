//! What goes wrong.

use crate::client::ClientHost;
use crate::cluster::{Cluster, ROOM};
use crate::cuts;
use crate::log::note;
use crate::manager::ManagerHost;
use crate::options::Fault;
use crate::server::ServerHost;
use kiln_disk::Fault as DiskFault;
use kiln_env::Host;
use kiln_types::{BLOCK_BYTES, PublicState, RoutingInfo};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often somebody looks for failed disks, and how many looks it takes until their server is seen to.
const ROUND: Duration = Duration::from_secs(1);
const LOOKS: u32 = 3;
/// How long a filling that is to be hindered is waited for.
const HINDER_TIME_MAX: Duration = Duration::from_secs(10);
/// How often the connections of a server that is filled break.
const HINDRANCES: usize = 12;

/// Lets one fault follow the other, for ever.
pub(crate) async fn rage(cluster: Arc<Cluster>) {
    if cluster.options.faults.is_empty() {
        return;
    }
    loop {
        let factor = cluster.ground.random_below(2000) as f64 / 1000.0;
        cluster.ground.sleep(cluster.options.fault_every.mul_f64(factor)).await;
        let fault = pick(&cluster);
        if fault.is_great() {
            let mut quiet_at = cluster.quiet_at.lock();
            let now = cluster.ground.now();
            if now < *quiet_at {
                continue;
            }
            let pause = 12_000 + cluster.ground.random_below(8_000);
            *quiet_at = now.plus(Duration::from_millis(pause));
        }
        cluster.workload.faults.fetch_add(1, Ordering::Relaxed);
        strike(&cluster, fault);
    }
}

/// Looks after failed disks, for ever: their servers are started again.
pub(crate) async fn operate(cluster: Arc<Cluster>) {
    let mut looks = vec![0; cluster.servers.len()];
    loop {
        cluster.ground.sleep(ROUND).await;
        for (server, looks) in cluster.servers.iter().zip(&mut looks) {
            *looks = if server.has_failed() { *looks + 1 } else { 0 };
            if *looks == LOOKS {
                note!(cluster.log, "{} has a failed disk: it is started again", server.name);
                server.crash(false);
                server.start();
                *looks = 0;
            }
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
pub(crate) fn later(
    cluster: &Arc<Cluster>,
    after: Duration,
    undo: impl FnOnce(&Cluster) + Send + 'static,
) {
    let held = Arc::clone(cluster);
    let task = async move {
        held.ground.sleep(after).await;
        undo(&held);
    };
    cluster.ground.spawn("repair", task).detach();
}

/// How long something stays broken: shorter or longer than a lease.
pub(crate) fn outage(cluster: &Cluster) -> Duration {
    let long = cluster.ground.random_below(100) < u64::from(cluster.options.long_outages);
    let (min, max) = if long { (5_500, 15_000) } else { (20, 2_500) };
    Duration::from_millis(min + cluster.ground.random_below(max - min))
}

/// Where a server rots, that one: the others keep their replicas.
pub(crate) fn some_server(cluster: &Cluster) -> &Arc<ServerHost> {
    let at = cluster.ground.random_below(cluster.servers.len() as u64) as usize;
    &cluster.servers[cluster.options.rotten.unwrap_or(at)]
}

pub(crate) fn some_client(cluster: &Cluster) -> &Arc<ClientHost> {
    let at = cluster.ground.random_below(cluster.clients.len() as u64) as usize;
    &cluster.clients[at]
}

pub(crate) fn some_manager(cluster: &Cluster) -> &Arc<ManagerHost> {
    let at = cluster.ground.random_below(cluster.managers.len() as u64) as usize;
    &cluster.managers[at]
}

fn strike(cluster: &Arc<Cluster>, fault: Fault) {
    match fault {
        Fault::KillServer => crash(cluster, some_server(cluster), false),
        Fault::PowerLoss => crash(cluster, some_server(cluster), true),
        Fault::PowerLossOfSeveral => {
            let several = 2 + cluster.ground.random_below(cluster.servers.len() as u64 - 1);
            let first = cluster.ground.random_below(cluster.servers.len() as u64);
            for i in first..first + several {
                let server = &cluster.servers[i as usize % cluster.servers.len()];
                crash(cluster, server, true);
            }
        }
        Fault::Roll => roll(cluster),
        Fault::Hinder => hinder(cluster),
        Fault::StopServer => {
            let server = some_server(cluster);
            note!(cluster.log, "fault: {} is stopped", server.name);
            server.stop();
        }
        Fault::KillManager => kill_manager(cluster, some_manager(cluster)),
        Fault::KillManagers => {
            cluster.managers.iter().for_each(|manager| kill_manager(cluster, manager));
        }
        Fault::StopManager => {
            let manager = some_manager(cluster);
            note!(cluster.log, "fault: {} is stopped", manager.name);
            manager.stop();
        }
        Fault::KillClient => {
            let client = Arc::clone(some_client(cluster));
            note!(cluster.log, "fault: {} dies", client.name);
            client.crash();
            later(cluster, outage(cluster) / 4, move |_| client.start());
        }
        Fault::Halt => halt(cluster),
        Fault::SlowDisk | Fault::HungDisk | Fault::FullDisk => hamper_disk(cluster, fault),
        Fault::DiskError => {
            let kinds = [DiskFault::Read, DiskFault::Write, DiskFault::Sync];
            let kind = kinds[cluster.ground.random_below(3) as usize];
            fail_disk(cluster, some_server(cluster), kind, 20);
        }
        Fault::FlipBits => flip_bits(cluster),
        Fault::Drift | Fault::JumpWall => harm_clock(cluster, fault),
        _ => cuts::strike(cluster, fault),
    }
}

fn kill_manager(cluster: &Arc<Cluster>, manager: &Arc<ManagerHost>) {
    note!(cluster.log, "fault: {} dies", manager.name);
    manager.crash();
    let manager = Arc::clone(manager);
    later(cluster, outage(cluster), move |_| manager.start());
}

/// Each server was filled by the others at the end; the first one to die is the head of its chains.
fn roll(cluster: &Arc<Cluster>) {
    let step = Duration::from_millis(7_500 + cluster.ground.random_below(3_000));
    let whole = step * cluster.servers.len() as u32;
    let mut quiet_at = cluster.quiet_at.lock();
    *quiet_at = quiet_at.plus(whole);
    drop(quiet_at);
    note!(cluster.log, "fault: all servers die, one after the other, each {step:?}");
    let mut servers = cluster.servers.clone();
    for i in (1..servers.len()).rev() {
        servers.swap(i, cluster.ground.random_below(i as u64 + 1) as usize);
    }
    for (server, turn) in servers.into_iter().zip(0..) {
        let lasting = Duration::from_millis(5_200 + cluster.ground.random_below(1_500));
        let held = Arc::clone(cluster);
        later(cluster, step * turn, move |cluster| {
            if server.is_up() && !cluster.is_calm() {
                note!(cluster.log, "fault: it is the turn of {}", server.name);
                server.crash(cluster.ground.random_below(2) == 0);
                later(&held, lasting, move |_| server.start());
            }
        });
    }
    if cluster.ground.random_below(3) > 0 {
        cuts::deafen_for(cluster, whole);
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
pub(crate) fn some_host(cluster: &Cluster) -> (String, Host) {
    match cluster.ground.random_below(8) {
        0 | 1 => {
            let manager = some_manager(cluster);
            (manager.name.clone(), manager.host.clone())
        }
        2 => {
            let client = some_client(cluster);
            (client.name.clone(), client.host.clone())
        }
        _ => {
            let server = some_server(cluster);
            (server.name.clone(), server.host.clone())
        }
    }
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

/// For a while a disk is slow, hangs, or takes nothing more. Of a full one a server that starts can use only
/// what holds something.
fn hamper_disk(cluster: &Arc<Cluster>, fault: Fault) {
    let server = Arc::clone(some_server(cluster));
    let disks = server.disks();
    let at = cluster.ground.random_below(disks.len() as u64) as usize;
    let disk = &disks[at];
    let mut lasting = outage(cluster);
    match fault {
        Fault::SlowDisk => disk.set_slowness(10 + cluster.ground.random_below(1000) as u32),
        Fault::HungDisk => {
            lasting += Duration::from_secs(5);
            disk.hang(true);
        }
        _ => {
            disk.set_physical_capacity(0);
            if server.is_up() && cluster.ground.random_below(2) == 0 {
                server.crash(false);
                server.start();
            }
        }
    }
    note!(cluster.log, "fault: {fault:?} of {} for {lasting:?}", server.name);
    later(cluster, lasting, move |_| {
        // It may be another handle by now.
        let disk = &server.disks()[at];
        match fault {
            Fault::SlowDisk => disk.set_slowness(1),
            Fault::HungDisk => disk.hang(false),
            _ => disk.set_physical_capacity(ROOM),
        }
    });
}

/// The blocks that say which disk it is: a disk without them is another one.
const SUPERBLOCKS: u64 = 2;

fn flip_bits(cluster: &Cluster) {
    let server = some_server(cluster);
    let disks = server.disks();
    let disk = cluster.ground.random_below(disks.len() as u64) as usize;
    let mut blocks = disks[disk].written_blocks();
    blocks.retain(|block| *block >= SUPERBLOCKS);
    for _ in 0..(1 + cluster.ground.random_below(3)).min(blocks.len() as u64) {
        let block = blocks[cluster.ground.random_below(blocks.len() as u64) as usize];
        let at = block * BLOCK_BYTES as u64 + cluster.ground.random_below(BLOCK_BYTES as u64);
        note!(cluster.log, "fault: a bit at {at} of a disk of {} flips", server.name);
        server.flip(disk, at, cluster.ground.random_below(8) as u8);
    }
}

/// Lets one of the next operations of a disk fail.
pub(crate) fn fail_disk(cluster: &Cluster, server: &ServerHost, kind: DiskFault, within: u64) {
    if cluster.is_calm() {
        return;
    }
    let disks = server.disks();
    let disk = &disks[cluster.ground.random_below(disks.len() as u64) as usize];
    note!(cluster.log, "fault: a {kind:?} of {} will fail", server.name);
    disk.fail_next(kind, cluster.ground.random_below(within));
}

/// Others have to fill a server that was away: its disk has no room for it, or is slow, and connections break.
fn hinder(cluster: &Arc<Cluster>) {
    let server = Arc::clone(some_server(cluster));
    let full = cluster.ground.random_below(2) == 0;
    note!(cluster.log, "fault: {} dies, and is filled with difficulty; full: {full}", server.name);
    server.crash(cluster.ground.random_below(2) == 0);
    let on_disks = |server: &ServerHost, room, slowness| {
        for disk in server.disks() {
            disk.set_physical_capacity(room);
            disk.set_slowness(slowness);
        }
    };
    if full {
        on_disks(&server, 0, 1);
    }
    let held = Arc::clone(cluster);
    let work = async move {
        let ground = &held.ground;
        ground.sleep(Duration::from_millis(5_500 + ground.random_below(2_000))).await;
        server.start();
        let filling = is_filled(&held, &server);
        if ground.timeout(HINDER_TIME_MAX, "a filling", filling).await.is_ok() && !full {
            on_disks(&server, ROOM, 20 + ground.random_below(280) as u32);
        }
        for _ in 0..HINDRANCES {
            ground.sleep(Duration::from_millis(20 + ground.random_below(300))).await;
            for other in held.servers.iter().filter(|other| other.name != server.name) {
                held.break_between(&other.name, &server.name);
            }
        }
        on_disks(&server, ROOM, 1);
    };
    cluster.ground.spawn("hinder", work).detach();
}

/// Waits until targets of a server are filled.
async fn is_filled(cluster: &Cluster, server: &ServerHost) {
    let Ok(observer) = cluster.observe() else { return };
    let syncs = |routing: &Arc<RoutingInfo>| {
        routing.chains.values().flat_map(|chain| &chain.members).any(|member| {
            let here = routing.node_of(member.target).is_some_and(|node| node.id == server.node);
            here && member.state == PublicState::Syncing
        })
    };
    // The sender lives as long as the cluster.
    let _ = observer.routing().subscribe().wait_for(syncs).await;
}
