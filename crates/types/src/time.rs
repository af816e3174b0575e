//! Points in time. Only `env` reads a clock; these are what it returns.

use std::fmt;
use std::time::Duration;

/// Nanoseconds of the boot-time clock (it counts through suspend); compares within one host only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// This point plus `duration`, saturating.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to here; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The point after which nobody waits for an answer any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(pub Monotonic);

impl Deadline {
    /// `duration` after `now`.
    pub fn after(now: Monotonic, duration: Duration) -> Self {
        Self(now.plus(duration))
    }

    /// The time that is left at `now`; zero when it has passed.
    pub fn left(self, now: Monotonic) -> Duration {
        self.0.since(now)
    }

    /// Whether it has passed at `now`.
    pub fn passed(self, now: Monotonic) -> bool {
        now >= self.0
    }
}

/// Wall-clock time: nanoseconds since 1970-01-01 UTC, as files carry it. Never used to order events.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Whole seconds and the nanoseconds after them, as `timespec` wants them.
    pub fn to_parts(self) -> (i64, u32) {
        let nanos = u32::try_from(self.0.rem_euclid(1_000_000_000))
            .expect("invariant: a remainder below 1e9 fits");
        (self.0.div_euclid(1_000_000_000), nanos)
    }

    /// The inverse of [`Self::to_parts`], saturating at the ends of the range (years 1677 and 2262).
    pub fn from_parts(seconds: i64, nanos: u32) -> Self {
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(nanos)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = self.to_parts();
        write!(f, "{seconds}.{nanos:09}")
    }
}
