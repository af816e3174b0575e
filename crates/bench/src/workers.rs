//! Runs a workload with several workers: tasks for the client library, threads for system calls.

use crate::sample::Sample;
use kiln_env::Env;
use kiln_types::{Code, Error, Monotonic, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

/// Asks a run to end early; it removes its files and fails with `Cancelled`.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Ends the run.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Error::new(Code::Cancelled, "interrupted; the test files are removed")),
        }
    }
}

/// Which request a worker is to make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub(crate) worker: usize,
    /// Its number among this worker's.
    pub(crate) own: u64,
    /// Its number among all.
    pub(crate) shared: u64,
}

/// How many work, and for how long: until they say that nothing is left, or until the time is over.
#[derive(Clone)]
pub(crate) struct Crew {
    pub(crate) env: Env,
    pub(crate) interrupt: Interrupt,
    pub(crate) workers: usize,
    pub(crate) time: Option<Duration>,
}

/// What one worker did.
#[derive(Default)]
struct Done {
    amount: u64,
    latencies: Vec<u64>,
    began: Monotonic,
    ended: Monotonic,
}

impl Crew {
    /// Each worker is a task. A request answers how much it did; 0: nothing is left.
    pub(crate) async fn tasks<F>(
        &self,
        request: impl Fn(Turn) -> F + Clone + Send + Sync + 'static,
    ) -> Result<Sample>
    where
        F: Future<Output = Result<u64>> + Send + 'static,
    {
        let next = Arc::new(AtomicU64::new(0));
        let worker = |worker| {
            let (crew, next, request) = (self.clone(), Arc::clone(&next), request.clone());
            let work = async move {
                let mut done = Done::begin(&crew.env);
                while let Some(turn) = crew.turn(worker, &done, &next)? {
                    let begun = crew.env.now();
                    if !done.count(request(turn).await?, begun, crew.env.now()) {
                        break;
                    }
                }
                Ok::<_, Error>(done)
            };
            self.env.spawn("bench worker", work)
        };
        let tasks: Vec<_> = (0..self.workers).map(worker).collect();
        let mut all = Vec::new();
        for task in tasks {
            all.push(task.join().await?);
        }
        total(all)
    }

    /// Each worker is a thread with a state of its own; all begin at once.
    pub(crate) async fn threads<S: 'static>(
        &self,
        state: impl Fn(usize) -> Result<S> + Send + Sync + 'static,
        request: impl Fn(&mut S, Turn) -> Result<u64> + Send + Sync + 'static,
    ) -> Result<Sample> {
        let start = Arc::new(Barrier::new(self.workers));
        let shared = Arc::new((AtomicU64::new(0), state, request));
        let mut threads = Vec::new();
        for worker in 0..self.workers {
            let (crew, start, shared) = (self.clone(), Arc::clone(&start), Arc::clone(&shared));
            let work = move || {
                let (next, state, request) = &*shared;
                let state = state(worker);
                start.wait();
                let (mut state, mut done) = (state?, Done::begin(&crew.env));
                while let Some(turn) = crew.turn(worker, &done, next)? {
                    let begun = crew.env.now();
                    if !done.count(request(&mut state, turn)?, begun, crew.env.now()) {
                        break;
                    }
                }
                Ok(done)
            };
            threads.push(self.env.spawn_thread("bench worker", work)?);
        }
        let mut all = Vec::new();
        for thread in threads {
            let joined = self.env.blocking(move || thread.join()).await?;
            let panicked = |_| Error::internal("a thread of the bench panicked");
            all.push(joined.map_err(panicked)?);
        }
        total(all)
    }

    fn turn(&self, worker: usize, done: &Done, next: &AtomicU64) -> Result<Option<Turn>> {
        self.interrupt.check()?;
        if self.time.is_some_and(|time| done.ended.since(done.began) >= time) {
            return Ok(None);
        }
        let (own, shared) = (done.latencies.len() as u64, next.fetch_add(1, Ordering::Relaxed));
        Ok(Some(Turn { worker, own, shared }))
    }
}

impl Done {
    fn begin(env: &Env) -> Self {
        let now = env.now();
        Self { began: now, ended: now, ..Self::default() }
    }

    /// Whether something was left to do.
    fn count(&mut self, amount: u64, begun: Monotonic, ended: Monotonic) -> bool {
        if amount > 0 {
            self.amount += amount;
            self.latencies.push(ended.since(begun).as_nanos() as u64);
            self.ended = ended;
        }
        amount > 0
    }
}

/// Only after all have ended: what one's failure leaves, the others no longer use.
fn total(all: Vec<Result<Done>>) -> Result<Sample> {
    let all = all.into_iter().collect::<Result<Vec<_>>>()?;
    let began = all.iter().map(|done| done.began).min().unwrap_or_default();
    let ended = all.iter().map(|done| done.ended).max().unwrap_or_default();
    Ok(Sample {
        amount: all.iter().map(|done| done.amount).sum(),
        took: ended.since(began),
        latencies: all.into_iter().flat_map(|done| done.latencies).collect(),
    })
}
