//! A real cluster of processes on free ports in a temporary directory: kill -9, SIGSTOP, restart, and
//! the `kiln` command against it.
//!
//! Servers end with the thread that started them: a cluster stays on the test's own thread.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

pub(crate) mod mount;
pub(crate) mod program;
pub(crate) mod tree;

use kiln_env::Env;
use kiln_launch::{Cluster, ClusterDir, Event, Postgres, Wishes};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const KILN: &str = env!("CARGO_BIN_EXE_kiln");

/// A cluster that runs. Nothing restarts its servers unless the test does.
pub(crate) struct TestCluster {
    runtime: tokio::runtime::Runtime,
    env: Env,
    cluster: Option<Cluster>,
    wishes: Wishes,
    /// How long a client that is not heard keeps its open files, when not as long as usual.
    lease: Option<Duration>,
    path: PathBuf,
    events: Arc<Mutex<Vec<Event>>>,
    _temporary: tempfile::TempDir,
}

/// A server that the cluster's supervisor does not know.
pub(crate) struct Beside(std::process::Child);

impl Drop for Beside {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl TestCluster {
    /// Starts one with `storage` servers and `replicas` copies.
    pub(crate) fn start(storage: u32, replicas: u32) -> Self {
        Self::start_with(storage, replicas, None)
    }

    /// The same; a client that is not heard for `lease` loses its open files.
    pub(crate) fn start_with(storage: u32, replicas: u32, lease: Option<Duration>) -> Self {
        Self::start_small(storage, replicas, lease, 8 << 30)
    }

    /// The same; each server's disk takes `capacity` bytes.
    pub(crate) fn start_small(
        storage: u32,
        replicas: u32,
        lease: Option<Duration>,
        capacity: u64,
    ) -> Self {
        let wishes = Wishes { capacity: Some(capacity), ..wishes(storage, replicas) };
        Self::start_as(wishes, lease)
    }

    /// Starts one whose manager and `meta` metadata servers keep their state in a PostgreSQL.
    pub(crate) fn start_on_postgres(storage: u32, replicas: u32, meta: u32, url: String) -> Self {
        let (meta, postgres) = (Some(meta), Some(Postgres { url, ..Postgres::default() }));
        Self::start_as(Wishes { meta, postgres, ..wishes(storage, replicas) }, None)
    }

    fn start_as(wishes: Wishes, lease: Option<Duration>) -> Self {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let mut cluster = Self {
            runtime: runtime.expect("a runtime"),
            env: Env::real(),
            cluster: None,
            wishes,
            lease,
            path: temporary.path().join("cluster"),
            events: Arc::default(),
            _temporary: temporary,
        };
        cluster.up();
        cluster.await_chains();
        cluster
    }

    /// Waits until the chains of a new cluster are there.
    fn await_chains(&self) {
        for _ in 0..100 {
            if self.ok(&["admin", "chains", "--json"]).contains("serving") {
                return;
            }
            self.sleep(Duration::from_millis(100));
        }
        panic!("no chains after 10 s\n{}", self.logs());
    }

    /// Waits until this many replicas serve.
    pub(crate) fn await_serving(&self, count: usize) {
        let mut chains = String::new();
        for _ in 0..300 {
            chains = self.ok(&["admin", "chains", "--json"]);
            if chains.matches("\"serving\"").count() == count {
                return;
            }
            self.sleep(Duration::from_millis(200));
        }
        panic!("never serve {count} replicas: {chains}\n{}", self.logs());
    }

    /// Starts all servers again after [`Self::down`] or [`Self::kill_all`].
    pub(crate) fn up(&mut self) {
        assert!(self.cluster.is_none(), "it runs already");
        let log = Arc::clone(&self.events);
        let report = move |event: Event| log.lock().expect("the log of events").push(event);
        let start = async {
            let (dir, lock) = ClusterDir::take(&self.path, &self.wishes, &self.env).await?;
            self.lease.iter().for_each(|lease| set_lease(&self.path, *lease));
            Cluster::start(dir, lock, Path::new(KILN), self.env.clone(), report).await
        };
        let started = self.runtime.block_on(start);
        self.cluster = Some(started.unwrap_or_else(|error| panic!("{error}\n{}", self.logs())));
    }

    /// Stops all servers in order.
    pub(crate) fn down(&mut self) {
        let mut cluster = self.cluster.take().expect("it runs");
        self.runtime.block_on(cluster.stop());
    }

    /// Kills all servers at once (SIGKILL).
    pub(crate) fn kill_all(&mut self) {
        let mut cluster = self.cluster.take().expect("it runs");
        self.runtime.block_on(cluster.kill_all());
    }

    /// Kills one server (SIGKILL).
    pub(crate) fn kill(&mut self, name: &str) {
        let cluster = self.cluster.as_mut().expect("it runs");
        self.runtime.block_on(cluster.kill(name)).expect("a running server");
    }

    /// Starts one server again.
    pub(crate) fn restart(&mut self, name: &str) {
        let cluster = self.cluster.as_mut().expect("it runs");
        self.runtime.block_on(cluster.start_server(name)).expect("it starts");
    }

    /// Sets a value in a server's configuration, for its next start.
    pub(crate) fn configure(&self, server: &str, key: &str, value: &str) {
        let file = self.path.join(server).join("config.toml");
        set_values(&file, |found| (found == key).then(|| value.to_string()));
    }

