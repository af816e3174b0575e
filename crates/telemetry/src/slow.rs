//! What is slow is logged, but never so often that the log becomes the trouble.

use crate::metrics::SLOW;
use crate::trace::About;
use kiln_types::Monotonic;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tracing::field::display;

/// At most so many lines come in a window; what is more is counted and told after it.
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// Nanoseconds; 0: nothing is slow.
static THRESHOLD: AtomicU64 = AtomicU64::new(0);
static LIMITER: Mutex<Limiter> = Mutex::new(Limiter::new());
/// Whether the limiter holds lines back.
static HELD: AtomicBool = AtomicBool::new(false);

/// Sets from which duration on something is slow; zero: never.
pub(crate) fn set_threshold(threshold: Duration) {
    THRESHOLD.store(u64::try_from(threshold.as_nanos()).unwrap_or(u64::MAX), Relaxed);
}

pub(crate) fn threshold() -> Option<Duration> {
    let nanos = THRESHOLD.load(Relaxed);
    (nanos > 0).then(|| Duration::from_nanos(nanos))
}

/// What is known of a request that has ended.
pub(crate) struct Ended<'a> {
    pub(crate) operation: &'static str,
    pub(crate) peer: &'a str,
    /// "ok", or the code of its error.
    pub(crate) result: &'static str,
    pub(crate) took: Duration,
}

/// Logs a request if it was slow; `tell` says what it was about and where its time went.
pub(crate) fn note(ended: &Ended<'_>, now: Monotonic, tell: impl FnOnce() -> (About, String)) {
    let slow = threshold().is_some_and(|threshold| ended.took >= threshold);
    if !slow && !HELD.load(Relaxed) {
        return;
    }
    let (admitted, held_back) = {
        let mut limiter = LIMITER.lock();
        let held_back = limiter.begin_window(now);
        let admitted = slow && limiter.admit();
        HELD.store(limiter.held_back > 0, Relaxed);
        (admitted, held_back)
    };
    if held_back > 0 {
        tracing::warn!("and {held_back} more slow requests before this");
    }
    if slow {
        SLOW.of(ended.operation).increment();
    }
    if admitted {
        let (about, spent) = tell();
        let Ended { operation, peer, result, took } = ended;
        let took = format!("{took:.1?}");
        let about = (about != About::default()).then(|| display(about));
        tracing::warn!(operation, peer, about, %took, %spent, result, "slow request");
    }
}

/// Counts lines and windows.
#[derive(Debug)]
struct Limiter {
    since: Option<Monotonic>,
    lines: u32,
    held_back: u64,
}

impl Limiter {
    const fn new() -> Self {
        Self { since: None, lines: 0, held_back: 0 }
    }

    /// Begins a new window where the last one is over; how many lines were held back in that.
    fn begin_window(&mut self, now: Monotonic) -> u64 {
        if self.since.is_some_and(|since| now.since(since) < WINDOW) {
            return 0;
        }
        (self.since, self.lines) = (Some(now), 0);
        std::mem::take(&mut self.held_back)
    }

    /// Whether another line may come.
    fn admit(&mut self) -> bool {
        let admitted = self.lines < LINES;
        if admitted {
            self.lines += 1;
        } else {
            self.held_back += 1;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_admits_some_lines_and_the_next_one_tells_how_many_more_there_were() {
        let mut limiter = Limiter::new();
        let start = Monotonic(5);
        assert_eq!(limiter.begin_window(start), 0);
        let admitted = (0..1000).filter(|_| limiter.admit()).count();
        assert_eq!(admitted, LINES as usize);
        assert_eq!(limiter.begin_window(start.plus(WINDOW / 2)), 0, "not over yet");
        assert!(!limiter.admit());
        assert_eq!(limiter.begin_window(start.plus(WINDOW)), 1001 - u64::from(LINES));
        assert!(limiter.admit());
        assert_eq!(limiter.begin_window(start.plus(3 * WINDOW)), 0);
    }
}
