//! A PostgreSQL of the test's own: made in a temporary directory, reached over a socket in it, and gone
//! with the test, also when that panics or is killed.
#![allow(dead_code, reason = "not every test needs all of it")]

use rustix::process::{Pid, Signal, kill_process};
use std::io::Write;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Where Debian has the programs of each version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// The pauses in which something is looked at again, and how often.
const PAUSE: Duration = Duration::from_millis(50);
const LOOKS_MAX: usize = 600;

/// A running server; one thread starts it and keeps it, since it ends with that thread.
pub(crate) struct Server {
    programs: PathBuf,
    directory: TempDir,
    process: Option<Child>,
}

impl Server {
    /// A new server, or `None`, said aloud, where PostgreSQL is not installed.
    pub(crate) fn start() -> Option<Self> {
        Self::start_in(&std::env::temp_dir())
    }

    /// The same below a directory.
    pub(crate) fn start_in(parent: &Path) -> Option<Self> {
        let Some(programs) = programs() else {
            let text = "SKIPPED: no PostgreSQL in /usr/lib/postgresql (apt-get install postgresql)";
            // Past the test harness, which shows only what failed.
            let _ = writeln!(std::io::stderr(), "{text}");
            return None;
        };
        let directory = tempfile::tempdir_in(parent).expect("a directory for PostgreSQL");
        if let Some((user, group)) = other_user() {
            chown(directory.path(), Some(user), Some(group)).expect("its owner");
        }
        let mut server = Self { programs, directory, process: None };
        let made = server
            .command("initdb")
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"])
            .args(["--locale=C", "--pgdata"])
            .arg(server.data())
            .output();
        let made = made.expect("initdb");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        server.run();
        Some(server)
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The socket's file.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join(".s.PGSQL.5432")
    }

    /// The URL of its one database.
    pub(crate) fn url(&self) -> String {
        let directory = self.directory.path().to_str().expect("UTF-8").replace('/', "%2F");
        format!("postgres://postgres@{directory}/postgres")
    }

    /// Runs the server and waits until it answers.
    pub(crate) fn run(&mut self) {
        let log = self.directory.path().join("log");
        let log = std::fs::File::options().create(true).append(true).open(log).expect("its log");
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).args(["-c", "listen_addresses="]);
        command.arg("-c").arg(format!("unix_socket_directories={}", self.shown()));
        command.args(["-c", "max_connections=80"]);
        self.process = Some(command.stdout(Stdio::null()).stderr(log).spawn().expect("postgres"));
        until("PostgreSQL answers", || self.psql("SELECT 1").is_ok());
    }

    fn shown(&self) -> String {
        self.directory.path().display().to_string()
    }

    /// Stops it with a signal: SIGINT ends connections, SIGQUIT leaves it to recover at its next start.
    pub(crate) fn stop(&mut self, signal: Signal) {
        let Some(mut main) = self.process.take() else { return };
        let parts = children(main.id());
        kill_process(Pid::from_child(&main), signal).expect("a running server");
        main.wait().expect("its end");
        await_end(&parts);
    }

    /// Kills all of its processes at once, as a crash of the machine would.
    pub(crate) fn kill(&mut self) {
        let Some(mut main) = self.process.take() else { return };
        let parts = children(main.id());
        main.kill().expect("SIGKILL");
        parts.iter().filter_map(|pid| Pid::from_raw(*pid)).for_each(|pid| {
            let _ = kill_process(pid, Signal::KILL);
        });
        main.wait().expect("its end");
        await_end(&parts);
    }

    /// Runs SQL; panics with what it said when it fails.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.psql(sql).unwrap_or_else(|said| panic!("{sql}: {said}"))
    }

    fn psql(&self, sql: &str) -> Result<String, String> {
        let mut command = Command::new(self.programs.join("psql"));
        command.args(["-X", "-A", "-t", "-U", "postgres", "-d", "postgres", "-h"]);
        let output = command.arg(self.directory.path()).arg("-c").arg(sql).output();
        let output = output.expect("psql");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    /// One of its programs, as a user that it accepts, killed when this thread ends.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).current_dir("/").stdin(Stdio::null());
        if let Some((user, group)) = other_user() {
            command.args(["--reuid", &user.to_string(), "--regid", &group.to_string()]);
            command.arg("--clear-groups");
        }
        command.arg(self.programs.join(program));
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The programs of the newest version that is installed.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir(VERSIONS).ok()?;
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let found = versions.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let found = found.filter(|path| path.join("bin/initdb").exists());
    found.max_by_key(|path| version(path)).map(|path| path.join("bin"))
}

/// PostgreSQL refuses to run as root: the user and group that it runs as then.
fn other_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let ids = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut ids = line.split(':').skip(2).map(str::parse);
        Some((ids.next()?.ok()?, ids.next()?.ok()?))
    };
    ids("postgres").or_else(|| ids("nobody")).or(Some((65534, 65534)))
}

fn await_end(processes: &[i32]) {
    let exists = |pid: &i32| Path::new(&format!("/proc/{pid}")).exists();
    until("its processes are gone", || !processes.iter().any(exists));
}

/// The processes that this one has started.
fn children(of: u32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").expect("/proc");
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name, which may hold anything: state and parent.
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
        parent.is_some_and(|parent| parent == of.to_string())
    };
    ids.filter(is_child).collect()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..LOOKS_MAX {
        if is_so() {
            return;
        }
        #[allow(clippy::disallowed_methods, reason = "a test that waits for another program")]
        std::thread::sleep(PAUSE);
    }
    panic!("waited in vain: {what}");
}
