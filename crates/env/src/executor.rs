//! The seeded single-thread executor: virtual time, a random but repeatable order of ready tasks.

use crate::Env;
use crate::host::{Clock, Host, Seat};
use crate::task::{Abort, Task};
use kiln_types::{Monotonic, Timestamp};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

type Body = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The machine that the simulation itself runs on: right clocks, never crashes.
const GROUND: usize = 0;

/// Runs a simulation: everything that is spawned on its [`Env`] runs here, on the calling thread.
pub struct Executor {
    world: Arc<World>,
}

/// The state that the tasks of one simulation share.
pub(crate) struct World {
    state: Mutex<State>,
}

struct State {
    now: u64,
    random: fastrand::Rng,
    faults: HashMap<&'static str, bool>,
    faults_on: bool,
    next_id: u64,
    hosts: Vec<HostState>,
    tasks: HashMap<u64, Entry>,
    /// The task that is being polled; none when it was aborted meanwhile.
    current: Option<u64>,
    /// By id: who woke a task, and in which order, must not matter.
    ready: Vec<Place>,
    timers: BTreeMap<(u64, u64), Waker>,
    trace: u64,
    steps: u64,
    steps_max: u64,
}

/// A task and its machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    id: u64,
    host: usize,
}

struct Entry {
    host: usize,
    body: Body,
}

#[derive(Default)]
struct HostState {
    clock: Clock,
    /// Counts crashes: what an earlier run left behind does nothing.
    run: u64,
    halted: bool,
    /// Ready tasks of a halted machine.
    held: Vec<Place>,
}

impl Executor {
    /// A simulation that is decided by `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self {
            world: Arc::new(World {
                state: Mutex::new(State {
                    now: 1_000_000_000,
                    random: fastrand::Rng::with_seed(seed),
                    faults: HashMap::new(),
                    faults_on: false,
                    next_id: 0,
                    hosts: vec![HostState::default()],
                    tasks: HashMap::new(),
                    current: None,
                    ready: Vec::new(),
                    timers: BTreeMap::new(),
                    trace: seed,
                    steps: 0,
                    steps_max: u64::MAX,
                }),
            }),
        }
    }

    /// The seams of this simulation, on a machine with right clocks that never crashes.
    pub fn env(&self) -> Env {
        Env::simulated(Seat { world: Arc::clone(&self.world), host: GROUND, run: 0 })
    }

    /// A further machine, with clocks of its own.
    pub fn host(&self) -> Host {
        let mut state = self.world.state.lock();
        state.hosts.push(HostState::default());
        let id = state.hosts.len() - 1;
        Host::new(Arc::clone(&self.world), id)
    }

    /// Arms the fault points (a quarter of them, chosen by the seed), or disarms all.
    pub fn set_faults(&self, on: bool) {
        self.world.state.lock().faults_on = on;
    }

    /// A number that depends on every scheduling decision so far: equal for two runs of one seed.
    pub fn trace(&self) -> u64 {
        self.world.state.lock().trace
    }

    /// Runs until `future` is done, and returns its output; other tasks run as long as that takes.
    ///
    /// # Panics
    /// When nothing can run any more and no timer is set: the simulation is stuck for ever.
    pub fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let mut main = self.env().spawn("main", future);
        loop {
            if let Ok(output) = main.result.try_recv() {
                return output;
            }
            assert!(self.step(), "the simulation is stuck: no task is ready and no timer is set");
        }
    }

    /// How often a task was polled.
    pub fn steps(&self) -> u64 {
        self.world.state.lock().steps
    }

    /// A simulation that takes more steps than this panics: it does not come to an end.
    pub fn set_steps_max(&self, steps: u64) {
        self.world.state.lock().steps_max = steps;
    }

    /// Runs everything for `duration` of virtual time.
    pub fn run_for(&self, duration: Duration) {
        let env = self.env();
        self.run(async move { env.sleep(duration).await });
    }

    /// Polls one ready task, or moves the time to the next timer. `false` when there is neither.
    fn step(&self) -> bool {
        let Some(place) = self.world.pick() else { return self.world.advance() };
        let Some(mut entry) = self.world.take(place.id) else { return true };
        let waker = Waker::from(Arc::new(Ready { world: Arc::downgrade(&self.world), place }));
        let pending = entry.body.as_mut().poll(&mut Context::from_waker(&waker)).is_pending();
        let mut state = self.world.state.lock();
        if state.current.take().is_some() && pending {
            state.tasks.insert(place.id, entry);
            return true;
        }
        // Dropped outside the lock: destructors may wake, spawn or abort.
        drop(state);
        drop(entry);
        true
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // Tasks hold the world through their Env: dropping them here breaks the circle.
        let tasks = std::mem::take(&mut self.world.state.lock().tasks);
        drop(tasks);
    }
}

