//! Which chunks have to be removed from which chains, and when: no I/O, no clock.
//!
//! A task (a removed file, or an end that was cut off) is swept on each of its chains. Each chain
//! has a queue of its own, so that one which is away keeps nothing but its own chunks. A task that
//! somebody could still write to when its sweep began is swept once more after that.

use crate::store::garbage::{Name, Task};
use kiln_types::{ChainId, Monotonic, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Tasks that are known at once. Others stay in their records until there is room.
const TASKS_MAX: usize = 262_144;
/// Tasks that one sweep of a chain is about.
const SWEEP_MAX: usize = 256;
/// The pause after a failed sweep of a chain; it doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// The tasks that are known, and how far each has got.
pub(crate) struct Collector {
    tasks_max: usize,
    tasks: BTreeMap<Name, Progress>,
    lanes: BTreeMap<ChainId, Lane>,
    /// Swept, and to be swept again.
    asleep: BTreeSet<(Timestamp, Name)>,
    /// Collected: their records may end.
    collected: BTreeSet<Name>,
}

struct Progress {
    task: Task,
    /// Chains that have yet to be swept.
    left: usize,
    /// Nobody could write any more when the sweep began: it is the last one.
    is_last: bool,
}

/// What is left to do on one chain.
#[derive(Default)]
struct Lane {
    ready: BTreeSet<Name>,
    /// Failed, and ready again at `retry_at`.
    failed: BTreeSet<Name>,
    retry_at: Monotonic,
    pause: Duration,
    /// Nothing of the last sweep was successful: nothing is sent before `retry_at`.
    is_away: bool,
    /// A sweep is under way.
    is_busy: bool,
}

impl Default for Collector {
    fn default() -> Self {
        Self::of(TASKS_MAX)
    }
}

impl Collector {
    fn of(tasks_max: usize) -> Self {
        Self {
            tasks_max,
            tasks: BTreeMap::new(),
            lanes: BTreeMap::new(),
            asleep: BTreeSet::new(),
            collected: BTreeSet::new(),
        }
    }

    /// How many tasks have chunks that are not removed yet.
    pub(crate) fn waiting(&self) -> usize {
        self.tasks.len() - self.asleep.len() - self.collected.len()
    }

    pub(crate) fn knows(&self, name: Name) -> bool {
        self.tasks.contains_key(&name)
    }

    /// Whether there is room for a new task. Tasks that only wait for chains that are away make
    /// room: their records are found again.
    pub(crate) fn has_room(&mut self) -> bool {
        if self.tasks.len() >= self.tasks_max {
            self.forget_away();
        }
        self.tasks.len() < self.tasks_max
    }

    /// Takes in a task with chunks on `chains`. One that is known stays as it is.
    pub(crate) fn add(&mut self, task: Task, chains: BTreeSet<ChainId>, wall: Timestamp) {
        if !self.knows(task.name()) {
            self.queue(task, chains, wall);
        }
    }

    fn queue(&mut self, task: Task, chains: BTreeSet<ChainId>, wall: Timestamp) {
        let is_last = wall >= task.garbage.writable_until;
        self.tasks.insert(task.name(), Progress { task, left: chains.len(), is_last });
        for chain in chains {
            self.lanes.entry(chain).or_default().ready.insert(task.name());
        }
    }

    /// The next task that is due to be swept again; the caller [`add`](Self::add)s it.
    pub(crate) fn wake(&mut self, wall: Timestamp) -> Option<Task> {
        let (due, name) = *self.asleep.first()?;
        if due > wall {
            return None;
        }
        self.asleep.pop_first();
        self.tasks.remove(&name).map(|progress| progress.task)
    }

    /// The next sweep to begin: a chain and the tasks, in order.
    pub(crate) fn start(&mut self, now: Monotonic) -> Option<(ChainId, Vec<Task>)> {
        for (chain, lane) in &mut self.lanes {
            if let Some(names) = lane.start(now) {
                let task = |name| self.tasks.get(name).map(|progress| progress.task);
                return Some((*chain, names.iter().filter_map(task).collect()));
            }
        }
        None
    }

    /// Takes in how a sweep went: which tasks are swept, and which failed. Whether this is the
    /// chain's first trouble.
    pub(crate) fn swept(
        &mut self,
        chain: ChainId,
        swept: &[Name],
        failed: &[Name],
        now: Monotonic,
    ) -> bool {
        let lane = self.lanes.entry(chain).or_default();
        let is_news = lane.pause.is_zero() && !failed.is_empty();
        lane.is_busy = false;
        lane.is_away = swept.is_empty() && !failed.is_empty();
        if failed.is_empty() {
            lane.pause = Duration::ZERO;
        } else {
            lane.pause = (lane.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            lane.retry_at = now.plus(lane.pause);
            lane.failed.extend(failed);
        }
        for name in swept {
            let Some(progress) = self.tasks.get_mut(name) else { continue };
            progress.left -= 1;
            match (progress.left, progress.is_last) {
                (0, true) => drop(self.collected.insert(*name)),
                (0, false) => {
                    self.asleep.insert((progress.task.garbage.writable_until, *name));
                }
                _ => {}
            }
        }
        is_news
    }

    /// What is collected.
    pub(crate) fn collected(&self) -> Vec<Name> {
        self.collected.iter().copied().collect()
    }

    /// The records of these have ended.
    pub(crate) fn ended(&mut self, names: &[Name]) {
        for name in names {
            self.collected.remove(name);
            self.tasks.remove(name);
        }
    }

    /// Forgets the tasks for which all that is left waits for chains that are away.
    fn forget_away(&mut self) {
        let mut waits: BTreeMap<Name, usize> = BTreeMap::new();
        for lane in self.lanes.values().filter(|lane| lane.is_away) {
            for name in lane.ready.iter().chain(&lane.failed) {
                *waits.entry(*name).or_default() += 1;
            }
        }
        waits.retain(|name, count| self.tasks.get(name).is_some_and(|p| p.left == *count));
        self.tasks.retain(|name, _| !waits.contains_key(name));
        for lane in self.lanes.values_mut() {
            lane.ready.retain(|name| !waits.contains_key(name));
            lane.failed.retain(|name| !waits.contains_key(name));
        }
    }
}

impl Lane {
    fn start(&mut self, now: Monotonic) -> Option<Vec<Name>> {
        if self.is_busy || (self.is_away && now < self.retry_at) {
            return None;
        }
        if now >= self.retry_at {
            self.ready.append(&mut self.failed);
        }
        let names: Vec<Name> =
            std::iter::from_fn(|| self.ready.pop_first()).take(SWEEP_MAX).collect();
        self.is_busy = !names.is_empty();
        self.is_busy.then_some(names)
    }
}

#[cfg(test)]
#[path = "collector_tests.rs"]
mod tests;
