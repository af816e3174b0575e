//! `kiln top`: what the servers, and the mounts of this machine, do now.

mod rates;
mod scrape;
mod screen;
mod show;

use crate::failure::{Failure, Outcome};
use crate::output;
use crate::place::{Meant, Place};
use crate::remote::{self, Remote};
use crate::serve::METRICS_TAG;
use kiln_client_fuse::mount;
use kiln_launch::{ClusterDir, Stop};
use kiln_telemetry::Scrape;
use kiln_types::{Context, Error, Monotonic, Node, Result, RoutingInfo};
use rates::Role;
use scrape::{Source, scrape};
use screen::Screen;
use show::{Chains, Row, Sample};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Show what the servers do, and the mounts of this machine: rates, latencies, queues, space
///
/// Requests are counted where they arrive, so that a write to three replicas counts three times.
/// Latencies (~P50: half of the requests were faster, ~P99: 99 of 100) are about right: they come
/// from buckets that are powers of two. NOW is what is worked on, QUEUE what waits for disks,
/// commits and other replicas, DIRTY what was written to a mount and is not stored yet. Ends with q
/// or Ctrl-C.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often it is shown anew
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "1s",
        value_parser = kiln_config::parse_duration
    )]
    interval: Duration,

    /// Show one interval and end; so it is when there is no terminal
    #[arg(long)]
    once: bool,

    /// Print JSON, a line for each interval
    #[arg(long)]
    json: bool,
}

const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// How long a server may take to answer: the interval, within these.
const ANSWER_WITHIN: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(2);

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    if args.interval < INTERVAL_MIN {
        let text = "--interval is shorter than 100ms";
        return Err(Failure::usage(Error::invalid(text)));
    }
    let cluster = Cluster::of(place)?;
    remote::run(place, async |remote| {
        let terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
        let within = args.interval.clamp(*ANSWER_WITHIN.start(), *ANSWER_WITHIN.end());
        let mut top = Top { remote, cluster: cluster.clone(), within, last: Samples::new() };
        // Rates need two scrapes.
        top.sample().await;
        match (args.json, args.once || !terminal) {
            (true, once) => loop {
                remote.env.sleep(args.interval).await;
                output::print_json_line(&top.sample().await)?;
                if once {
                    return Ok(());
                }
            },
            (false, true) => {
                remote.env.sleep(args.interval).await;
                Ok(output::print(&top.sample().await.text())?)
            }
            (false, false) => Ok(watch(&mut top, args.interval).await?),
        }
    })
}

/// Shows one sample after the other until the user has seen enough.
async fn watch(top: &mut Top<'_>, interval: Duration) -> Result<()> {
    let env = top.remote.env.clone();
    let mut stop = Stop::on_any()?;
    let mut screen = Screen::open(&env)?;
    screen.show("the first numbers come in an interval");
    let mut next = env.deadline_after(interval);
    loop {
        tokio::select! {
            () = screen.quit() => return Ok(()),
            () = stop.requested() => return Ok(()),
            () = env.sleep(next.left(env.now())) => {}
        }
        next = env.deadline_after(interval);
        let sample = tokio::select! {
            () = screen.quit() => return Ok(()),
            sample = top.sample() => sample,
        };
        screen.show(&sample.text());
    }
}

/// What each process said last, and when.
type Samples = BTreeMap<String, (Scrape, Monotonic)>;

struct Top<'a> {
    remote: &'a Arc<Remote>,
    cluster: Cluster,
    /// How long a server may take to answer.
    within: Duration,
    last: Samples,
}

/// A process that is to be shown.
struct Wanted {
    name: String,
    role: Role,
    /// Whether the manager hears it.
    alive: bool,
    source: Option<Source>,
}