struct Ready {
    world: Weak<World>,
    place: Place,
}

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(world) = self.world.upgrade() {
            world.state.lock().ready(self.place);
        }
    }
}

impl State {
    fn ready(&mut self, place: Place) {
        let host = &mut self.hosts[place.host];
        let list = if host.halted { &mut host.held } else { &mut self.ready };
        if let Err(at) = list.binary_search(&place) {
            list.insert(at, place);
        }
    }
}

impl World {
    fn pick(&self) -> Option<Place> {
        let mut state = self.state.lock();
        if state.ready.is_empty() {
            return None;
        }
        state.steps += 1;
        assert!(state.steps <= state.steps_max, "the simulation does not come to an end");
        let count = state.ready.len();
        let at = state.random.usize(..count);
        let place = state.ready.remove(at);
        state.trace = state.trace.rotate_left(7) ^ place.id ^ state.now.wrapping_mul(0x9e37_79b9);
        Some(place)
    }

    fn take(&self, id: u64) -> Option<Entry> {
        let mut state = self.state.lock();
        let entry = state.tasks.remove(&id)?;
        state.current = Some(id);
        Some(entry)
    }

    fn advance(&self) -> bool {
        let mut state = self.state.lock();
        let Some(((time, _), waker)) = state.timers.pop_first() else { return false };
        state.now = state.now.max(time);
        drop(state);
        waker.wake();
        true
    }

    pub(crate) fn now(&self, host: usize) -> Monotonic {
        let state = self.state.lock();
        Monotonic(state.hosts[host].clock.boot(state.now))
    }

    pub(crate) fn wall(&self, host: usize) -> Timestamp {
        let state = self.state.lock();
        Timestamp(state.hosts[host].clock.wall(state.now))
    }

    /// The run that a machine is in.
    pub(crate) fn run_of(&self, host: usize) -> u64 {
        self.state.lock().hosts[host].run
    }

    /// Changes a machine's clocks, given the true time.
    pub(crate) fn with_clock(&self, host: usize, change: impl FnOnce(&mut Clock, u64)) {
        let mut state = self.state.lock();
        let now = state.now;
        change(&mut state.hosts[host].clock, now);
    }

    /// Ends all tasks of a machine, and what its run may still begin.
    pub(crate) fn crash(&self, host: usize) {
        let mut state = self.state.lock();
        let crashed = &mut state.hosts[host];
        crashed.run += 1;
        (crashed.halted, crashed.held) = (false, Vec::new());
        let entries = state.tasks.iter().filter(|(_, entry)| entry.host == host);
        let mut ids: Vec<_> = entries.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        let ended: Vec<_> = ids.iter().filter_map(|id| state.tasks.remove(id)).collect();
        // Destructors may wake, spawn or abort.
        drop(state);
        drop(ended);
    }

    /// Stops a machine as a whole, or lets it go on.
    pub(crate) fn halt(&self, host: usize, halted: bool) {
        let mut state = self.state.lock();
        state.hosts[host].halted = halted;
        let moved = match halted {
            true => {
                let (stopped, others) = state.ready.iter().partition(|place| place.host == host);
                state.ready = others;
                stopped
            }
            false => std::mem::take(&mut state.hosts[host].held),
        };
        moved.into_iter().for_each(|place: Place| state.ready(place));
    }

    pub(crate) fn fill_random(&self, bytes: &mut [u8]) {
        self.state.lock().random.fill(bytes);
    }

    pub(crate) fn fault(&self, name: &'static str) -> bool {
        let mut state = self.state.lock();
        if !state.faults_on {
            return false;
        }
        let armed_now = state.random.u8(..4) == 0;
        let armed = *state.faults.entry(name).or_insert(armed_now);
        armed && state.random.u8(..4) == 0
    }

    /// Sleeps for so long by the clock of `host`.
    pub(crate) fn sleep(self: &Arc<Self>, host: usize, duration: Duration) -> Sleep {
        let state = self.state.lock();
        let time = state.now.saturating_add(state.hosts[host].clock.true_nanos(duration));
        Sleep { world: Arc::clone(self), time, key: None }
    }
}

