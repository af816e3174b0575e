//! The four seams: clock, randomness, spawning and fault points, real and simulated.
//!
//! Everything in the house asks an [`Env`] instead of the operating system, so that the simulator runs
//! the same code on a seeded single-thread [`Executor`] in virtual time, and a failing seed reruns
//! exactly. Synchronisation comes from `tokio::sync`, which works on both.
//!
//! Invariant: only this crate reads a clock, draws randomness or spawns.
#![forbid(unsafe_code)]

mod executor;
mod host;
mod real;
mod task;

pub use executor::Executor;
pub use host::Host;
pub use task::Task;

use kiln_types::{Code, Deadline, Error, Monotonic, Result, Timestamp};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// A handle on the seams; cheap to clone.
#[derive(Clone)]
pub struct Env {
    seams: Seams,
}

#[derive(Clone)]
enum Seams {
    Real(Arc<real::Real>),
    Simulated(host::Seat),
}

impl Env {
    /// The operating system's clock and randomness, and the tokio runtime that the caller runs in.
    pub fn real() -> Self {
        Self { seams: Seams::Real(Arc::new(real::Real::new())) }
    }

    pub(crate) fn simulated(seat: host::Seat) -> Self {
        Self { seams: Seams::Simulated(seat) }
    }

    /// The boot-time clock.
    pub fn now(&self) -> Monotonic {
        match &self.seams {
            Seams::Real(real) => real.now(),
            Seams::Simulated(seat) => seat.world.now(seat.host),
        }
    }

    /// The wall clock, for the times that files carry.
    pub fn wall(&self) -> Timestamp {
        match &self.seams {
            Seams::Real(real) => real.wall(),
            Seams::Simulated(seat) => seat.world.wall(seat.host),
        }
    }

    /// The deadline `duration` from now.
    pub fn deadline_after(&self, duration: Duration) -> Deadline {
        Deadline::after(self.now(), duration)
    }

    /// Waits for `duration`.
    pub async fn sleep(&self, duration: Duration) {
        match &self.seams {
            Seams::Real(real) => real.sleep(duration).await,
            Seams::Simulated(seat) => seat.world.sleep(seat.host, duration).await,
        }
    }

    /// Waits for `future`, at most `duration`.
    ///
    /// # Errors
    /// `DeadlineExceeded`; the future is dropped then. `what` names it in the message.
    pub async fn timeout<F: Future>(
        &self,
        duration: Duration,
        what: &str,
        future: F,
    ) -> Result<F::Output> {
        let mut future = std::pin::pin!(future);
        let mut sleep = std::pin::pin!(self.sleep(duration));
        std::future::poll_fn(|context| {
            use std::task::Poll;
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(output));
            }
            sleep.as_mut().poll(context).map(|()| {
                Err(Error::new(
                    Code::DeadlineExceeded,
                    format!("{what}: no answer within {duration:.1?}"),
                ))
            })
        })
        .await
    }

    /// Waits for `future` until `deadline`; see [`Self::timeout`].
    ///
    /// # Errors
    /// `DeadlineExceeded`; the future is dropped then.
    pub async fn until<F: Future>(
        &self,
        deadline: Deadline,
        what: &str,
        future: F,
    ) -> Result<F::Output> {
        self.timeout(deadline.left(self.now()), what, future).await
    }

    /// 64 random bits.
    pub fn random_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_random(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// 128 random bits: enough for ids that never meet.
    pub fn random_u128(&self) -> u128 {
        let mut bytes = [0; 16];
        self.fill_random(&mut bytes);
        u128::from_le_bytes(bytes)
    }

    /// A random number below `bound`.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub fn random_below(&self, bound: u64) -> u64 {
        assert!(bound > 0, "random_below(0)");
        // The bias of a 64-bit modulus is below 2^-32 for every bound that we use.
        self.random_u64() % bound
    }

    /// `duration` times a random factor from 0.5 to 1.5, so that retries do not march in step.
    pub fn jittered(&self, duration: Duration) -> Duration {
        duration / 2 + duration.mul_f64(self.random_below(1 << 20) as f64 / (1 << 20) as f64)
    }

    /// Fills `bytes` with randomness that is fit for keys (in the simulator: from the seed).
    pub fn fill_random(&self, bytes: &mut [u8]) {
        match &self.seams {
            Seams::Real(real) => real.fill_random(bytes),
            Seams::Simulated(seat) => seat.world.fill_random(bytes),
        }
    }

    /// Starts `future` beside the caller. The task is aborted when the handle is dropped, unless
    /// [`Task::detach`] was called.
    pub fn spawn<T, F>(&self, name: &'static str, future: F) -> Task<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        match &self.seams {
            Seams::Real(real) => real.spawn(name, future),
            Seams::Simulated(seat) => executor::spawn(seat, name, future),
        }
    }

    /// Starts `future` beside everything else: on a thread with an event loop of its own, so that it
    /// does not wait behind busy tasks. In the simulator it is a task. It ends by itself.
    ///
    /// # Errors
    /// `Local` when the system refuses the thread.
    pub fn spawn_apart(
        &self,
        name: &'static str,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> Result<()> {
        match &self.seams {
            Seams::Real(_) => real::spawn_apart(name, future),
            Seams::Simulated(seat) => {
                executor::spawn(seat, name, future).detach();
                Ok(())
            }
        }
    }

    /// Starts a named thread for work that blocks, like a disk's ring. The simulator has no threads.
    ///
    /// # Errors
    /// `Local` when the system refuses the thread, `Unsupported` in the simulator.
    pub fn spawn_thread<T: Send + 'static>(
        &self,
        name: &str,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> Result<std::thread::JoinHandle<T>> {
        match &self.seams {
            Seams::Real(_) => real::spawn_thread(name, body),
            Seams::Simulated(_) => {
                Err(Error::new(Code::Unsupported, "the simulator has no threads"))
            }
        }
    }

    /// Runs blocking work (file-system calls of an engine) away from the async threads; in the
    /// simulator, in place.
    ///
    /// # Errors
    /// `Cancelled` when the runtime shuts down first.
    pub async fn blocking<T: Send + 'static>(
        &self,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        match &self.seams {
            Seams::Real(_) => real::blocking(body).await,
            Seams::Simulated(_) => Ok(body()),
        }
    }

    /// Whether the fault point `name` strikes now: never outside the simulator. There each seed arms a
    /// quarter of the points, and an armed point strikes every fourth time.
    pub fn fault(&self, name: &'static str) -> bool {
        match &self.seams {
            Seams::Real(_) => false,
            Seams::Simulated(seat) => seat.world.fault(name),
        }
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.seams {
            Seams::Real(_) => "Env::Real",
            Seams::Simulated(_) => "Env::Simulated",
        })
    }
}
