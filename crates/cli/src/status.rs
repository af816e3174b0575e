//! `kiln status`.

use crate::failure::Outcome;
use crate::place::{Place, invoked_as};
use crate::{output, runtime};
use kiln_config::format_size;
use kiln_env::Env;
use kiln_launch::{ClusterDir, Lock, ServerState, State};
use kiln_types::{ClusterId, Code, Error, Result};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is shown, and what `--json` prints.
#[derive(Serialize)]
struct Status {
    cluster: ClusterId,
    dir: PathBuf,
    supervisor_pid: u32,
    storage_servers: u32,
    replicas: u32,
    disks: u32,
    disk_capacity_bytes: u64,
    /// Copies of the metadata.
    metadata_copies: u32,
    servers: Vec<Server>,
}

#[derive(Serialize)]
struct Server {
    name: String,
    pid: Option<u32>,
    address: Option<SocketAddr>,
    running: bool,
    up_seconds: u64,
    restarts: u32,
    /// Resident memory.
    memory_bytes: u64,
}

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    let path = place.local()?;
    let _runtime = runtime::single()?;
    let status = look(&ClusterDir::open(&path)?, &Env::real())?;
    if args.json {
        output::print_json(&status)?;
    } else {
        output::print(&show(&status))?;
    }
    Ok(())
}

fn look(dir: &ClusterDir, env: &Env) -> Result<Status> {
    let Some(supervisor_pid) = Lock::holder(dir.path())? else {
        return Err(Error::new(
            Code::Unreachable,
            format!("the cluster in {} is not running", dir.path().display()),
        )
        .with_hint(format!("'{} up' starts it", invoked_as())));
    };
    let shape = dir.shape();
    let servers = State::read(dir.path())?.servers;
    Ok(Status {
        cluster: dir.id(),
        dir: dir.path().into(),
        supervisor_pid,
        storage_servers: shape.storage,
        replicas: shape.replicas,
        disks: shape.disks,
        disk_capacity_bytes: shape.capacity,
        metadata_copies: 1,
        servers: servers.into_iter().map(|server| look_at(server, env)).collect(),
    })
}

fn look_at(server: ServerState, env: &Env) -> Server {
    let memory = server.pid.and_then(resident_bytes);
    let up = match (server.since, memory) {
        (Some(since), Some(_)) => env.wall().0.saturating_sub(since.0),
        _ => 0,
    };
    Server {
        name: server.name,
        pid: server.pid,
        address: server.address,
        running: memory.is_some(),
        up_seconds: Duration::from_nanos(u64::try_from(up).unwrap_or(0)).as_secs(),
        restarts: server.restarts,
        memory_bytes: memory.unwrap_or(0),
    }
}

/// The resident memory of a process; `None` when it does not run (or has ended and was not waited for).
fn resident_bytes(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn show(status: &Status) -> String {
    let rows = status.servers.iter().map(|server| {
        let text = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        vec![
            server.name.clone(),
            (if server.running { "running" } else { "not running" }).into(),
            text(server.pid.map(|pid| pid.to_string())),
            text(server.address.map(|address| address.to_string())),
            if server.running { duration(server.up_seconds) } else { "-".into() },
            server.restarts.to_string(),
            if server.running { output::bytes(server.memory_bytes) } else { "-".into() },
        ]
    });
    let header = ["SERVER", "STATE", "PID", "ADDRESS", "UP", "RESTARTS", "MEMORY"];
    let table = output::table(&header, &[2, 5, 6], rows.collect());
    format!(
        "cluster {} in {} (supervisor pid {})\n\
         {}, {} of everything, {} of {} each\n\
         The metadata is one copy: the embedded store of the meta server.\n\n{table}",
        status.cluster,
        status.dir.display(),
        status.supervisor_pid,
        output::count(status.storage_servers, "storage server"),
        output::count(status.replicas, "replica"),
        output::count(status.disks, "disk"),
        format_size(status.disk_capacity_bytes),
    )
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}