impl Top<'_> {
    /// What happened since the last one. Servers that do not answer do not hold up the others.
    async fn sample(&mut self) -> Sample {
        let routing = self.remote.client.routing();
        let env = &self.remote.env;
        let scrapes: Vec<_> = wanted(&routing, &self.cluster)
            .into_iter()
            .map(|wanted| {
                let (source, timer, within) = (wanted.source.clone(), env.clone(), self.within);
                let scraped = async move {
                    match source {
                        Some(source) => scrape(&source, &timer, within).await.map(Some),
                        None => Ok(None),
                    }
                };
                (wanted, env.spawn("scrape", scraped))
            })
            .collect();
        let (mut servers, mut mounts) = (Vec::new(), Vec::new());
        let (mut seen, mut interval_s) = (Samples::new(), 0.0f64);
        for (wanted, scraped) in scrapes {
            let scraped = scraped.join().await.flatten();
            let now = env.now();
            let before = self.last.get(&wanted.name);
            let seconds = before.map_or(0.0, |(_, at)| now.since(*at).as_secs_f64());
            interval_s = interval_s.max(seconds);
            let row = row(&wanted, before.map(|(scrape, _)| scrape), &scraped, seconds);
            if let Ok(Some(scrape)) = scraped {
                seen.insert(wanted.name, (scrape, now));
            }
            match wanted.role {
                Role::Server => servers.push(row),
                Role::Mount => mounts.push(row),
            }
        }
        self.last = seen;
        Sample { interval_s, chains: Chains::of(&routing), servers, mounts }
    }
}

/// How mounts name their cluster.
#[derive(Clone)]
struct Cluster {
    dir: Option<PathBuf>,
    manager: String,
}

impl Cluster {
    fn of(place: &Place) -> Outcome<Self> {
        Ok(match place.meant()? {
            Meant::Elsewhere(manager, _) => Self { dir: None, manager },
            Meant::Dir(dir) => {
                let manager = ClusterDir::open(&dir)?.mgmtd_address()?;
                Self { dir: Some(std::path::absolute(dir).context("--dir")?), manager }
            }
        })
    }

    fn has(&self, record: &mount::Record) -> bool {
        match &record.cluster_dir {
            Some(dir) => self.dir.as_ref() == Some(dir),
            None => record.source.starts_with(&format!("{}:", self.manager)),
        }
    }
}

fn wanted(routing: &RoutingInfo, cluster: &Cluster) -> Vec<Wanted> {
    let server = |node: &Node| Wanted {
        name: format!("{} {}", node.kind, node.id),
        role: Role::Server,
        alive: node.alive,
        source: node.tags.get(METRICS_TAG).map(|metrics| Source {
            node: node.id.to_string(),
            metrics: metrics.clone(),
            server: Some(node.address.clone()),
        }),
    };
    let records = mount::records().unwrap_or_default().into_iter().filter_map(|(_, record)| record);
    let mounts = records.filter(|record| cluster.has(record)).map(|record| {
        let node = record.path.display().to_string();
        let source = record.metrics.map(|metrics| Source {
            node: node.clone(),
            metrics: metrics.to_string(),
            server: None,
        });
        Wanted { name: node, role: Role::Mount, alive: true, source }
    });
    routing.nodes.values().map(server).chain(mounts).collect()
}

fn row(
    wanted: &Wanted,
    before: Option<&Scrape>,
    scraped: &Result<Option<Scrape>>,
    seconds: f64,
) -> Row {
    let now = scraped.as_ref().ok().and_then(Option::as_ref);
    let state = match (wanted.alive, scraped) {
        (true, Ok(Some(_))) => "up",
        (true, Ok(None)) => "no metrics",
        (true, Err(_)) => "no answer",
        (false, Ok(Some(_))) => "not heard",
        (false, _) => "down",
    };
    let activity = before.zip(now);
    Row {
        name: wanted.name.clone(),
        state,
        trouble: scraped.as_ref().err().map(ToString::to_string),
        standing: now.map(|now| rates::standing(wanted.role, now)),
        activity: activity
            .and_then(|(before, now)| rates::activity(wanted.role, before, now, seconds)),
    }
}
