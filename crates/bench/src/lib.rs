//! Workloads and limits of `kiln bench`.
//!
//! Each workload runs through the client library on the cluster, and beside it, in the same run, its limit:
//! the same I/O without a file system in between. What counts is the ratio; the figures stand beside it.
#![forbid(unsafe_code)]

mod cluster;
mod limits;
mod report;

pub use report::{Report, Row, Unit};

use kiln_client::Client;
use kiln_env::Env;
use kiln_types::{Caller, Error, Result};
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of one sequential request.
pub const SEQUENTIAL_BYTES: usize = 1 << 20;
/// Bytes of one random request.
pub const RANDOM_BYTES: usize = 4 << 10;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of the test file: a multiple of 1 MiB.
    pub size: u64,
    /// Sequential requests under way.
    pub depth: usize,
    /// Random requests under way.
    pub random_depth: usize,
    /// How many random requests.
    pub random_count: u64,
    /// A local directory on the disk that is compared with.
    pub raw_dir: PathBuf,
    /// How often the limit of replicated writes writes each byte.
    pub replicas: usize,
}

/// Runs every workload and its limit, in turn.
///
/// # Errors
/// The first failure; test files are removed as far as that is possible then.
pub async fn run(
    env: &Env,
    client: &Arc<Client>,
    caller: &Caller,
    options: &Options,
    mut progress: impl FnMut(&str),
) -> Result<Report> {
    if options.size == 0 || !options.size.is_multiple_of(SEQUENTIAL_BYTES as u64) {
        return Err(Error::invalid("the size is a multiple of 1 MiB, at least 1 MiB"));
    }
    let mut report = Report::new(options);
    progress("limit of replicated writes");
    let limit = limits::pipeline(env, options).await?;
    progress("sequential write");
    let (file, write) = cluster::write(env, client, caller, options).await?;
    report.add("write 1 MiB", Unit::BytesPerSecond, write, limit, "pipeline");
    let reads = read_both(env, &file, options, &mut report, &mut progress).await;
    let removed = file.remove(client, caller).await;
    reads.and(removed).map(|()| report)
}

async fn read_both(
    env: &Env,
    file: &cluster::TestFile,
    options: &Options,
    report: &mut Report,
    progress: &mut impl FnMut(&str),
) -> Result<()> {
    progress("sequential write and read of the raw directory");
    let raw = limits::Raw::create(env, options).await?;
    report.note("raw write 1 MiB", Unit::BytesPerSecond, raw.write_rate);
    let raw_read = raw.read(env, options).await?;
    progress("sequential read");
    let read = cluster::read(env, file, options).await?;
    report.add("read 1 MiB", Unit::BytesPerSecond, read, raw_read, "raw directory");
    progress("random read of the raw directory");
    let raw_random = raw.read_random(env, options).await?;
    progress("random read");
    let random = cluster::read_random(env, file, options).await?;
    report.add("read 4 KiB, random", Unit::PerSecond, random, raw_random, "raw directory");
    Ok(())
}

/// A rate for each second.
fn rate(amount: u64, took: std::time::Duration) -> f64 {
    amount as f64 / took.as_secs_f64().max(1e-9)
}
