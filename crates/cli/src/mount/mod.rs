//! `kiln mount`: in the foreground, or as a daemon.

mod daemon;
pub(crate) mod helper;

use crate::failure::{Failure, Outcome};
use crate::place::{Meant, Place, invoked_as, quoted};
use crate::{detached, output, runtime};
use kiln_client_fuse::{FsOptions, MountOptions, mount};
use kiln_types::{Consistency, Context, Error, Result};
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

const FSTAB: &str = "\
In /etc/fstab, after 'ln -s \"$(command -v kiln)\" /sbin/mount.kiln':
  HOST:PORT:/SUBTREE  /mnt/kiln  kiln  credential=/etc/kiln/client.toml,_netdev  0 0
  /var/lib/kiln:/     /mnt/kiln  kiln  defaults,noauto                           0 0
The second line is for a cluster in that directory of this machine. Options there: ro, credential=,
io_timeout=, read_ahead=, write_back=, cache_for=, metrics=, slow=, log_file=, allow_other, suid, noexec,
relaxed_reads.";

/// Mount the cluster on a directory
///
/// Returns when it is mounted. A daemon serves it until 'kiln umount' or umount(8).
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = FSTAB)]
pub(crate) struct Args {
    /// The directory to mount on
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// Stay in the foreground; Ctrl-C unmounts
    #[arg(long)]
    foreground: bool,

    /// The daemon that a mount without --foreground starts
    #[arg(long, hide = true, conflicts_with = "foreground")]
    background: bool,

    #[command(flatten)]
    how: How,
}

/// How it is mounted.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct How {
    /// Refuse every change
    #[arg(long)]
    read_only: bool,

    /// Show only this directory of the cluster
    #[arg(long, value_name = "DIR", default_value = "/", hide_default_value = true)]
    subtree: OsString,

    /// Let other users in, each with their own rights; root's mounts always do
    #[arg(long)]
    allow_other: bool,

    /// Let set-user-id bits count, for root's mounts
    #[arg(long)]
    suid: bool,

    /// Let no program be run from it
    #[arg(long)]
    no_exec: bool,

    /// Let reads during others' writes not wait for those: two of them may show new bytes first and then
    /// old ones
    #[arg(long)]
    relaxed_reads: bool,

    /// How long programs wait for a cluster that does not answer before they get an I/O error;
    /// 'hard': for ever
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = io_timeout)]
    io_timeout: Timeout,

    /// What is read ahead of each sequential reader
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = kiln_config::parse_size)]
    read_ahead: u64,

    /// What may be written and not yet in the cluster, over all files
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = kiln_config::parse_size)]
    write_back: u64,

    /// How long the kernel keeps names and attributes while it is told of changes
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "60s",
        value_parser = kiln_config::parse_duration
    )]
    cache_for: Duration,

    /// Where Prometheus finds this mount's metrics; '': nowhere
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:0",
        value_parser = metrics_at
    )]
    metrics: MetricsAt,

    /// Log operations that take so long or longer, with where their time went; 0s: none
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "1s",
        value_parser = kiln_config::parse_duration
    )]
    slow: Duration,

    /// The file to log to [default: the cluster's logs/mount-NAME.log where it is on this machine, else
    /// one in /run/kiln or $XDG_RUNTIME_DIR/kiln; in the foreground standard error]
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

/// `None`: hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Timeout(Option<Duration>);

fn io_timeout(text: &str) -> Result<Timeout> {
    match text {
        "hard" => Ok(Timeout(None)),
        text => kiln_config::parse_duration(text).map(|time| Timeout(Some(time))).map_err(|_| {
            Error::invalid(format!("'{text}' is no duration, as in 120s, and not 'hard'"))
        }),
    }
}

/// `None`: nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MetricsAt(Option<SocketAddr>);

fn metrics_at(text: &str) -> Result<MetricsAt> {
    kiln_config::parse_address(text).map(MetricsAt)
}

/// What the daemon says when it is mounted.
#[derive(Serialize, Deserialize)]
struct Ready {
    path: PathBuf,
    source: String,
    /// What it did on the way that its user wants to know.
    notes: Vec<String>,
}

/// What connecting and mounting take at most, with room.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    let wanted = Wanted::new(place, args, None)?;
    if args.background {
        return daemon::background(wanted);
    }
    if args.foreground {
        return daemon::foreground(wanted);
    }
    let ready = detach(&wanted, args)?;
    output::print(&mounted_text(&ready))?;
    Ok(())
}

fn mounted_text(ready: &Ready) -> String {
    let notes: String = ready.notes.iter().map(|note| format!("{note}\n")).collect();
    let path = quoted(&ready.path);
    let kiln = invoked_as();
    format!("{notes}{} is mounted on {path}; {kiln} umount {path} unmounts it\n", ready.source)
}

/// What is to be mounted, where and how.
struct Wanted {
    meant: Meant,
    path: PathBuf,
    source: String,
    log_file: Option<PathBuf>,
    slow: Duration,
    metrics: Option<SocketAddr>,
    consistency: Consistency,
    fs: FsOptions,
    mount: MountOptions,
}

