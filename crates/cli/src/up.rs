//! `kiln up`: in the foreground, or as a supervisor of its own.

use crate::failure::{Failure, Outcome};
use crate::place::{Place, invoked_as, quoted};
use crate::{detached, engine, output, runtime, usable};
use kiln_client_fuse::mount::prepare;
use kiln_env::Env;
use kiln_kv_postgres::SCHEMA;
use kiln_launch::{Cluster, ClusterDir, Event, Postgres, Shape, Stop, Wishes};
use kiln_types::{Code, Context, Result};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Storage servers [default: 3]
    #[arg(long, value_name = "N")]
    storage: Option<u32>,

    /// Copies of everything, each on another storage server [default: 3, or N with fewer servers]
    #[arg(long, value_name = "R")]
    replicas: Option<u32>,

    /// Disks of each storage server, as directories [default: 1]
    #[arg(long, value_name = "N")]
    disks: Option<u32>,

    /// What each disk may hold; space is taken as it is used
    /// [default: 64GiB, less where less is free]
    #[arg(long, value_name = "SIZE", value_parser = kiln_config::parse_size)]
    capacity: Option<u64>,

    /// Keep metadata and the manager's state in this PostgreSQL: postgres://USER@HOST:PORT/DATABASE
    /// [default: each server keeps its own]
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,

    /// The file with the PostgreSQL user's password, mode 0600 [default: it wants none]
    #[arg(long, value_name = "FILE", requires = "postgres")]
    postgres_password: Option<PathBuf>,

    /// A danger of the PostgreSQL that is accepted, such as "unencrypted"; may be repeated
    #[arg(long, value_name = "DANGER", requires = "postgres")]
    postgres_allow: Vec<String>,

    /// Metadata servers; more than one need --postgres [default: 1]
    #[arg(long, value_name = "N")]
    meta: Option<u32>,

    /// Mount the cluster on this directory while it runs
    #[arg(long, value_name = "PATH")]
    mount: Option<PathBuf>,

    /// Return when the cluster is ready; 'kiln down' stops it
    #[arg(long)]
    detach: bool,

    /// The supervisor that --detach starts
    #[arg(long, hide = true, conflicts_with = "detach")]
    background: bool,
}

/// What a background supervisor says when the cluster is ready.
#[derive(Clone, Serialize, Deserialize)]
struct Ready {
    milliseconds: u64,
    shape: Shape,
    /// Where it is mounted.
    mount: Option<PathBuf>,
    /// What happened on the way that its user wants to know.
    notes: Vec<String>,
    unready: Option<String>,
}

/// Longer than the servers are given to start.
const ANSWER_WITHIN: Duration = Duration::from_secs(180);

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    let path = std::path::absolute(place.local()?).context("--dir")?;
    let runtime = runtime::single()?;
    if args.detach {
        runtime.block_on(detach(place, args, &path))
    } else if args.background {
        runtime.block_on(background(args, &path))
    } else {
        runtime.block_on(foreground(place, args, &path))
    }
}

impl Args {
    fn wishes(&self) -> Result<Wishes> {
        Ok(Wishes {
            storage: self.storage,
            replicas: self.replicas,
            disks: self.disks,
            capacity: self.capacity,
            meta: self.meta,
            postgres: self.postgres()?,
        })
    }

    fn postgres(&self) -> Result<Option<Postgres>> {
        let Some(url) = self.postgres.clone() else { return Ok(None) };
        let password_file = match &self.postgres_password {
            Some(path) => std::path::absolute(path).context(path.display())?,
            None => PathBuf::new(),
        };
        Ok(Some(Postgres { url, password_file, allow: self.postgres_allow.clone() }))
    }
}

async fn foreground(place: &Place, args: &Args, path: &Path) -> Outcome {
    let env = Env::real();
    let begin = env.now();
    let mut stop = Stop::on_any()?;
    let (point, notes) = point(args, &env).await?;
    let (dir, lock) = take(args, path, &env).await?;
    notes.iter().for_each(|note| output::tell(note));
    output::tell(&format!("starting kiln in {}", path.display()));
    let report = |event| output::tell(&format!("{event}"));
    let starting = start(dir, lock, point.as_deref(), &env, quiet_while_starting(report));
    let (mut cluster, unready) = tokio::select! {
        started = starting => started?,
        () = stop.requested() => return Ok(()),
    };
    let ready = Ready::new(&cluster, point, notes, unready, env.now().since(begin));
    output::tell(&ready.text(place, path, false));
    cluster.supervise(&mut stop).await?;
    Ok(())
}

/// Starts a supervisor in a session of its own and waits until it says that the cluster is ready.
async fn detach(place: &Place, args: &Args, path: &Path) -> Outcome {
    let program = std::env::current_exe().context("this program")?;
    let mut command = tokio::process::Command::new(program);
    command.arg("up").arg("--background").arg("--dir").arg(path);
    let options = [
        ("--storage", args.storage.map(u64::from)),
        ("--replicas", args.replicas.map(u64::from)),
        ("--disks", args.disks.map(u64::from)),
        ("--capacity", args.capacity),
        ("--meta", args.meta.map(u64::from)),
    ];
    for (option, value) in options {
        if let Some(value) = value {
            command.arg(option).arg(value.to_string());
        }
    }
    if let Some(Postgres { url, password_file, allow }) = args.postgres()? {
        command.arg("--postgres").arg(url);
        allow.iter().for_each(|danger| {
            command.arg("--postgres-allow").arg(danger);
        });
        if !password_file.as_os_str().is_empty() {
            command.arg("--postgres-password").arg(password_file);
        }
    }
    if let Some(mount) = &args.mount {
        command.arg("--mount").arg(std::path::absolute(mount).context(mount.display())?);
    }
    let log = path.join("logs/up.log");
    let ready: Ready = detached::start(command, "the supervisor", ANSWER_WITHIN, &log).await?;
    let notes: String = ready.notes.iter().map(|note| format!("{note}\n")).collect();
    output::print(&(notes + &ready.text(place, path, true) + "\n"))?;
    Ok(())
}

