//! `kiln-faults`: runs a real cluster under random faults, and says what went wrong.

use clap::Parser;
use kiln_env::Env;
use kiln_faults::{KINDS, Kind, Options, Outcome, enter, run};
use kiln_types::{Code, Context, Error, Result};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Starts a cluster of the kiln binary, each process in a network namespace of its own, lets clients write
/// and read what they can recognise, and brings about faults meanwhile, one or two at a time: servers are
/// killed, stopped and cut off, packets are lost and late, disks fill up, hang, fail and rot.
///
/// Of each run is checked: that no acknowledged write is lost, no read is older than what was
/// acknowledged or read before, no block is torn or another's; that all chains are whole again in time;
/// that 'kiln admin check --read' finds nothing at the end. How long operations were stuck while one
/// fault was active is printed. The last line says what was run; the exit status is 1 when something was
/// wrong, and 77 when this machine cannot do it (it needs root, network namespaces and nftables).
#[derive(Parser)]
#[command(name = "kiln-faults", version)]
struct Arguments {
    /// For how long faults happen.
    #[arg(long, value_name = "N", default_value_t = 900)]
    seconds: u64,
    /// Decides which faults happen; a new one is drawn and printed when it is left out. What servers and
    /// clients make of them depends on the machine.
    #[arg(long)]
    seed: Option<u64>,
    /// Only these kinds of faults; may be given several times, or with commas between them.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kinds: Vec<String>,
    /// Keep the cluster's directory and logs, also when nothing was wrong.
    #[arg(long)]
    keep: bool,
    /// The kiln binary; the one beside this program, if it is left out.
    #[arg(long, value_name = "FILE")]
    kiln: Option<PathBuf>,
}

/// What skipped tests end with.
const SKIPPED: u8 = 77;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = enter() {
        if error.code() == Code::Unsupported {
            println!("SKIPPED: {error}");
            return ExitCode::from(SKIPPED);
        }
        return failed(&error);
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    match faults(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&error),
    }
}

fn failed(error: &Error) -> ExitCode {
    eprintln!("kiln-faults: {error}");
    ExitCode::from(2)
}

fn faults(arguments: &Arguments) -> Result<bool> {
    let kinds = match &arguments.kinds[..] {
        [] => KINDS.iter().map(|(_, kind, _)| *kind).collect(),
        names => names.iter().map(|name| Kind::parse(name)).collect::<Result<_>>()?,
    };
    let program = match &arguments.kiln {
        Some(program) => program.clone(),
        None => std::env::current_exe().context("this program")?.with_file_name("kiln"),
    };
    if !program.is_file() {
        return Err(Error::new(Code::NotFound, format!("{} is not there", program.display()))
            .with_hint("build it (cargo build), or name it with --kiln"));
    }
    let directory =
        tempfile::Builder::new().prefix("kiln-faults-").tempdir().context("temporary")?;
    let seed = arguments.seed.unwrap_or_else(|| Env::real().random_below(1 << 32));
    let dir = directory.path().join("cluster");
    let time = Duration::from_secs(arguments.seconds);
    println!("seed {seed}, cluster in {}", dir.display());
    let options = Options { time, seed, kinds, program, dir };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.context("event loop")?.block_on(run(&options));
    let fine = outcome.as_ref().is_ok_and(|outcome| outcome.violations.is_empty());
    if !fine || arguments.keep {
        println!("kept: {}", directory.keep().display());
    }
    let Outcome { violations, report, summary } = outcome?;
    print!("{report}");
    violations.iter().for_each(|violation| println!("VIOLATION: {violation}"));
    if !fine {
        println!(
            "the servers' logs are in cluster/logs there; the same faults again: --seed {seed}"
        );
    }
    println!("{summary}");
    Ok(fine)
}
