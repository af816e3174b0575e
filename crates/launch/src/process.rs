//! The process of one member of a cluster.

use crate::ClusterDir;
use crate::child::{READY, SUPERVISOR};
use kiln_env::Env;
use kiln_types::{Code, Context, Error, Monotonic, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::future::poll_fn;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::task::{self, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// How long a member may take to say that it is ready: recovery of a large store included.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A log that is longer when its server starts is moved aside.
const LOG_BYTES_MAX: u64 = 64 << 20;
/// At most this much of the end of a log is looked at for what a server said last.
const TAIL_BYTES: u64 = 4096;

/// Variables that name one server: the supervisor's own environment must not name all of them alike.
const ONE_SERVERS_VARIABLES: [&str; 6] = [
    "KILN_NODE_",
    "KILN_CLUSTER_",
    "KILN_DISKS",
    "KILN_BOOTSTRAP_",
    "KILN_LOG_FILE",
    "KILN_METRICS_LISTEN",
];

/// How a process ended, and what it said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    how: String,
    /// Nothing went wrong (status 0).
    pub(crate) fine: bool,
    last_words: String,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.how)?;
        if !self.last_words.is_empty() {
            write!(f, ": {}", self.last_words)?;
        }
        Ok(())
    }
}

/// What a member said first: `None` when it closed its output instead, an error when it took too long.
pub(crate) type FirstLine = Result<Option<String>>;

/// A running member of a cluster. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
    pid: u32,
    started: Monotonic,
    output: Lines<BufReader<ChildStdout>>,
    /// Ends when it should have said something; `None` when it has, or that is over.
    patience: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    log: PathBuf,
    /// Where this process's part of the log begins.
    log_from: u64,
}

impl Process {
    /// Starts the member `name` of the cluster in `dir`. The kernel ends it with the calling *thread*,
    /// which must live as long as the cluster.
    pub(crate) fn start(
        program: &Path,
        dir: &ClusterDir,
        name: &str,
        arguments: Vec<OsString>,
        env: &Env,
    ) -> Result<Self> {
        let log = dir.log(name);
        let (log_file, log_from) = open_log(&log)?;
        let mut command = Command::new(program);
        command.args(arguments);
        for (name, _) in std::env::vars_os() {
            let begins = |start: &&str| name.as_encoded_bytes().starts_with(start.as_bytes());
            if ONE_SERVERS_VARIABLES.iter().any(begins) {
                command.env_remove(name);
            }
        }
        command.env(SUPERVISOR, std::process::id().to_string());
        command.current_dir(dir.path()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file);
        let started = command.spawn();
        let mut child =
            started.context(format_args!("start of {name} with {}", program.display()))?;
        let (Some(pid), Some(output)) = (child.id(), child.stdout.take()) else {
            return Err(Error::internal(format!("{name} has no process or output")));
        };
        let output = BufReader::new(output).lines();
        let (clock, started) = (env.clone(), env.now());
        let patience: Pin<Box<dyn Future<Output = ()> + Send>> =
            Box::pin(async move { clock.sleep(READY_WITHIN).await });
        Ok(Self { child, pid, started, output, patience: Some(patience), log, log_from })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// How long it has been running.
    pub(crate) fn age(&self, env: &Env) -> Duration {
        env.now().since(self.started)
    }

    /// Whether it has not said anything yet.
    pub(crate) fn is_starting(&self) -> bool {
        self.patience.is_some()
    }

    /// Waits for what it says first; to be called once.
    pub(crate) async fn first_line(&mut self) -> FirstLine {
        poll_fn(|context| self.poll_first_line(context)).await
    }

    /// Ready once, with what it says first.
    pub(crate) fn poll_first_line(&mut self, context: &mut task::Context<'_>) -> Poll<FirstLine> {
        let Some(patience) = &mut self.patience else { return Poll::Pending };
        let line = match Pin::new(&mut self.output).poll_next_line(context) {
            Poll::Ready(line) => Ok(line.unwrap_or(None)),
            Poll::Pending => {
                ready!(patience.as_mut().poll(context));
                Err(failed(format!("it is not ready after {READY_WITHIN:?}")))
            }
        };
        self.patience = None;
        Poll::Ready(line)
    }

    /// Where it is ready, by what it said first.
    pub(crate) async fn place(&mut self, line: FirstLine, env: &Env) -> Result<String> {
        let place = match line {
            Ok(Some(line)) => match line.strip_prefix(READY) {
                Some(place) => Ok(place.into()),
                None => Err(failed(format!("it said '{line}'"))),
            },
            Ok(None) => match self.wait(env, Duration::from_secs(5)).await {
                Some(exit) => Err(failed(format!("it {exit}"))),
                None => Err(failed("it closed its output and goes on")),
            },
            Err(error) => Err(error),
        };
        place.map_err(|error| error.with_hint(format!("its log is {}", self.log.display())))
    }

    /// How it ended, when it has.
    pub(crate) fn exited(&mut self) -> Option<Exit> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(self.exit(status))
    }

    /// Waits for its end.
    pub(crate) async fn wait(&mut self, env: &Env, within: Duration) -> Option<Exit> {
        let status = env.timeout(within, "end", self.child.wait()).await.ok()?.ok()?;
        Some(self.exit(status))
    }

    /// Sends a signal; one that has ended does not get it.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.exited().is_none() {
            signal_pid(self.pid, signal);
        }
    }

    fn exit(&self, status: ExitStatus) -> Exit {
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with status {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => status.to_string(),
        };
        let last_words = last_words(&self.log, self.log_from).unwrap_or_default();
        Exit { how, fine: status.success(), last_words }
    }
}

fn failed(what: impl Into<String>) -> Error {
    Error::new(Code::Local, what)
}

pub(crate) fn signal_pid(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // The one error that can be is that it has ended meanwhile.
        let _ = kill_process(pid, signal);
    }
}

fn open_log(path: &Path) -> Result<(File, u64)> {
    let length = fs::metadata(path).map_or(0, |metadata| metadata.len());
    if length > LOG_BYTES_MAX {
        fs::rename(path, path.with_extension("log.old")).context(path.display())?;
    }
    let file = OpenOptions::new().create(true).append(true).open(path).context(path.display())?;
    let length = file.metadata().context(path.display())?.len();
    Ok((file, length))
}

/// The last lines of a log from `from` on, as one.
fn last_words(path: &Path, from: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    // An error is a line that begins so, and perhaps a hint after it.
    let begins = |line: &&str| line.starts_with("kiln: ") || line.starts_with("error: ");
    let last = lines.iter().rposition(begins).unwrap_or(lines.len().saturating_sub(1));
    Ok(lines[last..].join("; ").replacen("kiln: ", "", 1))
}
