//! The cluster's servers: processes of the `kiln` binary, each on a host of its own.

use crate::access::Access;
use crate::disks::Disks;
use crate::namespaces::{self, Host};
use kiln_env::Env;
use kiln_launch::{ClusterDir, Lock, SUPERVISOR, Service, Wishes};
use kiln_types::{Code, Context, Error, Result, ServiceKind};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;

/// Storage servers, of which each chunk is on three.
pub(crate) const STORAGE: u32 = 5;
const REPLICAS: u32 = 3;
const PORT: u16 = 7400;
/// What each disk may take.
const CAPACITY: u64 = 1 << 30;
/// Hosts of clients.
pub(crate) const CLIENTS: usize = 2;

/// Damage is looked for quickly, since the harness makes some.
const STORAGE_SETTINGS: [&str; 4] =
    ["scrub.every=20s", "scrub.rate=64MiB", "io.memory=96MiB", "log.level=info"];

/// One server.
pub(crate) struct Server {
    pub(crate) service: Service,
    pub(crate) host: Host,
    child: Option<Child>,
    /// The harness has killed it and will start it again.
    held_down: bool,
}

/// All servers, and how clients reach them.
pub(crate) struct Servers {
    pub(crate) servers: Vec<Server>,
    pub(crate) access: Arc<Access>,
    pub(crate) disks: Disks,
    dir: ClusterDir,
    _lock: Lock,
}

impl Servers {
    /// Makes a cluster in the directory `path` and starts it. The kernel ends the servers with the calling
    /// thread.
    pub(crate) async fn start(path: &Path, program: &Path, env: &Env) -> Result<Self> {
        let wishes = Wishes {
            storage: Some(STORAGE),
            replicas: Some(REPLICAS),
            disks: Some(1),
            capacity: Some(CAPACITY),
            ..Wishes::default()
        };
        let (dir, lock) = ClusterDir::take(path, &wishes, env).await?;
        let services = dir.services();
        let names = services.iter().map(|service| service.name.clone());
        let names: Vec<_> = names.chain((1..=CLIENTS).map(|n| format!("client-{n}"))).collect();
        let mut hosts = namespaces::make(&names)?;
        let clients = hosts.split_off(services.len());
        let disks = Disks::make(path)?;
        let server = |(service, host)| Server { service, host, child: None, held_down: false };
        let servers = services.into_iter().zip(hosts).map(server);
        let servers: Vec<Server> = servers.collect();
        let manager = format!("{}:{PORT}", servers[0].host.address);
        let (credential, program) = (dir.credential(), program.to_owned());
        let access = Arc::new(Access { hosts: clients, manager, credential, program });
        let mut servers = Self { servers, access, disks, dir, _lock: lock };
        (0..servers.servers.len()).try_for_each(|at| servers.launch(at))?;
        Ok(servers)
    }

    /// The servers of a kind, by their places.
    pub(crate) fn of(&self, kind: ServiceKind) -> Vec<usize> {
        let mine = |at: &usize| self.servers[*at].service.kind == kind;
        (0..self.servers.len()).filter(mine).collect()
    }

    pub(crate) fn name(&self, at: usize) -> &str {
        &self.servers[at].service.name
    }

    fn log(&self, at: usize) -> PathBuf {
        self.dir.log(self.name(at))
    }

    /// Starts a server and does not wait for it: it may be cut off.
    pub(crate) fn launch(&mut self, at: usize) -> Result<()> {
        let access = Arc::clone(&self.access);
        let log = self.log(at);
        let output = OpenOptions::new().create(true).append(true).open(&log);
        let output = output.context(log.display())?;
        let server = &mut self.servers[at];
        let kind = server.service.kind;
        let mut command = server.host.command(&access.program);
        command.arg(kind.to_string()).arg("--config").arg(self.dir.config(&server.service));
        command.arg("--listen").arg(format!("{}:{PORT}", server.host.address));
        if kind != ServiceKind::Mgmtd {
            command.arg("--mgmtd").arg(&access.manager);
        }
        if kind == ServiceKind::Storage {
            STORAGE_SETTINGS.iter().for_each(|setting| {
                command.args(["--set", setting]);
            });
        }
        command.env(SUPERVISOR, std::process::id().to_string()).current_dir(self.dir.path());
        command.stdin(Stdio::null()).stderr(output.try_clone().context(log.display())?);
        command.stdout(output);
        server.child = Some(command.spawn().context(format_args!("start of {log:?}"))?);
        server.held_down = false;
        Ok(())
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, at: usize, signal: Signal) {
        let pid = self.servers[at].child.as_ref().and_then(|child| i32::try_from(child.id()).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            // The one error that can be is that it has ended.
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills a server (SIGKILL). It may take until its disk answers that it is gone: see [`Self::revive`].
    pub(crate) fn kill(&mut self, at: usize) {
        self.signal(at, Signal::KILL);
        self.servers[at].held_down = true;
    }

    /// Lets a killed server be started again.
    pub(crate) fn release(&mut self, at: usize) {
        self.servers[at].held_down = false;
    }

    /// Starts again what has ended and is not held down, as a supervisor would; says who ended by itself.
    pub(crate) fn revive(&mut self) -> Result<Vec<String>> {
        let mut ended = Vec::new();
        for at in 0..self.servers.len() {
            let server = &mut self.servers[at];
            let Some(child) = &mut server.child else { continue };
            let Some(status) = child.try_wait().context("a server's end")? else { continue };
            if server.held_down {
                continue;
            }
            if status.code().is_some() {
                ended.push(format!("{} ended by itself: {status}", server.service.name));
            }
            self.launch(at)?;
        }
        Ok(ended)
    }

    /// Where all of them log.
    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.logs()
    }

    /// Kills everything and waits for it.
    fn stop(&mut self) -> Result<()> {
        self.disks.recover()?;
        (0..self.servers.len()).for_each(|at| self.signal(at, Signal::KILL));
        for server in &mut self.servers {
            if let Some(mut child) = server.child.take() {
                child.wait().context("a server's end")?;
            }
        }
        self.disks.unmount()
    }

    /// The place of the server with this name.
    pub(crate) fn find(&self, name: &str) -> Result<usize> {
        let found = self.servers.iter().position(|server| server.service.name == name);
        found.ok_or_else(|| Error::new(Code::NotFound, format!("no server {name}")))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("kiln-faults: {error}");
        }
    }
}
