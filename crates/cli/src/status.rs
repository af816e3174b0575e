//! `kiln status`.

use crate::failure::Outcome;
use crate::place::{Place, invoked_as};
use crate::remote::{Remote, of_dir};
use crate::serve::METRICS_TAG;
use crate::{admin, output, runtime};
use kiln_client_fuse::mount::{Record, records};
use kiln_config::{KvConfig, KvEngine, MetaConfig, format_size};
use kiln_env::Env;
use kiln_launch::{ClusterDir, Lock, ServerState, State};
use kiln_types::{ClusterId, Code, Error, Result, RoutingInfo, ServiceKind, Timestamp};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
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
    /// Copies of the metadata; absent when the metadata server does not keep it.
    metadata_copies: Option<u32>,
    /// The PostgreSQL that keeps the metadata; absent when the metadata server does.
    postgres: Option<String>,
    /// The schema there.
    postgres_schema: Option<String>,
    /// The cluster file of the FoundationDB that keeps the metadata; absent when none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    foundationdb: Option<PathBuf>,
    servers: Vec<Server>,
    /// Targets that serve, and all of them; absent when the manager does not answer.
    targets: Option<(usize, usize)>,
    /// Why the cluster cannot be used as it should.
    trouble: Option<String>,
}

#[derive(Serialize)]
struct Server {
    name: String,
    pid: Option<u32>,
    address: Option<SocketAddr>,
    /// Where a mount's daemon mounts the cluster.
    mount: Option<PathBuf>,
    running: bool,
    /// Whether the manager hears it; absent when the manager does not answer.
    alive: Option<bool>,
    up_seconds: u64,
    restarts: u32,
    /// Resident memory.
    memory_bytes: u64,
    /// Where its metrics are.
    metrics: Option<String>,
}

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    let dir = ClusterDir::open(&place.local()?)?;
    let runtime = runtime::many()?;
    let env = Env::real();
    let mut status = look(&dir, &env)?;
    match runtime.block_on(ask(&dir, &env)) {
        Ok(routing) => status.add(&routing, &dir),
        Err(error) => status.trouble = Some(error.to_string()),
    }
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
    let (shape, kv) = (dir.shape(), kv(dir)?);
    let uses = |engine| kv.engine == engine;
    let postgres = uses(KvEngine::Postgres).then_some(kv.postgres);
    let servers = State::read(dir.path())?.servers.into_iter();
    let mut servers: Vec<_> = servers.map(|server| look_at(server, env)).collect();
    add_mounts(&mut servers, dir, env)?;
    Ok(Status {
        cluster: dir.id(),
        dir: dir.path().into(),
        supervisor_pid,
        storage_servers: shape.storage,
        replicas: shape.replicas,
        disks: shape.disks,
        disk_capacity_bytes: shape.capacity,
        metadata_copies: uses(KvEngine::Embedded).then_some(1),
        foundationdb: uses(KvEngine::FoundationDb).then_some(kv.foundationdb.cluster_file),
        postgres_schema: postgres.as_ref().map(|postgres| postgres.schema.clone()),
        postgres: postgres.map(|postgres| postgres.url),
        servers,
        targets: None,
        trouble: None,
    })
}

/// Where the metadata is.
fn kv(dir: &ClusterDir) -> Result<KvConfig> {
    let mut services = dir.services().into_iter();
    let Some(meta) = services.find(|service| service.kind == ServiceKind::Meta) else {
        return Ok(KvConfig::default());
    };
    let config: MetaConfig = kiln_config::load(Some(&dir.config(&meta)), [], &[])?;
    Ok(config.kv)
}

/// What the manager knows.
async fn ask(dir: &ClusterDir, env: &Env) -> Result<Arc<RoutingInfo>> {
    let (address, credential) = of_dir(dir)?;
    let remote = Remote::connect(&address, credential, env.clone()).await?;
    let routing = remote.client.routing();
    remote.close().await;
    Ok(routing)
}

impl Status {
    fn add(&mut self, routing: &RoutingInfo, dir: &ClusterDir) {
        for service in dir.services() {
            let server = self.servers.iter_mut().find(|server| server.name == service.name);
            let node = routing.nodes.get(&service.node);
            if let (Some(server), Some(node)) = (server, node) {
                server.alive = Some(node.alive);
                server.metrics = node.tags.get(METRICS_TAG).cloned();
            }
        }
        let serving = routing.chains.values().map(|chain| chain.serving().count()).sum();
        self.targets = Some((serving, routing.targets.len()));
        self.trouble = admin::unusable(routing);
    }
}

