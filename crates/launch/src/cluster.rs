//! The servers of one cluster as child processes: start, signals, stop.

use crate::process::{Process, signal_pid};
use crate::{ClusterDir, Event, Exit, Lock, ServerState, Service, State, ports};
use kiln_env::Env;
use kiln_types::{Code, Error, Monotonic, Result, ServiceKind, Timestamp};
use rustix::process::Signal;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a server may take to say that it is ready: recovery of a large store included.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a server may take to stop before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// How long the kernel may take to end a killed process.
const KILL_WITHIN: Duration = Duration::from_secs(5);

/// A local cluster whose servers this process runs. Dropping it kills them.
pub struct Cluster {
    pub(crate) dir: ClusterDir,
    pub(crate) env: Env,
    pub(crate) servers: Vec<Server>,
    program: PathBuf,
    report: Box<dyn FnMut(Event) + Send>,
    _lock: Lock,
}

/// One server and, while it runs, its process.
pub(crate) struct Server {
    pub(crate) service: Service,
    pub(crate) process: Option<Process>,
    pub(crate) restarts: u32,
    /// When it is to be started again, and the pause before that.
    pub(crate) again: Option<Monotonic>,
    pub(crate) pause: Duration,
    address: Option<SocketAddr>,
    since: Option<Timestamp>,
}

impl Cluster {
    /// Starts all servers with the binary `program` and waits until each is ready. Call it on a thread
    /// that lives as long as the cluster: the kernel ends the servers with it.
    ///
    /// # Errors
    /// `Local` when a server does not start, naming it and what it said; the others are stopped then.
    pub async fn start(
        dir: ClusterDir,
        lock: Lock,
        program: &Path,
        env: Env,
        report: impl FnMut(Event) + Send + 'static,
    ) -> Result<Self> {
        // What cannot be read holds nothing that a start needs.
        let state = State::read(dir.path()).unwrap_or_default();
        let server = |service: Service| Server {
            address: state.address_of(&service.name),
            service,
            process: None,
            restarts: 0,
            again: None,
            pause: Duration::ZERO,
            since: None,
        };
        let servers = dir.services().into_iter().map(server).collect();
        let (program, report) = (program.to_path_buf(), Box::new(report));
        let mut cluster = Self { dir, env, servers, program, report, _lock: lock };
        for event in sweep(&cluster.dir, &state, &cluster.env).await? {
            cluster.tell(event);
        }
        let started = async {
            let (first, others) = ([0], (1..cluster.servers.len()).collect::<Vec<_>>());
            for group in [&first[..], &others] {
                for (at, result) in cluster.start_group(group).await {
                    result.map_err(|error| {
                        let name = &cluster.servers[at].service.name;
                        error.while_doing(format_args!("{name} did not start"))
                    })?;
                }
            }
            Ok(())
        };
        match started.await {
            Ok(()) => Ok(cluster),
            Err(error) => {
                cluster.stop().await;
                Err(error)
            }
        }
    }

    /// The cluster's directory.
    pub fn dir(&self) -> &ClusterDir {
        &self.dir
    }

    /// Where the server `name` listens, or listened last.
    pub fn address(&self, name: &str) -> Option<SocketAddr> {
        self.servers.iter().find(|server| server.service.name == name)?.address
    }

    /// The process of the server `name`, while it runs.
    pub fn pid(&self, name: &str) -> Option<u32> {
        let server = self.servers.iter().find(|server| server.service.name == name)?;
        server.process.as_ref().map(Process::pid)
    }

    /// Starts the server `name` again, after [`Self::kill`] or when it ended by itself.
    ///
    /// # Errors
    /// `Busy` when it runs, `Local` when it does not start.
    pub async fn start_server(&mut self, name: &str) -> Result<()> {
        let at = self.find(name)?;
        let server = &mut self.servers[at];
        if server.process.as_mut().is_some_and(|process| process.exited().is_none()) {
            return Err(Error::new(Code::Busy, format!("{name} runs already")));
        }
        server.process = None;
        self.start_group(&[at]).await.into_iter().try_for_each(|(_, result)| result)
    }

