//! One run: a seed from its first event to its verdict.

use crate::cluster::Cluster;
use crate::linear::{self, Verdict};
use crate::log::{Log, note};
use crate::options::Options;
use crate::{faults, settle};
use kiln_env::Executor;
use kiln_types::{Code, Error};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Once};
use std::time::Duration;

/// A run that takes more polls of tasks than this does not come to an end.
const STEPS_MAX: u64 = 50_000_000;
/// Faults end after this virtual time: they may leave no room for operations.
const TIME_MAX: Duration = Duration::from_secs(300);
/// What is under way then ends within this time.
const END_TIME_MAX: Duration = Duration::from_secs(80);
const LOOK: Duration = Duration::from_millis(100);

/// What a run was.
#[derive(Debug)]
pub struct Report {
    /// Its options.
    pub options: Options,
    /// Operations that clients began.
    pub operations: usize,
    /// Of those, the ones that were successful.
    pub successes: usize,
    /// Faults that struck.
    pub faults: usize,
    /// Virtual time that passed.
    pub time: Duration,
    /// A number that depends on everything that was decided.
    pub trace: u64,
    /// How often rare branches were taken.
    pub marks: BTreeMap<&'static str, u64>,
    /// What is not as it must be.
    pub violations: Vec<String>,
    /// Chunks whose history is too tangled to be judged.
    pub undecided: usize,
    /// The end of the event log.
    pub log: Vec<String>,
}

/// Runs the simulation that `options` say; with `prints` its log is printed as it goes.
pub fn run(options: Options, prints: bool) -> Report {
    keep_panics();
    let plants = options.plants.iter().flat_map(|plants| plants.split(" + "));
    kiln_types::rehearsal::begin(plants.map(str::to_owned));
    let executor = Executor::new(options.seed);
    executor.set_steps_max(STEPS_MAX);
    executor.set_faults(options.kv_faults);
    crate::log::set_clock(executor.env());
    let log = Log::new(executor.env(), prints);
    let start = executor.env().now();
    let cluster = Cluster::new(options.clone(), &executor, log.clone());
    let alive = Arc::clone(&cluster);
    let mut violations = Vec::new();
    let lived = catch_unwind(AssertUnwindSafe(|| executor.run(live(alive))));
    match lived {
        Ok(Ok(())) => {}
        Ok(Err(error)) => violations.push(error.to_string()),
        Err(_) => violations.push(format!("a panic: {}", PANIC.take())),
    }
    let undecided = judge(&cluster, &mut violations);
    for violation in &violations {
        note!(log, "VIOLATION: {violation}");
    }
    let history = &cluster.workload.history;
    Report {
        operations: history.count(),
        successes: history.successes(),
        faults: cluster.workload.faults.load(Ordering::Relaxed),
        time: executor.env().now().since(start),
        trace: executor.trace(),
        marks: kiln_types::rehearsal::marks(),
        violations,
        undecided,
        log: log.end(),
        options,
    }
}

async fn live(cluster: Arc<Cluster>) -> kiln_types::Result<()> {
    cluster.start();
    let _operator = cluster.ground.spawn("operator", faults::operate(Arc::clone(&cluster)));
    let rage = cluster.ground.spawn("faults", faults::rage(Arc::clone(&cluster)));
    if !is_over(&cluster, TIME_MAX).await {
        note!(cluster.log, "the other operations see no faults");
    }
    drop(rage);
    note!(cluster.log, "no more faults");
    cluster.calm();
    if !is_over(&cluster, TIME_MAX).await {
        cluster.workload.stop();
        if !is_over(&cluster, END_TIME_MAX).await {
            let why = format!("the last operations go on for {END_TIME_MAX:?}");
            return Err(Error::new(Code::DeadlineExceeded, why));
        }
    }
    settle::settle(&cluster).await
}

/// Whether all operations have ended, within `time`.
async fn is_over(cluster: &Cluster, time: Duration) -> bool {
    let over = async {
        while !cluster.workload.is_over() {
            cluster.ground.sleep(LOOK).await;
        }
    };
    cluster.ground.timeout(time, "all operations", over).await.is_ok()
}

/// Judges the history of each chunk; how many are not decided.
fn judge(cluster: &Cluster, violations: &mut Vec<String>) -> usize {
    let mut undecided = 0;
    for chunk in 0..cluster.options.chunks {
        let operations = cluster.workload.history.of_chunk(chunk);
        match linear::check(&operations) {
            Verdict::Linearizable => {}
            Verdict::Unknown(text) => {
                for operation in &operations {
                    note!(cluster.log, "  {operation}");
                }
                note!(cluster.log, "chunk {chunk} is undecided: {text}");
                undecided += 1;
            }
            Verdict::Wrong(text) => {
                let all = operations.iter().map(|operation| format!("\n    {operation}"));
                let all = all.collect::<String>();
                violations.push(format!("chunk {chunk} is not linearizable: {text}\n  all:{all}"));
            }
        }
    }
    undecided
}

thread_local! {
    /// The last panic of this thread.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics are findings: they are kept, not printed.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANIC.set(info.to_string());
            if std::env::var_os("RUST_BACKTRACE").is_some_and(|set| set == "full") {
                before(info);
            }
        }));
    });
}