    /// Gives a storage server a second disk, from its next start on.
    pub(crate) fn add_disk(&self, server: &str) {
        let file = self.path.join(server).join("config.toml");
        let disk = "\n[[disks]]\npath = \"disk-2\"\ncapacity = \"8GiB\"\n";
        let text = std::fs::read_to_string(&file).expect("a configuration");
        std::fs::write(file, text + disk).expect("a configuration");
    }

    /// Starts one more storage server, number `number`, beside those of the cluster. It ends when the
    /// result is dropped.
    pub(crate) fn add_storage(&self, number: u64) -> Beside {
        let (first, new) = (self.path.join("storage-1"), format!("storage-{number}"));
        let directory = self.path.join(&new);
        std::fs::create_dir(&directory).unwrap();
        std::fs::copy(first.join("config.toml"), directory.join("config.toml")).unwrap();
        let id = (100 + number).to_string();
        self.configure(&new, "id", &id);
        let manager = self.cluster.as_ref().and_then(|cluster| cluster.address("mgmtd"));
        let manager = manager.expect("a running manager").to_string();
        let mut command = self.command(["storage", "--mgmtd", &manager, "--config"]);
        command.arg(directory.join("config.toml"));
        let log = std::fs::File::create(self.path.join("logs").join(format!("{new}.log"))).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Beside(command.spawn().expect("a storage server"))
    }

    /// Waits until the list of nodes has a word.
    pub(crate) fn await_node(&self, word: &str) {
        let listed = || {
            let nodes = self.ok(&["admin", "nodes"]);
            nodes.split_whitespace().any(|found| found == word)
        };
        self.until(word, listed);
    }

    /// Waits until something holds, for two minutes at most.
    pub(crate) fn until(&self, what: &str, holds: impl Fn() -> bool) {
        for _ in 0..600 {
            if holds() {
                return;
            }
            self.sleep(Duration::from_millis(200));
        }
        let operations = self.ok(&["admin", "operations"]);
        let chains = self.ok(&["admin", "chains"]);
        panic!("never: {what}\n{operations}\n{chains}\n{}", self.logs());
    }

    /// Stops one server in place (SIGSTOP).
    pub(crate) fn pause(&mut self, name: &str) {
        self.cluster.as_mut().expect("it runs").pause(name).expect("a running server");
    }

    /// Lets it go on (SIGCONT).
    pub(crate) fn resume(&mut self, name: &str) {
        self.cluster.as_mut().expect("it runs").resume(name).expect("a running server");
    }

    /// The cluster's directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A server's process.
    pub(crate) fn pid(&self, name: &str) -> u32 {
        self.cluster.as_ref().and_then(|cluster| cluster.pid(name)).expect("a running server")
    }

    /// Waits for a moment.
    pub(crate) fn sleep(&self, duration: Duration) {
        self.runtime.block_on(self.env.sleep(duration));
    }

    /// A `kiln` command against this cluster, to be run as the test likes.
    pub(crate) fn command<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = Command::new(KILN);
        command.args(arguments).env("KILN_DIR", &self.path);
        command.env_remove("KILN_CLUSTER").env_remove("KILN_CREDENTIAL");
        command
    }

    /// Runs a `kiln` command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the kiln binary")
    }

    /// Runs a `kiln` command that has to work, and returns what it printed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kiln {arguments:?}: {said}\n{}", self.logs());
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Waits until `kiln admin check` finds nothing wrong, and returns what it says then.
    pub(crate) fn check(&self) -> String {
        for _ in 0..40 {
            let output = self.run(&["admin", "check"]);
            if output.status.success() {
                return String::from_utf8(output.stdout).expect("UTF-8");
            }
            self.sleep(Duration::from_millis(500));
        }
        self.ok(&["admin", "check"])
    }

    /// The ends of all logs, for a failed test's message.
    pub(crate) fn logs(&self) -> String {
        let Ok(entries) = std::fs::read_dir(self.path.join("logs")) else { return String::new() };
        let mut shown = String::new();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(15)..].join("\n");
            shown += &format!("--- {}\n{end}\n", path.display());
        }
        shown
    }
}

fn wishes(storage: u32, replicas: u32) -> Wishes {
    let (storage, replicas) = (Some(storage), Some(replicas));
    Wishes { storage, replicas, disks: Some(1), capacity: Some(8 << 30), ..Wishes::default() }
}

/// Sets the clients' lease, and how long a capability counts, in the metadata server's configuration.
fn set_lease(cluster: &Path, lease: Duration) {
    let lease = format!("\"{}s\"", lease.as_secs());
    let set = |key: &str| matches!(key, "lease" | "capability").then(|| lease.clone());
    set_values(&cluster.join("meta/config.toml"), set);
}

fn set_values(file: &Path, new: impl Fn(&str) -> Option<String>) {
    let text = std::fs::read_to_string(file).expect("a configuration");
    let set = |line: &str| {
        let key = line.split_once(" = ").map(|(key, _)| key);
        match key.and_then(|key| Some((key, new(key)?))) {
            Some((key, value)) => format!("{key} = {value}\n"),
            None => format!("{line}\n"),
        }
    };
    std::fs::write(file, text.lines().map(set).collect::<String>()).expect("a configuration");
}
