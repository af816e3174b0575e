//! A mount of a test's cluster: it always goes away again, and nothing ever waits for it without an end.

use super::{KILN, TestCluster};
use kiln_env::Env;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// A mount that lives longer has hung something: its daemon is killed then, which ends every wait for it.
const LONGEST: Duration = Duration::from_secs(400);

/// Whether something can be mounted here; says it aloud when not.
pub(crate) fn possible() -> bool {
    let device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let may = rustix::process::geteuid().is_root() || find("fusermount3").is_some();
    match (device, may) {
        (Ok(_), true) if has_right() => true,
        (Err(error), _) => skip(&format!("/dev/fuse: {error}")),
        _ => skip("no right to mount"),
    }
}

/// Says that a test is skipped.
pub(crate) fn skip(why: &str) -> bool {
    println!("SKIPPED: {why}");
    eprintln!("SKIPPED: {why}");
    false
}

/// Root in a container may lack CAP_SYS_ADMIN (bit 21).
fn has_right() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let caps = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let caps = caps.and_then(|caps| u64::from_str_radix(caps.trim(), 16).ok());
    !rustix::process::geteuid().is_root() || caps.is_some_and(|caps| caps & (1 << 21) != 0)
}

/// Where a program is.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Waits for a moment.
pub(crate) fn pause(duration: Duration) {
    let (_sender, receiver) = mpsc::channel::<()>();
    let _ = receiver.recv_timeout(duration);
}

/// Asks every 50 ms until there is an answer; `None` when the time is over.
pub(crate) fn wait_for<T>(within: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..within.as_millis() / 50 {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        pause(Duration::from_millis(50));
    }
    ask()
}

/// Runs a command to its end, or kills it and fails.
pub(crate) fn finish(mut command: Command, within: Duration) -> Output {
    let said = tempfile::tempdir().expect("a temporary directory");
    let (out, err) = (said.path().join("out"), said.path().join("err"));
    let create = |path: &Path| File::create(path).expect("a temporary file");
    command.stdin(Stdio::null()).stdout(create(&out)).stderr(create(&err));
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let status = ended(&mut child, within);
    let (stdout, stderr) = (fs::read(out).unwrap_or_default(), fs::read(err).unwrap_or_default());
    let Some(status) = status else {
        let _ = child.kill();
        panic!("{command:?} goes on after {within:?}: {}", String::from_utf8_lossy(&stderr));
    };
    Output { status, stdout, stderr }
}

/// How a process ended, when it did in time.
pub(crate) fn ended(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    wait_for(within, || child.try_wait().expect("a child of this process"))
}

/// A mounted file system. Its daemon is a process of the test.
pub(crate) struct Mount {
    cluster: PathBuf,
    arguments: Vec<String>,
    path: PathBuf,
    log: PathBuf,
    daemon: Child,
    /// Its process, 0 when it has ended, for the watchdog.
    running: Arc<AtomicU32>,
    /// Dropped with the mount: that calls the watchdog off.
    _watchdog: mpsc::Sender<()>,
    _temporary: tempfile::TempDir,
}

impl TestCluster {
    /// Mounts it at a temporary directory.
    pub(crate) fn mount(&self) -> Mount {
        self.mount_with(&[])
    }

    /// Mounts it with more arguments.
    pub(crate) fn mount_with(&self, arguments: &[&str]) -> Mount {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let path = temporary.path().join("mnt");
        fs::create_dir(&path).expect("a new directory");
        fs::set_permissions(temporary.path(), Permissions::from_mode(0o755)).expect("one's own");
        let log = self.path().join(format!("logs/mount-{number}.log"));
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let daemon = start(self.path(), &path, &arguments, &log);
        let running = Arc::new(AtomicU32::new(daemon.id()));
        let _watchdog = watch(&running);
        let cluster = self.path().to_owned();
        Mount { cluster, arguments, path, log, daemon, running, _watchdog, _temporary: temporary }
    }
}

impl Mount {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A directory in it, made for everybody.
    pub(crate) fn make_dir(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir(&path).expect("a new directory");
        fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("one's own directory");
        path
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.id()
    }

    /// The most memory that the daemon had, in MiB.
    pub(crate) fn memory_peak(&self) -> u64 {
        memory_peak(self.pid())
    }

    /// Kills the daemon (SIGKILL).
    pub(crate) fn kill(&mut self) {
        self.daemon.kill().expect("a running daemon");
        assert!(self.ended().is_some(), "it does not end");
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        let status = ended(&mut self.daemon, Duration::from_secs(20));
        if status.is_some() {
            self.running.store(0, Ordering::Relaxed);
        }
        status
    }

