//! Many runs, one after the other or several at a time.

use crate::options::Options;
use crate::run::{Report, run};
use kiln_env::Env;
use kiln_types::Result;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// Which seeds are run, and for how long.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// The first seed.
    pub first: u64,
    /// How many; fewer when the time is up.
    pub seeds: u64,
    /// How long runs are begun.
    pub time: Option<Duration>,
    /// Runs at a time.
    pub jobs: usize,
    /// Defects that are planted in all of them.
    pub plants: Vec<String>,
    /// Whether the first violation ends it.
    pub stops: bool,
}

/// What all runs were together.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Runs.
    pub seeds: u64,
    /// Operations that clients began.
    pub operations: usize,
    /// Of those, the ones that were successful.
    pub successes: usize,
    /// Faults that struck.
    pub faults: usize,
    /// Runs in which something was wrong.
    pub violations: usize,
    /// Chunks whose history is too tangled to be judged.
    pub undecided: usize,
    /// Virtual time that passed.
    pub time: Duration,
    /// Real time that passed.
    pub real: Duration,
    /// How often rare branches were taken.
    pub marks: BTreeMap<&'static str, u64>,
}

impl Summary {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.operations += report.operations;
        self.successes += report.successes;
        self.faults += report.faults;
        self.violations += usize::from(!report.violations.is_empty());
        self.undecided += report.undecided;
        self.time += report.time;
        for (mark, count) in &report.marks {
            *self.marks.entry(mark).or_default() += count;
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seeds, operations, successes, faults, violations, undecided, .. } = self;
        write!(f, "{seeds} seeds, {operations} operations ({successes} successful), ")?;
        write!(f, "{faults} faults, {violations} violations, {undecided} chunks undecided; ")?;
        let (time, real) = (self.time.as_secs_f64(), self.real.as_secs_f64());
        write!(f, "{time:.0} s of virtual time in {real:.1} s")
    }
}

/// Runs them; `told` gets each report as it comes.
///
/// # Errors
/// `Local` when the system refuses a thread.
pub fn sweep(sweep: &Sweep, mut told: impl FnMut(&Report)) -> Result<Summary> {
    let env = Env::real();
    let start = env.now();
    let next = Arc::new(AtomicU64::new(sweep.first));
    let (sender, reports) = mpsc::channel();
    for _ in 0..sweep.jobs.max(1) {
        let (env2, next, sender, sweep) =
            (env.clone(), Arc::clone(&next), sender.clone(), sweep.clone());
        env.spawn_thread("simulation", move || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                let late = sweep.time.is_some_and(|time| env2.now().since(start) >= time);
                if late || seed - sweep.first >= sweep.seeds {
                    return;
                }
                let options = Options { plants: sweep.plants.clone(), ..Options::of(seed) };
                // Nobody listens any more after the first violation.
                if sender.send(run(options, false)).is_err() {
                    return;
                }
            }
        })?;
    }
    drop(sender);
    let mut summary = Summary::default();
    for report in reports {
        summary.add(&report);
        told(&report);
        if sweep.stops && summary.violations > 0 {
            break;
        }
    }
    summary.real = env.now().since(start);
    Ok(summary)
}
