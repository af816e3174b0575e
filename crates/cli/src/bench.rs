//! `kiln bench`.

use crate::failure::{Failure, Outcome};
use crate::output;
use crate::place::{Meant, Place};
use crate::remote::{self, Remote};
use kiln_bench::{Bench, Group, Interrupt, Options, Peer, mounted};
use kiln_env::Env;
use kiln_kv_embedded::EmbeddedKv;
use kiln_launch::Stop;
use kiln_types::{Code, Context, Error, Result, RoutingInfo};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

/// Measure the cluster beside what its disk does without it
///
/// Runs reads, writes and work with names through the client library and through a mount, and in the same
/// run the same work without a cluster; what counts is the ratio. Test files are removed, also when it is
/// interrupted.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Bytes of the test files: a multiple of 1MiB [default: 512MiB, with --quick 128MiB]
    #[arg(long, value_name = "SIZE", value_parser = kiln_config::parse_size)]
    size: Option<u64>,

    /// Requests of 1 MiB that are under way
    #[arg(long, value_name = "N", default_value_t = 8)]
    depth: usize,

    /// Random requests of the client library that are under way
    #[arg(long, value_name = "N", default_value_t = 32)]
    random_depth: usize,

    /// How many work on names and small files at a time, in turn
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_values_t = [1, 8])]
    workers: Vec<usize>,

    /// How long each measurement without a size lasts [default: 0.4, with --quick 0.15]
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,

    /// How often everything is measured, in turn [default: 3, with --quick 1]
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,

    /// About 20 seconds in all instead of 2 minutes
    #[arg(long)]
    quick: bool,

    /// Measure only this; may be repeated
    #[arg(long, value_name = "GROUP")]
    only: Vec<Only>,

    /// A directory in a mount of the cluster [default: a mount that is made for the run]
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,

    /// Also measure this directory, of another file system; may be repeated
    #[arg(long, value_name = "NAME=DIR", value_parser = peer)]
    beside: Vec<Peer>,

    /// A directory on the disk to compare with [default: the cluster's, where it is on this machine]
    #[arg(long, value_name = "DIR")]
    raw_dir: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    /// Reads and writes through the client library
    Library,
    /// Reads and writes through a mount
    Mount,
    /// Names and small files through a mount
    Metadata,
    /// Names and small files through the client library
    LibraryMetadata,
}

fn peer(text: &str) -> Result<Peer, String> {
    match text.split_once('=') {
        Some(("kiln", _)) => Err("kiln is what it is measured beside".into()),
        Some((name, dir)) if !name.is_empty() && Path::new(dir).is_dir() => {
            Ok(Peer { name: name.into(), dir: dir.into() })
        }
        Some((_, dir)) if !dir.is_empty() => Err(format!("{dir} is no directory")),
        _ => Err("it is NAME=DIR".into()),
    }
}

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    let meant = place.meant()?;
    let raw_dir = match (args.raw_dir.clone(), &meant) {
        (Some(dir), _) => dir,
        (None, Meant::Dir(dir)) => dir.clone(),
        (None, Meant::Elsewhere(..)) => {
            return Err(Failure::usage(
                Error::invalid("there is nothing to compare a cluster elsewhere with").with_hint(
                    "name a directory on a local disk like the cluster's: --raw-dir DIR",
                ),
            ));
        }
    };
    if let Some(dir) = &args.mount {
        check_mount(dir)?;
    }
    remote::run(place, async |remote| {
        let interrupt = follow_interrupts(&remote.env)?;
        let groups = args.groups();
        let through_mount = groups.contains(&Group::Mount) || groups.contains(&Group::Metadata);
        let (own, note) = match &args.mount {
            None if through_mount => match OwnMount::make(&remote.env, &meant).await {
                Ok(own) => (Some(own), None),
                Err(error) => (None, Some(format!("Nothing through a mount: {error}"))),
            },
            _ => (None, None),
        };
        let mount = args.mount.clone().or_else(|| own.as_ref().map(|own| own.point.clone()));
        let options = args.options(raw_dir, groups, mount, &remote.client.routing());
        let report = measure(remote, options, interrupt).await;
        let unmounted = match own {
            Some(own) => own.end(&remote.env).await,
            None => Ok(()),
        };
        let mut report = report?;
        unmounted?;
        report.notes.extend(note);
        match args.json {
            true => output::print_json(&report)?,
            false => output::print(&report.to_string())?,
        }
        Ok(())
    })
}