async fn background(args: &Args, path: &Path) -> Outcome {
    detached::leave();
    let env = Env::real();
    let begin = env.now();
    let mut stop = Stop::on_any()?;
    let started = async {
        let (point, notes) = point(args, &env).await?;
        let (dir, lock) = take(args, path, &env).await?;
        detached::log_to(&dir.log("up"), Duration::ZERO)?;
        tracing::info!(dir = %path.display(), pid = std::process::id(), "supervisor started");
        let report = |event: Event| tracing::info!("{event}");
        let (cluster, unready) = start(dir, lock, point.as_deref(), &env, report).await?;
        let ready = Ready::new(&cluster, point, notes, unready, env.now().since(begin));
        Outcome::Ok((cluster, ready))
    };
    let started = tokio::select! {
        started = started => started,
        () = stop.requested() => return Ok(()),
    };
    let (mut cluster, _) = detached::answer(started, |(_, ready)| ready.clone())?;
    cluster.supervise(&mut stop).await?;
    tracing::info!("supervisor stopped");
    Ok(())
}

async fn take(args: &Args, path: &Path, env: &Env) -> Outcome<(ClusterDir, kiln_launch::Lock)> {
    let wishes = args.wishes()?;
    if let Some(postgres) = &wishes.postgres {
        // Before the directory is made, which keeps what was chosen.
        let kv = postgres.kv(SCHEMA.into());
        engine::check(&kv, env).await.context("--postgres")?;
    }
    ClusterDir::take(path, &wishes, env).await.map_err(|error| {
        if error.code() == Code::Invalid && error.message().starts_with("--") {
            Failure::usage(error)
        } else {
            error.into()
        }
    })
}

/// Starts the servers, waits until they can be used, and mounts; why they cannot be used as they should.
async fn start(
    dir: ClusterDir,
    lock: kiln_launch::Lock,
    point: Option<&Path>,
    env: &Env,
    report: impl FnMut(Event) + Send + 'static,
) -> Result<(Cluster, Option<String>)> {
    let program = std::env::current_exe().context("this program")?;
    let mut cluster = Cluster::start(dir, lock, &program, env.clone(), report).await?;
    let unready = usable::unready(cluster.dir(), env).await;
    if let Some(point) = point
        && let Err(error) = cluster.mount(point).await
    {
        cluster.stop().await;
        return Err(error);
    }
    Ok((cluster, unready))
}

/// Where the cluster is to be mounted, looked at before anything starts, and what was done for that: a
/// directory that is not there is made where its parent is.
async fn point(args: &Args, env: &Env) -> Result<(Option<PathBuf>, Vec<String>)> {
    let Some(path) = &args.mount else { return Ok((None, Vec::new())) };
    let mut notes = Vec::new();
    let path = std::path::absolute(path).context(path.display())?;
    if path.parent().is_some_and(Path::is_dir)
        && path.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound)
    {
        std::fs::create_dir(&path).context(path.display())?;
        notes.push(format!("made the directory {}", path.display()));
    }
    let point = prepare(&path, env, |note| notes.push(note)).await?;
    Ok((Some(point), notes))
}

/// At the first start of each server its readiness is no news; afterwards it is.
fn quiet_while_starting(mut report: impl FnMut(Event)) -> impl FnMut(Event) {
    let mut known = std::collections::BTreeSet::new();
    move |event| match &event {
        Event::Ready { name, .. } if known.insert(name.clone()) => {}
        Event::Mounted { path, .. } if known.insert(path.display().to_string()) => {}
        _ => report(event),
    }
}

impl Ready {
    fn new(
        cluster: &Cluster,
        mount: Option<PathBuf>,
        notes: Vec<String>,
        unready: Option<String>,
        took: Duration,
    ) -> Self {
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        Self { milliseconds, shape: cluster.dir().shape().clone(), mount, notes, unready }
    }

    fn text(&self, place: &Place, dir: &Path, detached: bool) -> String {
        let kiln = format!("{}{}", invoked_as(), place.as_options(dir));
        let servers = output::count(self.shape.storage, "storage server");
        let servers = match self.shape.meta {
            1 => servers,
            meta => format!("{}, {servers}", output::count(meta, "metadata server")),
        };
        let replicas = output::count(self.shape.replicas, "replica");
        let stop = if detached {
            format!("  {kiln} down")
        } else {
            "  Ctrl-C here stops it; what it holds stays.".into()
        };
        let (mounted, try_it) = match &self.mount {
            Some(path) => {
                let path = quoted(path);
                let copy = format!("cp -a ~/dataset {path}/\n  ls -l {path}/\n  {kiln} status");
                (format!(", mounted on {path}"), copy)
            }
            None => {
                let copy = format!("{kiln} cp -r ~/dataset kiln:/\n  {kiln} ls -l kiln:/");
                (String::new(), format!("{copy}\n  {kiln} status"))
            }
        };
        let but = self.unready.as_ref().map(|why| format!("\n\nBut {why}")).unwrap_or_default();
        format!(
            "kiln is ready after {:.1} s: {servers}, {replicas} of everything, in {}{mounted}\n\n\
             What to type next:\n  {try_it}\n{stop}{but}",
            Duration::from_millis(self.milliseconds).as_secs_f64(),
            quoted(dir),
        )
    }
}