impl Wanted {
    /// `source`: what is shown as mounted, when it is not to be made up here.
    fn new(place: &Place, args: &Args, source: Option<String>) -> Outcome<Self> {
        let how = &args.how;
        let meant = match place.meant()? {
            Meant::Dir(dir) => Meant::Dir(std::path::absolute(dir).context("--dir")?),
            Meant::Elsewhere(address, file) => {
                let file = std::path::absolute(file).context("--credential")?;
                Meant::Elsewhere(address, file)
            }
        };
        let subtree = subtree(&how.subtree)?;
        let cluster = match &meant {
            Meant::Dir(dir) => dir.display().to_string(),
            Meant::Elsewhere(address, _) => address.clone(),
        };
        let shown = String::from_utf8_lossy(&subtree);
        let source = source.unwrap_or_else(|| format!("{cluster}:{shown}"));
        let path = std::path::absolute(&args.path).context(args.path.display())?;
        let log_file = how.log_file.as_ref().map(std::path::absolute).transpose();
        Ok(Self {
            meant,
            path,
            log_file: log_file.context("--log-file")?,
            slow: how.slow,
            metrics: how.metrics.0,
            consistency: match how.relaxed_reads {
                true => Consistency::Relaxed,
                false => Consistency::Linearizable,
            },
            fs: FsOptions {
                subtree,
                read_only: how.read_only,
                cache_for: how.cache_for,
                io_timeout: how.io_timeout.0,
                read_ahead: how.read_ahead,
                write_back: how.write_back,
            },
            mount: MountOptions {
                source: source.clone(),
                read_only: how.read_only,
                allow_other: how.allow_other || rustix::process::geteuid().is_root(),
                suid: how.suid,
                no_exec: how.no_exec,
            },
            source,
        })
    }

    /// Where the daemon logs when nothing else is said.
    fn log(&self) -> PathBuf {
        let name = format!("mount-{}.log", mount::name_of(&self.path));
        match (&self.log_file, &self.meant) {
            (Some(file), _) => file.clone(),
            (None, Meant::Dir(dir)) => dir.join("logs").join(name),
            (None, Meant::Elsewhere(..)) => mount::runtime_dir().join(name),
        }
    }
}

/// A directory of the cluster: absolute, `kiln:` in front or not.
fn subtree(text: &OsStr) -> Outcome<Vec<u8>> {
    let bytes = text.as_bytes();
    let path = bytes.strip_prefix(b"kiln:").unwrap_or(bytes);
    if path.first() == Some(&b'/') {
        return Ok(path.to_vec());
    }
    Err(Failure::usage(
        Error::invalid(format!("--subtree {} does not begin with '/'", text.display()))
            .with_hint("name a directory of the cluster from its root on, as in /datasets"),
    ))
}

/// Starts a daemon and waits until it has mounted.
fn detach(wanted: &Wanted, args: &Args) -> Outcome<Ready> {
    let program = std::env::current_exe().context("this program")?;
    let mut command = tokio::process::Command::new(program);
    command.arg("mount").arg(&wanted.path).arg("--background").args(wanted.place_arguments());
    command.args(args.how.arguments(wanted));
    let log = wanted.log();
    let started = detached::start(command, "the mount's daemon", ANSWER_WITHIN, &log);
    runtime::single()?.block_on(started)
}

impl Wanted {
    fn place_arguments(&self) -> Vec<OsString> {
        match &self.meant {
            Meant::Dir(dir) => vec!["--dir".into(), dir.into()],
            Meant::Elsewhere(address, file) => {
                vec!["--cluster".into(), address.into(), "--credential".into(), file.into()]
            }
        }
    }
}

impl How {
    /// The options that say the same again.
    fn arguments(&self, wanted: &Wanted) -> Vec<OsString> {
        let mut arguments = Vec::<OsString>::new();
        let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        option("--subtree", self.subtree.clone());
        let timeout = self.io_timeout.0.map_or_else(|| "hard".into(), kiln_config::format_duration);
        option("--io-timeout", timeout.into());
        option("--read-ahead", self.read_ahead.to_string().into());
        option("--write-back", self.write_back.to_string().into());
        option("--cache-for", kiln_config::format_duration(self.cache_for).into());
        option("--metrics", kiln_config::format_address(self.metrics.0).into());
        option("--slow", kiln_config::format_duration(self.slow).into());
        if let Some(file) = &wanted.log_file {
            option("--log-file", file.into());
        }
        let flags = [
            ("--read-only", self.read_only),
            ("--allow-other", self.allow_other),
            ("--suid", self.suid),
            ("--no-exec", self.no_exec),
            ("--relaxed-reads", self.relaxed_reads),
        ];
        arguments
            .extend(flags.iter().filter(|(_, set)| *set).map(|(name, _)| OsString::from(name)));
        arguments
    }
}