    /// Kills the server `name` (SIGKILL) and waits for its end. It is not started again by itself.
    ///
    /// # Errors
    /// `NotFound` when there is no such server or it does not run.
    pub async fn kill(&mut self, name: &str) -> Result<Exit> {
        let at = self.find(name)?;
        let mut process = self.servers[at].process.take().ok_or_else(|| not_running(name))?;
        process.signal(Signal::KILL);
        let exit = process.wait(&self.env, KILL_WITHIN).await;
        self.write_state();
        exit.ok_or_else(|| Error::new(Code::Local, format!("{name} does not end after SIGKILL")))
    }

    /// Kills all servers at once.
    pub async fn kill_all(&mut self) {
        for process in self.servers.iter_mut().filter_map(|server| server.process.as_mut()) {
            process.signal(Signal::KILL);
        }
        for server in &mut self.servers {
            if let Some(mut process) = server.process.take() {
                process.wait(&self.env, KILL_WITHIN).await;
            }
        }
        self.write_state();
    }

    /// Stops the server `name` in place (SIGSTOP): it keeps its sockets and answers nobody.
    ///
    /// # Errors
    /// `NotFound` when it does not run.
    pub fn pause(&mut self, name: &str) -> Result<()> {
        self.signal(name, Signal::STOP)
    }

    /// Lets a paused server go on (SIGCONT).
    ///
    /// # Errors
    /// `NotFound` when it does not run.
    pub fn resume(&mut self, name: &str) -> Result<()> {
        self.signal(name, Signal::CONT)
    }

    /// Stops everything: the manager first, so that nobody is declared dead meanwhile, then the metadata
    /// server, then the storage servers. Whoever takes too long is killed.
    pub async fn stop(&mut self) {
        for kind in [ServiceKind::Mgmtd, ServiceKind::Meta, ServiceKind::Storage] {
            let of_kind = |server: &&mut Server| server.service.kind == kind;
            for server in self.servers.iter_mut().filter(of_kind) {
                if let Some(process) = &mut server.process {
                    process.signal(Signal::TERM);
                    process.signal(Signal::CONT);
                }
            }
            let deadline = self.env.deadline_after(STOP_WITHIN);
            for server in self.servers.iter_mut().filter(of_kind) {
                let Some(mut process) = server.process.take() else { continue };
                let name = server.service.name.clone();
                let left = deadline.left(self.env.now()).max(Duration::from_millis(1));
                if process.wait(&self.env, left).await.is_some() {
                    (self.report)(Event::Stopped { name });
                } else {
                    process.signal(Signal::KILL);
                    process.wait(&self.env, KILL_WITHIN).await;
                    (self.report)(Event::Killed { name });
                }
            }
        }
        self.write_state();
    }

    /// Starts the servers at these places side by side; a result for each.
    pub(crate) async fn start_group(&mut self, places: &[usize]) -> Vec<(usize, Result<()>)> {
        let spawned: Vec<_> = places.iter().map(|at| (*at, self.spawn(*at))).collect();
        let mut results = Vec::new();
        for (at, spawned) in spawned {
            let mut result = match spawned {
                Ok(()) => self.await_ready(at).await,
                Err(error) => Err(error),
            };
            // Another program may have taken the port since it was chosen.
            let lost_port = |server: &Server| server.address.is_some_and(|a| !ports::is_free(a));
            if result.is_err() && lost_port(&self.servers[at]) && self.spawn(at).is_ok() {
                result = self.await_ready(at).await;
            }
            results.push((at, result));
        }
        self.write_state();
        results
    }

    fn spawn(&mut self, at: usize) -> Result<()> {
        let wish = self.servers[at].address;
        let listen = match wish {
            Some(address) if ports::is_free(address) => address,
            _ => {
                let given: Vec<_> = self.servers.iter().filter_map(|s| s.address).collect();
                ports::choose(&self.env, &given)?
            }
        };
        let name = self.servers[at].service.name.clone();
        if let Some(from) = wish.filter(|wish| *wish != listen) {
            (self.report)(Event::Moved { name, from, to: listen });
        }
        let mgmtd = self.address("mgmtd");
        let server = &mut self.servers[at];
        server.address = Some(listen);
        let (program, dir, env) = (&self.program, &self.dir, &self.env);
        let process = Process::start(program, dir, &server.service, listen, mgmtd, env)?;
        server.process = Some(process);
        server.since = Some(env.wall());
        Ok(())
    }