fn look_at(server: ServerState, env: &Env) -> Server {
    let memory = server.pid.and_then(resident_bytes);
    let since = server.since.filter(|_| memory.is_some());
    Server {
        name: server.name,
        pid: server.pid,
        address: server.address,
        mount: server.mount,
        running: memory.is_some(),
        alive: None,
        up_seconds: since.map_or(0, |since| seconds_since(since, env)),
        restarts: server.restarts,
        memory_bytes: memory.unwrap_or(0),
        metrics: None,
    }
}

/// What the daemons of mounts wrote down: of the one that the supervisor runs, and of those that
/// 'kiln mount' made.
fn add_mounts(servers: &mut Vec<Server>, dir: &ClusterDir, env: &Env) -> Result<()> {
    let of_dir = |record: &Record| record.cluster_dir.as_deref() == Some(dir.path());
    for record in records()?.into_iter().filter_map(|(_, record)| record).filter(of_dir) {
        let metrics = record.metrics.map(|address| address.to_string());
        let pid = Some(record.daemon.pid);
        match servers.iter_mut().find(|server| server.pid == pid) {
            Some(supervised) => supervised.metrics = metrics,
            None => servers.push(Server {
                name: "mount".into(),
                pid,
                address: None,
                mount: Some(record.path),
                running: true,
                alive: None,
                up_seconds: seconds_since(record.since, env),
                restarts: 0,
                memory_bytes: resident_bytes(record.daemon.pid).unwrap_or(0),
                metrics,
            }),
        }
    }
    Ok(())
}

fn seconds_since(since: Timestamp, env: &Env) -> u64 {
    let nanoseconds = env.wall().0.saturating_sub(since.0);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0)).as_secs()
}

/// The resident memory of a process; `None` when it does not run (or has ended and was not waited for).
fn resident_bytes(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn state(server: &Server) -> &'static str {
    match (server.running, server.alive) {
        (true, _) if server.mount.is_some() => "mounted",
        (false, _) if server.mount.is_some() => "not mounted",
        (false, _) => "not running",
        (true, Some(true)) => "healthy",
        (true, Some(false)) => "not heard",
        (true, None) => "running",
    }
}

/// Where a server listens, or a mount is.
fn place(server: &Server) -> Option<String> {
    let mount = server.mount.as_ref().map(|path| path.display().to_string());
    mount.or_else(|| server.address.map(|address| address.to_string()))
}

fn show(status: &Status) -> String {
    let rows = status.servers.iter().map(|server| {
        let text = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        vec![
            server.name.clone(),
            state(server).into(),
            text(server.pid.map(|pid| pid.to_string())),
            text(place(server)),
            if server.running { duration(server.up_seconds) } else { "-".into() },
            server.restarts.to_string(),
            if server.running { output::bytes(server.memory_bytes) } else { "-".into() },
            text(server.metrics.clone().filter(|_| server.running)),
        ]
    });
    let replicas = match status.targets {
        Some((serving, all)) if serving == all => format!("All {all} targets serve.\n"),
        Some((serving, all)) => {
            format!("{serving} of {all} targets serve; kiln admin check shows more.\n")
        }
        None => String::new(),
    };
    let trouble = status.trouble.as_ref().map(|why| format!("\nTrouble: {why}\n"));
    let trouble = trouble.unwrap_or_default();
    let metadata = match (&status.postgres, &status.postgres_schema, &status.foundationdb) {
        (Some(url), Some(schema), _) => format!("The metadata is in {url}, schema {schema}."),
        (_, _, Some(file)) => format!("The metadata is in the FoundationDB of {}.", file.display()),
        _ => "The metadata is one copy: the embedded store of the meta server.".into(),
    };
    let header = ["SERVER", "STATE", "PID", "ADDRESS", "UP", "RESTARTS", "MEMORY", "METRICS"];
    let table = output::table(&header, &[2, 5, 6], rows.collect());
    format!(
        "cluster {} in {} (supervisor pid {})\n\
         {}, {} of everything, {} of {} each\n\
         {replicas}{metadata}\n\n{table}{trouble}",
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
