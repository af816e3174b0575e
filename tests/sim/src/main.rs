//! `kiln-sim`: runs seeds, and says what went wrong.

use clap::Parser;
use kiln_sim::{Options, run};
use std::process::ExitCode;

/// Runs simulated clusters.
#[derive(Parser)]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Print.
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    for seed in arguments.first_seed..arguments.first_seed + arguments.seeds {
        let start = std::time::Instant::now();
        let report = run(Options::of(seed), arguments.trace);
        println!("{}", report.options);
        println!(
            "   ops {} ok {} faults {} time {:?} trace {} undecided {} real {:?}",
            report.operations,
            report.successes,
            report.faults,
            report.time,
            report.trace,
            report.undecided,
            start.elapsed()
        );
        for violation in &report.violations {
            println!("   VIOLATION {}", violation.chars().take(3000).collect::<String>());
        }
    }
    ExitCode::SUCCESS
}
