//! The network's thread: does what is due, in order of time.

use crate::codes::{self, Code};
use kiln_env::Env;
use kiln_types::Monotonic;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::sync::LazyLock;

type Job = Box<dyn FnOnce() + Send>;

pub(crate) static NETWORK: LazyLock<Network> = LazyLock::new(Network::new);

pub(crate) struct Network {
    env: Env,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: BTreeMap<(Monotonic, u64), Job>,
    count: u64,
    is_set_up: bool,
    is_stopped: bool,
}

impl Network {
    fn new() -> Self {
        Self { env: Env::real(), queue: Mutex::default(), changed: Condvar::new() }
    }

    pub(crate) fn now(&self) -> Monotonic {
        self.env.now()
    }

    /// Does `job` on the network's thread at that time, or later.
    pub(crate) fn at(&self, due: Monotonic, job: impl FnOnce() + Send + 'static) {
        let mut queue = self.queue.lock();
        queue.count += 1;
        let name = (due, queue.count);
        queue.jobs.insert(name, Box::new(job));
        drop(queue);
        self.changed.notify_one();
    }

    pub(crate) fn set_up(&self) -> Code {
        match std::mem::replace(&mut self.queue.lock().is_set_up, true) {
            true => codes::NETWORK_ALREADY_SETUP,
            false => 0,
        }
    }

    /// Works until [`stop`](Self::stop).
    pub(crate) fn run(&self) {
        let mut queue = self.queue.lock();
        while !queue.is_stopped {
            let Some((&(due, _), _)) = queue.jobs.first_key_value() else {
                self.changed.wait(&mut queue);
                continue;
            };
            let now = self.now();
            if due > now {
                self.changed.wait_for(&mut queue, due.since(now));
                continue;
            }
            let Some((_, job)) = queue.jobs.pop_first() else { continue };
            drop(queue);
            job();
            queue = self.queue.lock();
        }
    }

    pub(crate) fn stop(&self) {
        self.queue.lock().is_stopped = true;
        self.changed.notify_one();
    }
}
