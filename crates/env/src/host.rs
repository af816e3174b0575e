//! A simulated machine: its clocks may be wrong, and its tasks end together.

use crate::Env;
use crate::executor::World;
use std::sync::Arc;
use std::time::Duration;

/// Wall-clock time at the start of every simulation: 2026-01-01 UTC.
const WALL_START_NS: i64 = 1_767_225_600 * 1_000_000_000;
const MILLION: i64 = 1_000_000;

/// A machine of a simulation. Clones are the same machine.
#[derive(Clone)]
pub struct Host {
    world: Arc<World>,
    id: usize,
}

/// A run of a machine: what an [`Env`] stands for.
#[derive(Clone)]
pub(crate) struct Seat {
    pub(crate) world: Arc<World>,
    pub(crate) host: usize,
    pub(crate) run: u64,
}

impl Host {
    pub(crate) fn new(world: Arc<World>, id: usize) -> Self {
        Self { world, id }
    }

    /// The seams as processes on this machine see them, until it crashes.
    pub fn env(&self) -> Env {
        let run = self.world.run_of(self.id);
        Env::simulated(Seat { world: Arc::clone(&self.world), host: self.id, run })
    }

    /// Ends all tasks of this machine at once. What was started with an earlier [`Self::env`] is
    /// over, and starts nothing any more.
    pub fn crash(&self) {
        self.world.crash(self.id);
    }

    /// Stops the machine as a whole: nothing runs on it until [`Self::resume`], while its clocks go on.
    pub fn halt(&self) {
        self.world.halt(self.id, true);
    }

    /// Lets a halted machine go on.
    pub fn resume(&self) {
        self.world.halt(self.id, false);
    }

    /// From now on the boot-time clock advances by 1 + `ppm` / 1,000,000 seconds in each second.
    ///
    /// # Panics
    /// When time would stand still or go back.
    pub fn set_drift(&self, ppm: i64) {
        assert!(ppm > -MILLION, "a clock goes forward");
        self.world.with_clock(self.id, |clock, now| clock.set_drift(now, ppm));
    }

    /// Moves the boot-time clock forward, as if the machine had been up for longer.
    pub fn add_uptime(&self, uptime: Duration) {
        self.world.with_clock(self.id, |clock, _| clock.shift += nanos(uptime));
    }

    /// Moves the wall clock, forward or back; the boot-time clock does not notice.
    pub fn jump_wall(&self, by_nanos: i64) {
        self.world.with_clock(self.id, |clock, _| clock.wall_offset += by_nanos);
    }
}

/// A machine's clocks, as functions of the true time in nanoseconds.
#[derive(Clone, Copy, Default)]
pub(crate) struct Clock {
    /// How far it is ahead of true time at `since`.
    shift: i64,
    since: u64,
    drift_ppm: i64,
    wall_offset: i64,
}

impl Clock {
    /// The boot-time clock.
    pub(crate) fn boot(&self, now: u64) -> u64 {
        now.saturating_add_signed(self.ahead(now))
    }

    /// The wall clock, in nanoseconds since 1970: somebody keeps it right, but for jumps.
    pub(crate) fn wall(&self, now: u64) -> i64 {
        WALL_START_NS + now.cast_signed() + self.wall_offset
    }

    fn ahead(&self, now: u64) -> i64 {
        let drifted = i128::from(now - self.since) * i128::from(self.drift_ppm);
        self.shift + (drifted / i128::from(MILLION)) as i64
    }

    fn set_drift(&mut self, now: u64, ppm: i64) {
        self.shift = self.ahead(now);
        (self.since, self.drift_ppm) = (now, ppm);
    }

    /// How long `duration` of this clock takes in truth, in nanoseconds, rounded up.
    pub(crate) fn true_nanos(&self, duration: Duration) -> u64 {
        let rate = (MILLION + self.drift_ppm).unsigned_abs();
        let scaled = duration.as_nanos().saturating_mul(u128::from(MILLION.unsigned_abs()));
        u64::try_from(scaled.div_ceil(u128::from(rate))).unwrap_or(u64::MAX)
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Executor;
    use kiln_types::Monotonic;

    #[test]
    fn clocks_drift_and_jump_each_for_itself() {
        let executor = Executor::new(1);
        let (ground, fast) = (executor.env(), executor.host());
        fast.set_drift(100_000);
        let env = fast.env();
        let wall = env.wall();
        executor.run(async move {
            let (start, local) = (ground.now(), env.now());
            env.sleep(Duration::from_secs(11)).await;
            assert_eq!(ground.now().since(start), Duration::from_secs(10));
            assert_eq!(env.now().since(local), Duration::from_secs(11));
        });
        fast.set_drift(0);
        fast.jump_wall(-3_600_000_000_000);
        assert_eq!(fast.env().wall().0 - wall.0, (10 - 3600) * 1_000_000_000);
        let before = fast.env().now();
        fast.add_uptime(Duration::from_secs(5));
        assert_eq!(fast.env().now().since(before), Duration::from_secs(5));
    }

    #[test]
    fn a_crash_ends_all_tasks_of_its_machine_and_what_they_left() {
        let executor = Executor::new(2);
        let host = executor.host();
        let (sender, receiver) = tokio::sync::watch::channel(0);
        let count = |env: Env, sender: tokio::sync::watch::Sender<i32>| async move {
            loop {
                env.sleep(Duration::from_secs(1)).await;
                sender.send_modify(|count| *count += 1);
            }
        };
        let old = host.env();
        old.spawn("count", count(old.clone(), sender.clone())).detach();
        executor.run_for(Duration::from_millis(3500));
        host.crash();
        old.spawn("late", count(old.clone(), sender.clone())).detach();
        executor.run_for(Duration::from_millis(3500));
        assert_eq!(*receiver.borrow(), 3);
        let new = host.env();
        new.spawn("count", count(new.clone(), sender)).detach();
        executor.run_for(Duration::from_millis(1500));
        assert_eq!(*receiver.borrow(), 4);
    }

    #[test]
    fn a_halted_machine_goes_on_where_it_stood() {
        let executor = Executor::new(3);
        let host = executor.host();
        let (sender, mut woken) = tokio::sync::watch::channel(Monotonic(0));
        let env = host.env();
        let start = env.now();
        env.clone()
            .spawn("sleeper", async move {
                env.sleep(Duration::from_secs(1)).await;
                sender.send_replace(env.now());
            })
            .detach();
        executor.run_for(Duration::from_millis(500));
        host.halt();
        executor.run_for(Duration::from_secs(5));
        assert!(!woken.has_changed().is_ok_and(|changed| changed));
        host.resume();
        executor.run(async move {
            assert!(woken.changed().await.is_ok());
            assert_eq!(woken.borrow().since(start), Duration::from_millis(5500));
        });
    }
}