/// Waits for a point in virtual time.
pub(crate) struct Sleep {
    world: Arc<World>,
    time: u64,
    key: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let world = Arc::clone(&self.world);
        let mut state = world.state.lock();
        if let Some(key) = self.key.take() {
            state.timers.remove(&key);
        }
        if state.now >= self.time {
            return Poll::Ready(());
        }
        state.next_id += 1;
        let key = (self.time, state.next_id);
        state.timers.insert(key, context.waker().clone());
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.world.state.lock().timers.remove(&key);
        }
    }
}

pub(crate) fn spawn<T, F>(seat: &Seat, name: &'static str, future: F) -> Task<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (sender, result) = tokio::sync::oneshot::channel();
    let body: Body = Box::pin(async move {
        let _ = sender.send(future.await);
    });
    let Seat { world, host, run } = seat;
    let mut state = world.state.lock();
    state.next_id += 1;
    let (id, host) = (state.next_id, *host);
    if state.hosts[host].run == *run {
        state.tasks.insert(id, Entry { host, body });
        state.ready(Place { id, host });
        drop(state);
    } else {
        // Its machine has crashed: the destructors may wake, spawn or abort.
        drop(state);
        drop(body);
    }
    let abort = SimulatedAbort { world: Arc::downgrade(world), id };
    Task { result, abort: Some(Arc::new(abort)), name }
}

struct SimulatedAbort {
    world: Weak<World>,
    id: u64,
}

impl Abort for SimulatedAbort {
    fn abort(&self) {
        if let Some(world) = self.world.upgrade() {
            // The body is dropped outside the lock: its destructors may wake, spawn or abort.
            let mut state = world.state.lock();
            let body = state.tasks.remove(&self.id);
            state.current.take_if(|current| *current == self.id);
            drop(state);
            drop(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    fn race(seed: u64) -> (Vec<u64>, u64) {
        let executor = Executor::new(seed);
        let env = executor.env();
        let order = executor.run(async move {
            let (sender, mut receiver) = mpsc::channel(16);
            for id in 0..8 {
                let (sender, env2) = (sender.clone(), env.clone());
                env.spawn("racer", async move {
                    env2.sleep(Duration::from_millis(env2.random_below(5))).await;
                    sender.send(id).await.expect("the receiver waits");
                })
                .detach();
            }
            drop(sender);
            let mut order = Vec::new();
            while let Some(id) = receiver.recv().await {
                order.push(id);
            }
            order
        });
        (order, executor.trace())
    }

    #[test]
    fn a_seed_repeats_exactly_and_seeds_differ() {
        let runs: Vec<_> = (0..20).map(race).collect();
        assert_eq!(runs, (0..20).map(race).collect::<Vec<_>>());
        assert!(runs.iter().any(|run| run.0 != runs[0].0));
    }

    #[test]
    fn time_is_virtual_and_timeouts_strike() {
        let executor = Executor::new(1);
        let env = executor.env();
        executor.run(async move {
            let start = env.now();
            let day = Duration::from_secs(86_400);
            let late = env.timeout(day, "nothing", std::future::pending::<()>()).await;
            assert_eq!(late.map_err(|e| e.code()), Err(kiln_types::Code::DeadlineExceeded));
            assert_eq!(env.now().since(start), day);
        });
    }

    #[test]
    fn a_task_that_aborts_itself_is_gone() {
        let executor = Executor::new(3);
        let env = executor.env();
        executor.run(async move {
            let (sender, mut receiver) = mpsc::channel::<()>(1);
            let (give, handle) = tokio::sync::oneshot::channel::<Task<()>>();
            let task = env.spawn("self-ending", async move {
                let _held = sender;
                drop(handle.await);
                std::future::pending::<()>().await;
            });
            give.send(task).ok().expect("the task waits for its handle");
            assert_eq!(receiver.recv().await, None);
        });
    }

    #[test]
    fn dropping_a_handle_ends_the_task() {
        let executor = Executor::new(2);
        let env = executor.env();
        executor.run(async move {
            let (sender, mut receiver) = mpsc::channel::<()>(1);
            let task = env.spawn("holder", async move {
                let _held = sender;
                std::future::pending::<()>().await;
            });
            env.sleep(Duration::from_secs(1)).await;
            drop(task);
            assert_eq!(receiver.recv().await, None);
        });
    }
}
