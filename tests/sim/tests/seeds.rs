//! A few seconds of simulation: seeds that are always the same, and some that nobody ran before.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use kiln_env::Env;
use kiln_sim::{Options, Report, Summary, Sweep, run, sweep};
use std::time::Duration;

fn run_seeds(first: u64, seeds: u64, time: Duration) -> Summary {
    let (plants, jobs, stops) = (Vec::new(), 1, false);
    let sweeping = Sweep { first, seeds, time: Some(time), jobs, plants, stops };
    let told = |report: &Report| {
        assert!(
            report.violations.is_empty(),
            "{}\n{}\n{:#?}",
            report.options,
            report.log.join("\n"),
            report.violations
        );
    };
    let summary = sweep(&sweeping, told).unwrap();
    println!("seeds from {first}: {summary}");
    summary
}

#[test]
fn known_seeds_run_without_a_violation() {
    let summary = run_seeds(1, 100, Duration::from_secs(45));
    assert!(summary.operations > 1000 && summary.faults > 5);
}

#[test]
fn new_seeds_run_without_a_violation() {
    let first = Env::real().random_below(1 << 40);
    run_seeds(first, 1000, Duration::from_secs(25));
}

#[test]
fn a_seed_runs_twice_in_the_same_way() {
    for seed in [3, 7] {
        let one = run(Options::of(seed), false);
        let two = run(Options::of(seed), false);
        assert_eq!((one.trace, one.operations, one.time), (two.trace, two.operations, two.time));
        assert_eq!(one.log, two.log);
    }
}

#[test]
fn a_missing_sync_is_found() {
    let (plants, time) = (vec!["acknowledge without a sync".to_owned()], None);
    let sweeping = Sweep { first: 1, seeds: 15, time, jobs: 1, plants, stops: true };
    assert!(sweep(&sweeping, |_| ()).unwrap().violations > 0);
}
