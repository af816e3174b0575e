//! `kiln admin check`: is everything as it should be? Servers, targets and chains; stored chunks
//! against the metadata, for losses and leaks; replicas against each other, and against their checksums.

mod again;
mod finding;
mod known;
mod scrub;
mod walk;

use crate::admin::problems;
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::place::Place as ClusterPlace;
use crate::remote::{self, Remote};
use again::{Judge, Removed};
use finding::{Finding, Findings, Kind, Place};
use kiln_types::{Code, Context, Error, InodeId, Result};
use known::Batch;
use scrub::Verified;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use walk::Suspects;

/// How long what is under way gets to settle before it is looked at again.
const SETTLE: Duration = Duration::from_secs(2);

/// What to do when the check itself fails.
const UNFINISHED: &str = "nothing is known yet: check again in a few seconds, when the server answers or its \
                          chains go on without it";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also read every replica of every chunk and verify its checksums: reads the whole cluster's data
    #[arg(long)]
    read: bool,

    /// Remove chunks that belong to no file
    #[arg(long)]
    remove_leaks: bool,
}

/// What was looked at.
#[derive(Default, Serialize)]
struct Seen {
    servers: u64,
    targets: u64,
    chains: u64,
    files: u64,
    chunks: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<Verified>,
    removed_leaks: Removed,
}

/// The report as JSON has it.
#[derive(Serialize)]
struct Report<'a> {
    seen: &'a Seen,
    findings: Vec<&'a Finding>,
    /// Findings that are not listed.
    more: u64,
    what_to_do: Vec<&'static str>,
}

/// Exits with 0 when nothing is wrong, 1 when something is, 2 when that could not be found out.
pub(crate) fn run(place: &ClusterPlace, args: &Args, json: bool) -> Outcome {
    let mut count = 0;
    let checked = remote::run(place, async |remote| {
        let (mut seen, mut findings) = (Seen::default(), Findings::default());
        let done = check(remote, args, &mut seen, &mut findings).await.context("check");
        done.map_err(with_hint)?;
        count = findings.count();
        Ok(report(&seen, &findings, json)?)
    });
    checked.map_err(Failure::unfinished)?;
    match count {
        0 => Ok(()),
        count => {
            Err(Error::new(Code::NotServing, format!("{} found", many(count, "problem"))).into())
        }
    }
}

fn with_hint(error: Error) -> Error {
    match error.hint() {
        Some(_) => error,
        None => error.with_hint(UNFINISHED),
    }
}

async fn check(
    remote: &Arc<Remote>,
    args: &Args,
    seen: &mut Seen,
    findings: &mut Findings,
) -> Result<()> {
    let routing = remote.client.routing();
    seen.servers = routing.nodes.len() as u64;
    seen.targets = routing.targets.len() as u64;
    seen.chains = routing.chains.len() as u64;
    for problem in problems(&routing) {
        let place = Place::default();
        findings.add(Finding { kind: Kind::Cluster, what: problem.what, why: problem.why, place });
    }
    let mut after = Some(InodeId(0));
    while let Some(start) = after {
        let routing = remote.client.routing();
        let (batch, last) = Batch::read(remote, &routing, start).await?;
        after = last;
        let mut suspects = Suspects::default();
        for chain in routing.chains.values() {
            seen.chunks += walk::walk(remote, chain, &batch, &mut suspects).await?;
        }
        seen.files += batch.len();
        look_again(remote, args, batch, suspects, findings, &mut seen.removed_leaks).await?;
    }
    if args.read {
        seen.verified = Some(scrub::scrub(remote, findings).await?);
    }
    Ok(())
}

async fn look_again(
    remote: &Remote,
    args: &Args,
    batch: Batch,
    suspects: Suspects,
    findings: &mut Findings,
    removed: &mut Removed,
) -> Result<()> {
    for (inode, error) in batch.unplaced {
        let place = Place { inode: Some(inode), ..Place::default() };
        let (what, why) = (place.file(), error.message().to_string());
        findings.add(Finding { kind: Kind::Loss, what, why, place });
    }
    if suspects.list.is_empty() {
        return Ok(());
    }
    remote.env.sleep(SETTLE).await;
    let remove_leaks = args.remove_leaks;
    Judge { remote, remove_leaks, findings, removed }.judge(suspects.list).await?;
    if suspects.is_full {
        let (what, place) = ("more".to_string(), Place::default());
        let why = "there is more that may be wrong: check again after the rest is dealt with";
        findings.add(Finding { kind: Kind::Cluster, what, why: why.into(), place });
    }
    Ok(())
}

fn report(seen: &Seen, findings: &Findings, json: bool) -> Result<()> {
    let what_to_do: Vec<_> = findings.kinds().map(|(kind, _)| kind.advice()).collect();
    if json {
        let more = findings.kinds().map(|(_, more)| more).sum();
        let findings = findings.kept().collect();
        return output::print_json(&Report { seen, findings, more, what_to_do });
    }
    let mut text = String::new();
    if findings.count() > 0 {
        let rows = findings.kept().map(|found| vec![found.what.clone(), found.why.clone()]);
        text += &output::table(&["WHAT", "PROBLEM"], &[], rows.collect());
        for (kind, more) in findings.kinds().filter(|(_, more)| *more > 0) {
            text += &format!("and {more} more of the kind '{}'\n", name(kind));
        }
        text += "\nWhat to do:\n";
        what_to_do.iter().for_each(|advice| text += &format!("- {advice}\n"));
        text += "\n";
    }
    if seen.removed_leaks.chunks > 0 {
        let Removed { chunks, bytes } = seen.removed_leaks;
        let bytes = output::bytes(bytes);
        text += &format!("removed {} that belonged to no file: {bytes}\n", many(chunks, "chunk"));
    }
    if let Some(Verified { replicas, bytes }) = seen.verified {
        let bytes = output::bytes(bytes);
        text += &format!("read {} of chunks: {bytes}\n", many(replicas, "copy"));
    }
    let looked_at = [
        many(seen.servers, "server"),
        many(seen.targets, "target"),
        many(seen.chains, "chain"),
        many(seen.files, "file"),
        many(seen.chunks, "chunk"),
    ];
    let verdict = if findings.count() == 0 { "no problems" } else { "looked at" };
    text += &format!("{verdict}: {}\n", looked_at.join(", "));
    output::print(&text)
}

fn name(kind: Kind) -> &'static str {
    kind.advice().split(':').next().unwrap_or_default()
}

fn many(count: u64, what: &str) -> String {
    match (count, what.strip_suffix('y')) {
        (1, _) => format!("1 {what}"),
        (_, Some(stem)) => format!("{count} {stem}ies"),
        (_, None) => format!("{count} {what}s"),
    }
}
