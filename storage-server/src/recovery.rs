//! How much a server spends on filling other servers' targets.

use kiln_env::Env;
use kiln_types::Monotonic;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that copies under way may hold in memory, give or take one chunk.
const BYTES_IN_FLIGHT: u32 = 32 << 20;

/// The limits of recovery, shared by all targets of a server.
pub struct Recovery {
    env: Env,
    /// In bytes.
    in_flight: Arc<Semaphore>,
    /// Bytes a second; 0: no limit.
    rate: AtomicU64,
    /// When the next copy may begin, at that rate.
    next: Mutex<Monotonic>,
}

/// Leave to send a copy; it ends when this is dropped.
pub struct Leave {
    _bytes: Option<OwnedSemaphorePermit>,
}

impl Recovery {
    /// Lets all targets together send at most `rate` bytes a second; 0: no limit but that of the
    /// memory.
    pub fn new(rate: u64, env: Env) -> Arc<Self> {
        let next = Mutex::new(env.now());
        let in_flight = Arc::new(Semaphore::new(BYTES_IN_FLIGHT as usize));
        Arc::new(Self { env, in_flight, rate: rate.into(), next })
    }

    /// Changes the rate, from the next copy on.
    pub fn set_rate(&self, rate: u64) {
        self.rate.store(rate, Ordering::Relaxed);
    }

    /// Waits until `bytes` more may be on their way.
    pub async fn leave(&self, bytes: u32) -> Leave {
        let permits = bytes.clamp(1, BYTES_IN_FLIGHT);
        let permit = Arc::clone(&self.in_flight).acquire_many_owned(permits).await;
        let now = self.env.now();
        let start = {
            let mut next = self.next.lock();
            let start = (*next).max(now);
            let nanoseconds = match self.rate.load(Ordering::Relaxed) {
                0 => 0,
                rate => u64::from(bytes).saturating_mul(1_000_000_000) / rate,
            };
            *next = start.plus(Duration::from_nanos(nanoseconds));
            start
        };
        self.env.sleep(start.since(now)).await;
        Leave { _bytes: permit.ok() }
    }
}
