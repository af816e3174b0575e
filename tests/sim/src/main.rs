//! `kiln-sim`: runs seeds of the simulation, and says what went wrong.

use clap::Parser;
use kiln_sim::{MARKS, Options, PLANTS, Report, Summary, Sweep, run, sweep};
use kiln_types::Result;
use std::process::ExitCode;
use std::time::Duration;

/// Runs whole clusters in one process: the shipping servers, manager and client on simulated machines,
/// disks and network, which crash, stall, lose and tear what is not synced, as a seed decides.
///
/// Of each run is checked: that the operations on each chunk can have happened one after the other, each
/// between its call and its return; that after the last fault every chain serves again within two
/// minutes, with equal replicas and stores that are well by their own books; and that nothing panics. A
/// seed always runs in the same way. The last line says what was run; the exit status is 1 when something
/// was wrong.
#[derive(Parser)]
#[command(name = "kiln-sim", version)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, value_name = "N", default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    first_seed: u64,
    /// Begin no run after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Runs at a time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Run this seed alone.
    #[arg(long, conflicts_with_all = ["seeds", "first_seed", "seconds"])]
    seed: Option<u64>,
    /// Print the event log, and what the servers log, as it happens. With --seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Plant a defect; --plants lists them. May be given several times.
    #[arg(long, value_name = "NAME")]
    plant: Vec<String>,
    /// Run each defect that can be planted until it is found, from three first seeds on, and print how
    /// many seeds that took.
    #[arg(long)]
    plants: bool,
    /// Print a line for each run.
    #[arg(long, short)]
    verbose: bool,
}

/// About a tenth of the seeds that the tests run on an idle machine.
const SOON: u64 = 15;
/// The first seeds from which each planted defect is looked for.
const STARTS: [u64; 3] = [1, 100_001, 200_001];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(unknown) = arguments.plant.iter().find(|name| !PLANTS.contains(&name.as_str())) {
        eprintln!("kiln-sim: no defect is called '{unknown}'; there are: {}", PLANTS.join(", "));
        return ExitCode::from(2);
    }
    let fine = match (arguments.seed, arguments.plants) {
        (Some(seed), _) => Ok(one(seed, &arguments)),
        (None, true) => find_plants(&arguments),
        (None, false) => many(&arguments),
    };
    match fine {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kiln-sim: {error}");
            ExitCode::from(2)
        }
    }
}

fn one(seed: u64, arguments: &Arguments) -> bool {
    if arguments.trace {
        kiln_sim::print_logs();
    }
    let options = Options { plants: arguments.plant.clone(), ..Options::of(seed) };
    println!("{options}");
    let report = run(options, arguments.trace);
    show(&report);
    let Report { operations, successes, faults, time, trace, .. } = &report;
    println!(
        "1 seed, {operations} operations ({successes} successful), {faults} faults, {} violations; \
         {:.0} s of virtual time; trace {trace:016x}",
        report.violations.len(),
        time.as_secs_f64()
    );
    report.violations.is_empty()
}

fn show(report: &Report) {
    if report.violations.is_empty() {
        return;
    }
    println!("{}", report.options);
    report.log.iter().for_each(|line| println!("{line}"));
    for violation in &report.violations {
        println!("VIOLATION in seed {}: {violation}", report.options.seed);
    }
    println!("rerun it with: kiln-sim --seed {} --trace", report.options.seed);
}

fn sweep_of(arguments: &Arguments) -> Sweep {
    Sweep {
        first: arguments.first_seed,
        seeds: arguments.seeds,
        time: arguments.seconds.map(Duration::from_secs),
        jobs: arguments.jobs,
        plants: arguments.plant.clone(),
        stops: false,
    }
}

fn many(arguments: &Arguments) -> Result<bool> {
    let summary = sweep(&sweep_of(arguments), |report| {
        if arguments.verbose {
            let Report { operations, successes, faults, undecided, .. } = report;
            println!("{}", report.options);
            println!("  {successes} of {operations} operations, {faults} faults, {undecided}");
        }
        show(report);
    })?;
    show_marks(&summary);
    println!("{summary}");
    Ok(summary.violations == 0)
}

fn show_marks(summary: &Summary) {
    for mark in MARKS {
        println!("{:>9} {mark}", summary.marks.get(mark).copied().unwrap_or(0));
    }
}

fn find_plants(arguments: &Arguments) -> Result<bool> {
    let mut late = Vec::new();
    for plant in PLANTS {
        let mut taken = Vec::new();
        for first in STARTS {
            let plants = vec![(*plant).to_owned()];
            let sweeping = Sweep { first, plants, stops: true, ..sweep_of(arguments) };
            let summary = sweep(&sweeping, |_| ())?;
            taken.push((summary.violations == 0, summary.seeds));
        }
        taken.sort_unstable();
        let shown = |(missed, seeds): &(bool, u64)| match missed {
            true => format!("more than {seeds}"),
            false => seeds.to_string(),
        };
        let each: Vec<_> = taken.iter().map(shown).collect();
        println!("{plant}: found after {} seeds ({})", shown(&taken[1]), each.join(", "));
        if taken[1].0 || taken[1].1 > SOON {
            late.push(*plant);
        }
    }
    let soon = PLANTS.len() - late.len();
    println!("{soon} of {} are found after {SOON} seeds at most; not: {late:?}", PLANTS.len());
    Ok(late.is_empty())
}