    /// Unmounts in order; everything written is in the cluster then.
    pub(crate) fn unmount(&mut self) {
        let mut command = Command::new(KILN);
        command.arg("umount").arg(&self.path).env("KILN_DIR", &self.cluster);
        let output = finish(command, Duration::from_secs(120));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kiln umount: {said}\n{}", self.said());
        let status = self.ended();
        assert!(status.is_some_and(|status| status.success()), "{status:?}\n{}", self.said());
        assert!(!is_mounted(&self.path), "it is mounted still");
    }

    /// Mounts at the same place again, whatever is left there of the one before.
    pub(crate) fn mount_again(&mut self) {
        self.daemon = start(&self.cluster, &self.path, &self.arguments, &self.log);
        self.running.store(self.pid(), Ordering::Relaxed);
    }

    /// The end of what the daemon said.
    pub(crate) fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the mount's daemon said\n{}", self.said());
        } else if is_mounted(&self.path) && self.daemon.try_wait().is_ok_and(|end| end.is_none()) {
            self.unmount();
        }
        detach(&self.path);
        let _ = self.daemon.kill();
        self.ended();
    }
}

/// The most memory that a process had, in MiB.
pub(crate) fn memory_peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") >> 10
}

/// Starts a daemon, and waits until its file system is there.
fn start(cluster: &Path, path: &Path, arguments: &[String], log: &Path) -> Child {
    let open = || File::options().create(true).append(true).open(log).expect("a log");
    // A daemon must not outlive a test that is killed.
    let mut command = match find("setpriv") {
        Some(setpriv) => Command::new(setpriv),
        None => Command::new(KILN),
    };
    if command.get_program() != KILN {
        command.args(["--pdeathsig", "TERM", KILN]);
    }
    command.arg("mount").arg("--foreground").args(arguments).arg(path);
    command.env("KILN_DIR", cluster).env_remove("KILN_CLUSTER").env_remove("KILN_CREDENTIAL");
    command.stdin(Stdio::null()).stdout(open()).stderr(open());
    let mut daemon = command.spawn().expect("the kiln binary");
    let unknown = path.join(format!("nothing that {} has", daemon.id()));
    let serves = || {
        if let Some(status) = daemon.try_wait().expect("a child of this process") {
            let said = fs::read_to_string(log).unwrap_or_default();
            panic!("kiln mount ended with {status}: {said}");
        }
        // What a dead daemon has left behind is mounted, too, but answers no new question.
        let asked = fs::metadata(&unknown);
        let answers = asked.is_err_and(|error| error.kind() == ErrorKind::NotFound);
        (is_mounted(path) && answers).then_some(())
    };
    if wait_for(Duration::from_secs(30), serves).is_none() {
        detach(path);
        let _ = daemon.kill();
        panic!("not mounted after 30 s: {}", fs::read_to_string(log).unwrap_or_default());
    }
    daemon
}

/// Whether a file system of ours is mounted there.
fn is_mounted(path: &Path) -> bool {
    let path = path.to_str().expect("a temporary path is UTF-8");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(path) && line.contains(" - fuse"))
}

/// Takes a mount away, whoever uses it.
fn detach(path: &Path) {
    for _ in 0..5 {
        if !is_mounted(path) {
            return;
        }
        let mut command = match rustix::process::geteuid().is_root() {
            true => Command::new("umount"),
            false => Command::new("fusermount3"),
        };
        let lazily: &[_] = if command.get_program() == "umount" { &["-l"] } else { &["-u", "-z"] };
        let _ = command.args(lazily).arg(path).stderr(Stdio::null()).status();
    }
}

/// Kills the daemon of a mount that lives too long: whoever waits for it gets an error.
fn watch(daemon: &Arc<AtomicU32>) -> mpsc::Sender<()> {
    let (sender, receiver) = mpsc::channel::<()>();
    let daemon = Arc::clone(daemon);
    let body = move || {
        if receiver.recv_timeout(LONGEST) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("a mount is there after {LONGEST:?}: its daemon is killed");
            let pid = i32::try_from(daemon.load(Ordering::Relaxed)).ok().and_then(Pid::from_raw);
            pid.map(|pid| kill_process(pid, Signal::KILL));
        }
    };
    Env::real().spawn_thread("watchdog", body).expect("a thread");
    sender
}
