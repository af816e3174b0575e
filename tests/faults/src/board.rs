//! What all parts share: operations with their times, violations, the end.

use kiln_env::Env;
use kiln_types::{Code, Monotonic, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Quicker operations are counted only.
const SLOW: Duration = Duration::from_millis(20);
/// How most operations end.
const FINE: &str = "fine";
/// More violations are the same one again.
const VIOLATIONS_MAX: usize = 20;

/// What an operation is, for the table of stalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    Read,
    Write,
    Names,
}

/// An operation, its end once it has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timed {
    pub(crate) work: Work,
    pub(crate) from: Monotonic,
    pub(crate) to: Option<Monotonic>,
}

pub(crate) struct Board {
    pub(crate) env: Env,
    running: Mutex<BTreeMap<u64, (Timed, String)>>,
    slow: Mutex<Vec<Timed>>,
    done: Mutex<BTreeMap<(Work, &'static str), u64>>,
    violations: Mutex<Vec<String>>,
    next: AtomicU64,
    ending: AtomicBool,
}

impl Board {
    pub(crate) fn new(env: Env) -> Self {
        Self {
            env,
            running: Mutex::default(),
            slow: Mutex::default(),
            done: Mutex::default(),
            violations: Mutex::default(),
            next: AtomicU64::new(0),
            ending: AtomicBool::new(false),
        }
    }

    /// Carries out and times an operation.
    pub(crate) async fn time<T>(
        &self,
        work: Work,
        what: impl Fn() -> String,
        operation: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut timed = Timed { work, from: self.env.now(), to: None };
        self.running.lock().insert(number, (timed, what()));
        let result = Box::pin(operation).await;
        self.running.lock().remove(&number);
        let now = self.env.now();
        timed.to = Some(now);
        if now.since(timed.from) >= SLOW {
            self.slow.lock().push(timed);
        }
        let outcome = result.as_ref().map_or_else(|error| error.code().name(), |_| FINE);
        *self.done.lock().entry((work, outcome)).or_default() += 1;
        if let Err(error) = &result {
            let took = now.since(timed.from);
            tracing::info!("{} failed after {took:.1?}: {error}", what());
            if !may_fail_with(error.code()) {
                self.violate(format!("{}: unexpected error: {error}", what()));
            }
        }
        result
    }

    /// Slow operations, those under way included.
    pub(crate) fn slow(&self) -> Vec<Timed> {
        let running: Vec<_> = self.running.lock().values().map(|(timed, _)| *timed).collect();
        self.slow.lock().iter().copied().chain(running).collect()
    }

    /// What is under way, and for how long.
    pub(crate) fn under_way(&self) -> Vec<String> {
        let now = self.env.now();
        let show =
            |(timed, what): &(Timed, String)| format!("{what} for {:.1?}", now.since(timed.from));
        self.running.lock().values().map(show).collect()
    }

    /// How many operations ended how, in lines, and how many that are.
    pub(crate) fn report(&self) -> (String, u64) {
        let done = self.done.lock();
        let line =
            |((work, how), count): (&(Work, &str), &u64)| format!("{work:?} {how}: {count}\n");
        (done.iter().map(line).collect(), done.values().sum())
    }

    /// How many writes were acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.done.lock().get(&(Work::Write, FINE)).copied().unwrap_or_default()
    }

    pub(crate) fn violate(&self, what: String) {
        tracing::error!("VIOLATION: {what}");
        let mut violations = self.violations.lock();
        if violations.len() < VIOLATIONS_MAX {
            violations.push(what);
        }
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().clone()
    }

    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }
}

/// What an operation may end with while servers are away, a disk is full, or the client was cut off.
fn may_fail_with(code: Code) -> bool {
    matches!(
        code,
        Code::DeadlineExceeded
            | Code::Unreachable
            | Code::ConnectionLost
            | Code::NotReady
            | Code::NoSpace
            | Code::ClientEvicted
            | Code::Cancelled
    )
}
