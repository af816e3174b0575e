//! `kiln cp`: between this machine and the cluster, and inside the cluster.
//!
//! Both sides are a [`Tree`]. A file is written under a temporary name beside its final one, in the cluster
//! without a name, and gets its name when it is whole and durable: whoever looks sees the whole file or none.

mod engine;
mod gather;
mod local;
mod plan;
mod progress;
mod remote;
#[cfg(test)]
mod tests;
mod tree;

use crate::failure::{Failure, Outcome};
use crate::output;
use crate::path::AnyPath;
use crate::place::Place;
use crate::remote::{self as cluster, Remote};
use engine::{Copier, Options};
use kiln_launch::Stop;
use kiln_types::{Code, Error};
use local::LocalTree;
use progress::Progress;
use remote::RemoteTree;
use serde::Serialize;
use std::ffi::OsString;
use std::sync::Arc;
use tree::Tree;

/// Copy files into the cluster, out of it, or inside it
///
/// Keeps modes, times and symlinks; owners too when root copies. A file appears under its name when it is
/// whole and, in the cluster, durable. Hard links become files of their own.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to copy: kiln:/path, or a path on this machine
    #[arg(value_name = "SOURCE", required = true)]
    sources: Vec<OsString>,

    /// The new name, or a directory to copy into
    #[arg(value_name = "DESTINATION")]
    destination: OsString,

    /// Copy directories with everything in them
    #[arg(short, long)]
    recursive: bool,

    /// Say each file when it is done
    #[arg(short, long)]
    verbose: bool,

    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
}

/// What was copied, for `--json`.
#[derive(Serialize, Debug, Default, Clone)]
pub(crate) struct Summary {
    files: u64,
    directories: u64,
    symlinks: u64,
    bytes: u64,
    seconds: f64,
    failed: Vec<Failed>,
}

#[derive(Serialize, Debug, Clone)]
pub(crate) struct Failed {
    path: String,
    error: String,
}

pub(crate) fn run(place: &Place, args: &Args) -> Outcome {
    let sources = args.sources.iter().map(|path| AnyPath::parse(path));
    let sources = sources.collect::<Outcome<Vec<_>>>()?;
    let destination = AnyPath::parse(&args.destination)?;
    let is_local = |path: &AnyPath| matches!(path, AnyPath::Local(_));
    if is_local(&destination) && sources.iter().all(is_local) {
        return Err(cluster::usage(
            "neither side of this copy is in the cluster",
            "paths in the cluster begin with kiln:/, as in kiln:/dataset; cp copies on this machine",
        ));
    }
    if sources.iter().any(is_local) && !sources.iter().all(is_local) {
        return Err(cluster::usage(
            "some sources are in the cluster and some are not",
            "copy them one side at a time",
        ));
    }
    cluster::run(place, async |remote| {
        let mut stop = Stop::on_any()?;
        let copier = copier(remote, is_local(&sources[0]), is_local(&destination), args);
        let outcome = tokio::select! {
            outcome = copier.copy_all(&sources, &destination, args.recursive) => outcome,
            () = stop.requested() => Err(Error::new(Code::Cancelled, "interrupted")
                .with_hint("what was reported as done stays; unfinished files are removed")),
        };
        copier.clean_up().await;
        let summary = copier.finish();
        if args.json {
            output::print_json(&summary)?;
        }
        outcome?;
        match summary.failed.len() {
            0 => Ok(()),
            failed => Err(Failure::from(Error::new(
                Code::Local,
                format!("{failed} could not be copied, {} were", summary.files),
            ))),
        }
    })
}

fn copier(remote: &Arc<Remote>, from_local: bool, to_local: bool, args: &Args) -> Copier {
    let tree = |is_local| -> Arc<dyn Tree> {
        match is_local {
            true => Arc::new(LocalTree::new(remote.env.clone())),
            false => Arc::new(RemoteTree::new(Arc::clone(remote))),
        }
    };
    let options = Options { verbose: args.verbose, quiet: args.json };
    let progress = Progress::start(&remote.env);
    Copier::new(remote.env.clone(), tree(from_local), tree(to_local), progress, options)
}