    async fn await_ready(&mut self, at: usize) -> Result<()> {
        let server = &mut self.servers[at];
        let name = server.service.name.clone();
        let process = server.process.as_mut().ok_or_else(|| not_running(&name))?;
        match process.ready(&self.env, READY_WITHIN).await {
            Ok(address) => {
                server.address = Some(address);
                let pid = process.pid();
                (self.report)(Event::Ready { name, pid, address });
                Ok(())
            }
            Err(error) => {
                process.signal(Signal::KILL);
                process.wait(&self.env, KILL_WITHIN).await;
                server.process = None;
                Err(error)
            }
        }
    }

    fn signal(&mut self, name: &str, signal: Signal) -> Result<()> {
        let at = self.find(name)?;
        let process = self.servers[at].process.as_mut().ok_or_else(|| not_running(name))?;
        process.signal(signal);
        Ok(())
    }

    fn find(&self, name: &str) -> Result<usize> {
        let found = self.servers.iter().position(|server| server.service.name == name);
        found.ok_or_else(|| Error::new(Code::NotFound, format!("there is no server '{name}'")))
    }

    pub(crate) fn tell(&mut self, event: Event) {
        (self.report)(event);
    }

    /// Writes down what runs. A full disk does not end a cluster: it is told, and the next change is
    /// written again.
    pub(crate) fn write_state(&mut self) {
        let servers = self.servers.iter().map(|server| ServerState {
            name: server.service.name.clone(),
            address: server.address,
            pid: server.process.as_ref().map(Process::pid),
            since: server.process.as_ref().and(server.since),
            restarts: server.restarts,
        });
        let written = State { servers: servers.collect() }.write(self.dir.path());
        if let Err(error) = written {
            self.tell(Event::Trouble { what: error.to_string() });
        }
    }
}

fn not_running(name: &str) -> Error {
    Error::new(Code::NotFound, format!("{name} does not run"))
}

/// Ends what a killed supervisor of a cluster left behind, where no supervisor runs.
///
/// # Errors
/// `Busy` when one does, or when a process does not end.
pub async fn clear_stale(dir: &ClusterDir, env: &Env) -> Result<Vec<Event>> {
    let _lock = Lock::take(dir.path(), env).await?;
    let mut state = State::read(dir.path()).unwrap_or_default();
    let events = sweep(dir, &state, env).await?;
    if state.servers.iter().any(|server| server.pid.is_some()) {
        for server in &mut state.servers {
            server.pid = None;
            server.since = None;
        }
        state.write(dir.path())?;
    }
    Ok(events)
}

/// Ends the recorded processes whose arguments name their configuration file.
async fn sweep(dir: &ClusterDir, state: &State, env: &Env) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    let services = dir.services();
    for server in &state.servers {
        let service = services.iter().find(|service| service.name == server.name);
        let (Some(service), Some(pid)) = (service, server.pid) else { continue };
        let config = dir.config(service);
        let deadline = env.deadline_after(KILL_WITHIN);
        let mut found = false;
        while names_file(pid, &config) {
            found = true;
            signal_pid(pid, Signal::KILL);
            if deadline.passed(env.now()) {
                return Err(Error::new(
                    Code::Busy,
                    format!("{} of an earlier run (pid {pid}) does not end", service.name),
                ));
            }
            env.sleep(Duration::from_millis(10)).await;
        }
        if found {
            events.push(Event::Swept { name: service.name.clone(), pid });
        }
    }
    Ok(events)
}

/// Whether the process `pid` runs and has `file` among its arguments.
fn names_file(pid: u32, file: &Path) -> bool {
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).any(|argument| argument == file.as_os_str().as_bytes())
}
