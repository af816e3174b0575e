//! `kiln bench`.

use crate::failure::{Failure, Outcome};
use crate::output;
use crate::place::{Meant, Place};
use crate::remote;
use kiln_bench::Options;
use kiln_types::{Error, RoutingInfo};
use std::io::IsTerminal;
use std::path::PathBuf;

/// Measure the cluster beside what its disk does without it
///
/// Runs sequential writes and reads and random reads of 4 KiB through the client library, and in the same
/// run the same work without a cluster; what counts is the ratio. Test files are removed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Bytes of the test file: a multiple of 1MiB
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = kiln_config::parse_size)]
    size: u64,

    /// Sequential requests of 1 MiB that are under way
    #[arg(long, value_name = "N", default_value_t = 8)]
    depth: usize,

    /// Random requests that are under way
    #[arg(long, value_name = "N", default_value_t = 32)]
    random_depth: usize,

    /// How many random requests
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    random_count: u64,

    /// A directory on the disk to compare with [default: the cluster's, where it is on this machine]
    #[arg(long, value_name = "DIR")]
    raw_dir: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    let raw_dir = match (args.raw_dir.clone(), place.meant()?) {
        (Some(dir), _) | (None, Meant::Dir(dir)) => dir,
        (None, Meant::Elsewhere(..)) => {
            return Err(Failure::usage(
                Error::invalid("there is nothing to compare a cluster elsewhere with").with_hint(
                    "name a directory on a local disk like the cluster's: --raw-dir DIR",
                ),
            ));
        }
    };
    remote::run(place, async |remote| {
        let options = Options {
            size: args.size,
            depth: args.depth,
            random_depth: args.random_depth,
            random_count: args.random_count,
            raw_dir,
            replicas: replicas(&remote.client.routing()),
        };
        let progress = |step: &str| {
            if std::io::stderr().is_terminal() {
                eprintln!("{step} ..");
            }
        };
        let (env, client) = (&remote.env, &remote.client);
        let report = kiln_bench::run(env, client, &remote.caller, &options, progress).await?;
        match args.json {
            true => output::print_json(&report)?,
            false => output::print(&report.to_string())?,
        }
        Ok(())
    })
}

/// How many copies are written now.
fn replicas(routing: &RoutingInfo) -> usize {
    routing.chains.values().map(|chain| chain.serving().count()).max().unwrap_or(1).max(1)
}
