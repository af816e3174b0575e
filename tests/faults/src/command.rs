//! What the programs of this crate have in common: where and with what they run, and how they end.

use crate::namespaces::enter;
use kiln_env::Env;
use kiln_types::{Code, Context, Error, Result};
use std::path::PathBuf;
use std::process::ExitCode;

/// What must not have happened and did, and what was measured.
pub struct Outcome {
    /// What must not have happened, and did.
    pub violations: Vec<String>,
    /// What was measured.
    pub report: String,
    /// What was run, in a line.
    pub summary: String,
}

/// What all programs can be told.
#[derive(clap::Args)]
pub struct Common {
    /// Decides what happens; a new one is drawn and printed when it is left out. What servers and clients
    /// make of it depends on the machine.
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the cluster's directory and logs, also when nothing was wrong.
    #[arg(long)]
    keep: bool,
    /// The kiln binary; the one beside this program, if it is left out.
    #[arg(long, value_name = "FILE")]
    kiln: Option<PathBuf>,
}

/// Where and with what something is run.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Decides what happens.
    pub seed: u64,
    /// The `kiln` binary.
    pub program: PathBuf,
    /// The directory of the cluster; it is not there yet.
    pub dir: PathBuf,
}

/// What skipped tests end with.
const SKIPPED: u8 = 77;

/// Runs `work` in namespaces of its own, and prints what came of it.
pub fn command<F: Future<Output = Result<Outcome>>>(
    common: &Common,
    work: impl FnOnce(Setting) -> Result<F>,
) -> ExitCode {
    let fine = enter().and_then(|()| {
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
        run(common, work)
    });
    match fine {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if error.code() == Code::Unsupported => {
            println!("SKIPPED: {error}");
            ExitCode::from(SKIPPED)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run<F: Future<Output = Result<Outcome>>>(
    common: &Common,
    work: impl FnOnce(Setting) -> Result<F>,
) -> Result<bool> {
    let program = match &common.kiln {
        Some(program) => program.clone(),
        None => std::env::current_exe().context("this program")?.with_file_name("kiln"),
    };
    if !program.is_file() {
        return Err(Error::new(Code::NotFound, format!("{} is not there", program.display()))
            .with_hint("build it (cargo build), or name it with --kiln"));
    }
    let directory =
        tempfile::Builder::new().prefix("kiln-faults-").tempdir().context("temporary")?;
    let seed = common.seed.unwrap_or_else(|| Env::real().random_below(1 << 32));
    let dir = directory.path().join("cluster");
    println!("seed {seed}, cluster in {}", dir.display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("event loop")?;
    let outcome = runtime.block_on(work(Setting { seed, program, dir })?);
    let fine = outcome.as_ref().is_ok_and(|outcome| outcome.violations.is_empty());
    if !fine || common.keep {
        println!("kept: {}", directory.keep().display());
    }
    let Outcome { violations, report, summary } = outcome?;
    print!("{report}");
    violations.iter().for_each(|violation| println!("VIOLATION: {violation}"));
    if !fine {
        println!("the servers' logs are in cluster/logs there; the same again: --seed {seed}");
    }
    println!("{summary}");
    Ok(fine)
}
