//! The servers of one cluster, and perhaps a mount of it, as child processes: start, signals, stop.

use crate::member::{Member, Role};
use crate::process::{FirstLine, Process, signal_pid};
use crate::{ClusterDir, Event, Exit, Lock, ServerState, State, ports};
use kiln_env::Env;
use kiln_types::{Code, Error, Result, ServiceKind};
use rustix::process::Signal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a server may take to stop before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// How long a mount may take to bring to the cluster what was written.
const FLUSH_WITHIN: Duration = Duration::from_secs(60);
/// How long the kernel may take to end a killed process.
const KILL_WITHIN: Duration = Duration::from_secs(5);

/// A local cluster whose servers this process runs. Dropping it kills them.
pub struct Cluster {
    pub(crate) dir: ClusterDir,
    pub(crate) env: Env,
    pub(crate) members: Vec<Member>,
    program: PathBuf,
    report: Box<dyn FnMut(Event) + Send>,
    _lock: Lock,
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
        let member = |service: crate::Service| {
            let address = state.address_of(&service.name);
            Member::new(Role::Server(service), address)
        };
        let members = dir.services().into_iter().map(member).collect();
        let (program, report) = (program.to_path_buf(), Box::new(report));
        let mut cluster = Self { dir, env, members, program, report, _lock: lock };
        for event in sweep(&cluster.dir, &state, &cluster.env).await? {
            cluster.tell(event);
        }
        let started = async {
            let (first, others) = ([0], (1..cluster.members.len()).collect::<Vec<_>>());
            for group in [&first[..], &others] {
                cluster.start_all(group).await?;
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

    /// Mounts the cluster on the directory `path`, which is absolute; from here on its daemon is watched
    /// like a server.
    ///
    /// # Errors
    /// `Local` when it does not start, with what it said.
    pub async fn mount(&mut self, path: &Path) -> Result<()> {
        self.members.push(Member::new(Role::Mount(path.into()), None));
        let started = self.start_all(&[self.members.len() - 1]).await;
        if started.is_err() {
            self.members.pop();
        }
        started
    }

    /// Starts these members side by side, all or none.
    async fn start_all(&mut self, places: &[usize]) -> Result<()> {
        for (at, result) in self.start_group(places).await {
            result.map_err(|error| {
                error.while_doing(format_args!("{} did not start", self.members[at].name()))
            })?;
        }
        Ok(())
    }

    /// The cluster's directory.
    pub fn dir(&self) -> &ClusterDir {
        &self.dir
    }

    /// Where the server `name` listens, or listened last.
    pub fn address(&self, name: &str) -> Option<SocketAddr> {
        self.members.iter().find(|member| member.name() == name)?.address
    }

    /// The process of the server `name`, while it runs.
    pub fn pid(&self, name: &str) -> Option<u32> {
        let member = self.members.iter().find(|member| member.name() == name)?;
        member.process.as_ref().map(Process::pid)
    }

    /// Starts the server `name` again, after [`Self::kill`] or when it ended by itself.
    ///
    /// # Errors
    /// `Busy` when it runs, `Local` when it does not start.
    pub async fn start_server(&mut self, name: &str) -> Result<()> {
        let at = self.find(name)?;
        let member = &mut self.members[at];
        if member.process.as_mut().is_some_and(|process| process.exited().is_none()) {
            return Err(Error::new(Code::Busy, format!("{name} runs already")));
        }
        member.process = None;
        self.start_group(&[at]).await.into_iter().try_for_each(|(_, result)| result)
    }

    /// Kills the server `name` (SIGKILL) and waits for its end. It is not started again by itself.
    ///
    /// # Errors
    /// `NotFound` when there is no such server or it does not run.
    pub async fn kill(&mut self, name: &str) -> Result<Exit> {
        let at = self.find(name)?;
        let mut process = self.members[at].process.take().ok_or_else(|| not_running(name))?;
        process.signal(Signal::KILL);
        let exit = process.wait(&self.env, KILL_WITHIN).await;
        self.write_state();
        exit.ok_or_else(|| Error::new(Code::Local, format!("{name} does not end after SIGKILL")))
    }

    /// Kills everything at once.
    pub async fn kill_all(&mut self) {
        for process in self.members.iter_mut().filter_map(|member| member.process.as_mut()) {
            process.signal(Signal::KILL);
        }
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
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

    /// Stops everything: a mount first, while its servers can take what was written; then the manager, so
    /// that nobody is declared dead meanwhile, the metadata servers, and the storage servers. Whoever takes
    /// too long is killed.
    pub async fn stop(&mut self) {
        self.stop_kind(None, FLUSH_WITHIN).await;
        for kind in [ServiceKind::Mgmtd, ServiceKind::Meta, ServiceKind::Storage] {
            self.stop_kind(Some(kind), STOP_WITHIN).await;
        }
        self.write_state();
    }

    /// Stops the servers of a kind, or with `None` the mount.
    async fn stop_kind(&mut self, kind: Option<ServiceKind>, within: Duration) {
        let of_kind = |member: &&mut Member| member.role.kind() == kind;
        for member in self.members.iter_mut().filter(of_kind) {
            if let Some(process) = &mut member.process {
                process.signal(Signal::TERM);
                process.signal(Signal::CONT);
            }
        }
        let deadline = self.env.deadline_after(within);
        for member in self.members.iter_mut().filter(of_kind) {
            let Some(mut process) = member.process.take() else { continue };
            let name = member.name().to_string();
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

    /// Starts the members at these places side by side; a result for each.
    async fn start_group(&mut self, places: &[usize]) -> Vec<(usize, Result<()>)> {
        let spawned: Vec<_> = places.iter().map(|at| (*at, self.spawn(*at))).collect();
        let mut results = Vec::new();
        for (at, spawned) in spawned {
            let mut result = match spawned {
                Ok(()) => self.await_ready(at).await,
                Err(error) => Err(error),
            };
            // Another program may have taken the port since it was chosen.
            let lost_port = |member: &Member| member.address.is_some_and(|a| !ports::is_free(a));
            if result.is_err() && lost_port(&self.members[at]) && self.spawn(at).is_ok() {
                result = self.await_ready(at).await;
            }
            results.push((at, result));
        }
        self.write_state();
        results
    }

    pub(crate) fn spawn(&mut self, at: usize) -> Result<()> {
        if self.members[at].role.kind().is_some() {
            self.choose_address(at)?;
        }
        let mgmtd = self.address("mgmtd");
        let member = &mut self.members[at];
        let arguments = member.role.arguments(&self.dir, member.address, mgmtd);
        let (program, dir, env) = (&self.program, &self.dir, &self.env);
        member.process = Some(Process::start(program, dir, member.name(), arguments, env)?);
        member.since = Some(env.wall());
        Ok(())
    }

    /// Where a server is to listen: where it did, when that is free.
    fn choose_address(&mut self, at: usize) -> Result<()> {
        let wish = self.members[at].address;
        let listen = match wish {
            Some(address) if ports::is_free(address) => address,
            _ => {
                let given: Vec<_> = self.members.iter().filter_map(|m| m.address).collect();
                ports::choose(&self.env, &given)?
            }
        };
        if let Some(from) = wish.filter(|wish| *wish != listen) {
            let name = self.members[at].name().into();
            (self.report)(Event::Moved { name, from, to: listen });
        }
        self.members[at].address = Some(listen);
        Ok(())
    }

    async fn await_ready(&mut self, at: usize) -> Result<()> {
        let member = &mut self.members[at];
        let process = member.process.as_mut().ok_or_else(|| not_running(member.role.name()))?;
        let line = process.first_line().await;
        self.settle(at, line).await
    }

    /// Takes note of what the member at this place said first: it is ready, or does not run.
    pub(crate) async fn settle(&mut self, at: usize, line: FirstLine) -> Result<()> {
        let member = &mut self.members[at];
        let name = member.name().to_string();
        let process = member.process.as_mut().ok_or_else(|| not_running(&name))?;
        let (pid, ready) = (process.pid(), process.place(line, &self.env).await);
        let event = ready.and_then(|place| match &member.role {
            Role::Mount(path) => Ok(Event::Mounted { path: path.clone(), pid }),
            Role::Server(_) => {
                let address = place.parse();
                let address = address
                    .map_err(|_| Error::new(Code::Local, format!("it is ready on '{place}'")))?;
                member.address = Some(address);
                Ok(Event::Ready { name, pid, address })
            }
        });
        match event {
            Ok(event) => {
                (self.report)(event);
                Ok(())
            }
            Err(error) => {
                process.signal(Signal::KILL);
                process.wait(&self.env, KILL_WITHIN).await;
                member.process = None;
                Err(error)
            }
        }
    }

    fn signal(&mut self, name: &str, signal: Signal) -> Result<()> {
        let at = self.find(name)?;
        let process = self.members[at].process.as_mut().ok_or_else(|| not_running(name))?;
        process.signal(signal);
        Ok(())
    }

    fn find(&self, name: &str) -> Result<usize> {
        let found = self.members.iter().position(|member| member.name() == name);
        found.ok_or_else(|| Error::new(Code::NotFound, format!("there is no server '{name}'")))
    }

    pub(crate) fn tell(&mut self, event: Event) {
        (self.report)(event);
    }

    /// Writes down what runs. A full disk does not end a cluster: it is told, and the next change is
    /// written again.
    pub(crate) fn write_state(&mut self) {
        let servers = self.members.iter().map(|member| ServerState {
            name: member.name().into(),
            address: member.address,
            mount: member.role.mount().map(Into::into),
            pid: member.process.as_ref().map(Process::pid),
            since: member.process.as_ref().and(member.since),
            restarts: member.restarts,
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

/// Ends the recorded processes that still are what was recorded.
async fn sweep(dir: &ClusterDir, state: &State, env: &Env) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    let services = dir.services();
    for server in &state.servers {
        let service = services.iter().find(|service| service.name == server.name);
        let role = match (service, &server.mount) {
            (Some(service), _) => Role::Server(service.clone()),
            (None, Some(path)) => Role::Mount(path.clone()),
            (None, None) => continue,
        };
        let Some(pid) = server.pid else { continue };
        let deadline = env.deadline_after(KILL_WITHIN);
        let mut found = false;
        while role.is_process(dir, pid) {
            found = true;
            signal_pid(pid, Signal::KILL);
            if deadline.passed(env.now()) {
                let name = role.name();
                return Err(Error::new(
                    Code::Busy,
                    format!("{name} of an earlier run (pid {pid}) does not end"),
                ));
            }
            env.sleep(Duration::from_millis(10)).await;
        }
        if found {
            events.push(Event::Swept { name: role.name().into(), pid });
        }
    }
    Ok(events)
}