async fn measure(
    remote: &Remote,
    options: Options,
    interrupt: Interrupt,
) -> Result<kiln_bench::Report> {
    let env = remote.env.clone();
    let bench = Bench {
        env: env.clone(),
        client: Arc::clone(&remote.client),
        caller: remote.caller.clone(),
        options,
        interrupt,
        progress: Box::new(|step| {
            if std::io::stderr().is_terminal() {
                eprintln!("{step} ..");
            }
        }),
    };
    let open_kv = async |path: PathBuf| {
        let opened = EmbeddedKv::open(path, &env, kiln_kv_embedded::Options::default()).await?;
        Ok(Arc::new(opened) as Arc<dyn kiln_bench::Kv>)
    };
    Box::pin(bench.run(open_kv)).await
}

impl Args {
    fn groups(&self) -> Vec<Group> {
        let all = [
            (Only::Library, Group::Library),
            (Only::Mount, Group::Mount),
            (Only::Metadata, Group::Metadata),
            (Only::LibraryMetadata, Group::LibraryMetadata),
        ];
        let wanted = |only: &Only| self.only.is_empty() || self.only.contains(only);
        all.iter().filter(|(only, _)| wanted(only)).map(|(_, group)| *group).collect()
    }

    fn options(
        &self,
        raw_dir: PathBuf,
        groups: Vec<Group>,
        mount: Option<PathBuf>,
        routing: &RoutingInfo,
    ) -> Options {
        let (size, seconds, rounds) =
            if self.quick { (128 << 20, 0.15, 1) } else { (512 << 20, 0.4, 3) };
        Options {
            size: self.size.unwrap_or(size),
            depth: self.depth.max(1),
            random_depth: self.random_depth.max(1),
            workers: self.workers.iter().map(|workers| (*workers).clamp(1, 1024)).collect(),
            time: Duration::from_secs_f64(self.seconds.unwrap_or(seconds).clamp(0.01, 600.0)),
            rounds: self.rounds.unwrap_or(rounds).max(1),
            raw_dir,
            replicas: replicas(routing),
            mount,
            peers: self.beside.clone(),
            groups,
        }
    }
}

/// How many copies are written now.
fn replicas(routing: &RoutingInfo) -> usize {
    routing.chains.values().map(|chain| chain.serving().count()).max().unwrap_or(1).max(1)
}

/// A mount that is not there would measure the directory below it.
fn check_mount(dir: &Path) -> Outcome {
    let kind = mounted(dir).map(|mount| mount.kind).unwrap_or_default();
    if kind == "fuse.kiln" {
        return Ok(());
    }
    let text = format!("{} is in no mount of kiln, but of '{kind}'", dir.display());
    Err(Failure::usage(Error::invalid(text).with_hint("'kiln mount DIR' makes one")))
}

/// The first signal ends the run after its current requests, the second one at once.
fn follow_interrupts(env: &Env) -> Result<Interrupt> {
    let (interrupt, mut stop) = (Interrupt::default(), Stop::on_any()?);
    let told = interrupt.clone();
    let follow = async move {
        stop.requested().await;
        told.set();
        stop.requested().await;
        std::process::exit(130);
    };
    env.spawn("interrupts", follow).detach();
    Ok(interrupt)
}

/// A mount for this run alone.
struct OwnMount {
    point: PathBuf,
}

/// How long mounting and unmounting may take.
const MOUNT_WITHIN: Duration = Duration::from_secs(60);

impl OwnMount {
    async fn make(env: &Env, meant: &Meant) -> Result<Self> {
        let name = format!("kiln-bench-{:016x}", env.random_u64());
        let own = Self { point: std::env::temp_dir().join(name) };
        std::fs::create_dir(&own.point).context("a mount point for the run")?;
        let mut arguments = vec![OsString::from("mount"), own.point.clone().into()];
        match meant {
            Meant::Dir(dir) => arguments.extend(["--dir".into(), dir.into()]),
            Meant::Elsewhere(address, credential) => arguments.extend([
                "--cluster".into(),
                address.into(),
                "--credential".into(),
                credential.into(),
            ]),
        }
        if let Err(error) = kiln(env, &arguments).await {
            own.remove_point();
            return Err(error);
        }
        Ok(own)
    }

    async fn end(self, env: &Env) -> Result<()> {
        let ended = kiln(env, &["umount".into(), self.point.clone().into()]).await;
        self.remove_point();
        ended
    }

    fn remove_point(&self) {
        if let Err(error) = std::fs::remove_dir(&self.point) {
            tracing::warn!(path = %self.point.display(), %error, "a mount point stays");
        }
    }
}

/// Runs another command of this program.
async fn kiln(env: &Env, arguments: &[OsString]) -> Result<()> {
    let program = std::env::current_exe().context("this program")?;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let what = arguments.first().map(|name| name.to_string_lossy()).unwrap_or_default();
    let ended = env.timeout(MOUNT_WITHIN, &format!("kiln {what}"), command.output()).await?;
    let ended = ended.context(format_args!("kiln {what}"))?;
    if ended.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&ended.stderr).trim().replace('\n', ";");
    Err(Error::new(Code::Local, words))
}
