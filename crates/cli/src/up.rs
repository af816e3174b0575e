//! `kiln up`: in the foreground, or as a supervisor of its own.

use crate::failure::{Failure, Outcome};
use crate::place::{Place, invoked_as, quoted};
use crate::{detached, output, runtime, usable};
use kiln_env::Env;
use kiln_launch::{Cluster, ClusterDir, Event, Shape, Stop, Wishes};
use kiln_types::{Code, Context, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;
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

    /// Return when the cluster is ready; 'kiln down' stops it
    #[arg(long)]
    detach: bool,

    /// The supervisor that --detach starts
    #[arg(long, hide = true, conflicts_with = "detach")]
    background: bool,
}

/// What a background supervisor says when the cluster is ready.
#[derive(Serialize, Deserialize)]
struct Ready {
    milliseconds: u64,
    shape: Shape,
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
    fn wishes(&self) -> Wishes {
        Wishes {
            storage: self.storage,
            replicas: self.replicas,
            disks: self.disks,
            capacity: self.capacity,
        }
    }
}

async fn foreground(place: &Place, args: &Args, path: &Path) -> Outcome {
    let env = Env::real();
    let begin = env.now();
    let mut stop = Stop::on_any()?;
    let (dir, lock) = take(args, path, &env).await?;
    output::tell(&format!("starting kiln in {}", path.display()));
    let report = |event| output::tell(&format!("{event}"));
    let starting = start(dir, lock, &env, quiet_while_starting(report));
    let mut cluster = tokio::select! {
        cluster = starting => cluster?,
        () = stop.requested() => return Ok(()),
    };
    let unready = usable::unready(cluster.dir(), &env).await;
    let took = env.now().since(begin);
    output::tell(&ready_text(place, cluster.dir().path(), cluster.dir().shape(), took, false));
    if let Some(why) = unready {
        output::tell(&format!("\nBut {why}"));
    }
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
    ];
    for (option, value) in options {
        if let Some(value) = value {
            command.arg(option).arg(value.to_string());
        }
    }
    let log = path.join("logs/up.log");
    let ready: Ready = detached::start(command, "the supervisor", ANSWER_WITHIN, &log).await?;
    let took = Duration::from_millis(ready.milliseconds);
    let but = ready.unready.map(|why| format!("\nBut {why}\n")).unwrap_or_default();
    output::print(&(ready_text(place, path, &ready.shape, took, true) + "\n" + &but))?;
    Ok(())
}

async fn background(args: &Args, path: &Path) -> Outcome {
    detached::leave();
    let env = Env::real();
    let begin = env.now();
    let mut stop = Stop::on_any()?;
    let started = async {
        let (dir, lock) = take(args, path, &env).await?;
        detached::log_to(&dir.log("up"), Duration::ZERO)?;
        tracing::info!(dir = %path.display(), pid = std::process::id(), "supervisor started");
        let report = |event: Event| tracing::info!("{event}");
        let cluster = start(dir, lock, &env, report).await?;
        let unready = usable::unready(cluster.dir(), &env).await;
        Outcome::Ok((cluster, unready))
    };
    let started = tokio::select! {
        started = started => started,
        () = stop.requested() => return Ok(()),
    };
    let (mut cluster, _) = detached::answer(started, |(cluster, unready)| Ready {
        milliseconds: u64::try_from(env.now().since(begin).as_millis()).unwrap_or(u64::MAX),
        shape: *cluster.dir().shape(),
        unready: unready.clone(),
    })?;
    cluster.supervise(&mut stop).await?;
    tracing::info!("supervisor stopped");
    Ok(())
}

async fn take(args: &Args, path: &Path, env: &Env) -> Outcome<(ClusterDir, kiln_launch::Lock)> {
    ClusterDir::take(path, &args.wishes(), env).await.map_err(|error| {
        if error.code() == Code::Invalid && error.message().starts_with("--") {
            Failure::usage(error)
        } else {
            error.into()
        }
    })
}

async fn start(
    dir: ClusterDir,
    lock: kiln_launch::Lock,
    env: &Env,
    report: impl FnMut(Event) + Send + 'static,
) -> Result<Cluster> {
    let program = std::env::current_exe().context("this program")?;
    Cluster::start(dir, lock, &program, env.clone(), report).await
}

/// At the first start of each server its readiness is no news; afterwards it is.
fn quiet_while_starting(mut report: impl FnMut(Event)) -> impl FnMut(Event) {
    let mut known = std::collections::BTreeSet::new();
    move |event| match &event {
        Event::Ready { name, .. } if known.insert(name.clone()) => {}
        _ => report(event),
    }
}

fn ready_text(place: &Place, dir: &Path, shape: &Shape, took: Duration, detached: bool) -> String {
    let kiln = format!("{}{}", invoked_as(), place.as_options(dir));
    let servers = output::count(shape.storage, "storage server");
    let replicas = output::count(shape.replicas, "replica");
    let stop = if detached {
        format!("  {kiln} down")
    } else {
        "  Ctrl-C here stops it; what it holds stays.".into()
    };
    format!(
        "kiln is ready after {:.1} s: {servers}, {replicas} of everything, in {}\n\n\
         What to type next:\n  {kiln} cp -r ~/dataset kiln:/\n  {kiln} ls -l kiln:/\n  \
         {kiln} status\n{stop}",
        took.as_secs_f64(),
        quoted(dir),
    )
}
