//! Which of several managers over one store is the primary, and until when it may answer.
//!
//! The store has a record of the primary and a count, its *beat*, which the primary raises every
//! [`PrimaryTimes::beat`]. It may answer for [`PrimaryTimes::lease`] from when it *began* to raise it,
//! once that was done. Another manager looks at the store as often; when the same beat has stood there for
//! [`PrimaryTimes::succession`] since the first look that found it *ended*, it writes its own record, on
//! condition that the beat is still that one.
//!
//! # The argument
//! Let b be the last beat that the predecessor raised, begun at real time s. A successor first found b by
//! a look that ended at c >= s, and takes the seat at t, not before c + S / (1 + d), where S is the
//! succession, L the lease and d how wrong a clock is at most. The predecessor answers until
//! s + L / (1 - d) at the latest. With S = 5/4 L that is before t for all d <= 1/9, as in [`crate::lease`].
//! No beat came after b: it would have changed what the successor's condition is about, and after t the
//! predecessor finds another record. A beat whose outcome the predecessor never learned does not extend
//! its time. So nobody is answered by two managers, and what the successor knows at t includes all that
//! its predecessor said.
//!
//! The times are short enough for servers not to notice (they fence themselves 4 s after the last answered
//! heartbeat was sent): a primary that dies is replaced within succession + two looks, 2.5 s.

use kiln_types::Monotonic;
use std::time::Duration;

/// The times of the primary's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrimaryTimes {
    /// How long a beat counts.
    pub lease: Duration,
    /// How often the primary beats, and the others look.
    pub beat: Duration,
}

impl PrimaryTimes {
    /// 1.5 s, and 0.3 s.
    pub const DEFAULT: Self =
        Self { lease: Duration::from_millis(1500), beat: Duration::from_millis(300) };

    /// How long a successor must have seen one beat.
    pub fn succession(self) -> Duration {
        self.lease * 5 / 4
    }

    /// Until when a beat counts that was begun at `begun`, by the primary's clock.
    pub fn held_until(self, begun: Monotonic) -> Monotonic {
        begun.plus(self.lease)
    }
}

/// What the store says of the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incumbent {
    /// This time in the seat: drawn at random.
    pub term: u128,
    /// Where it answers, `host:port`.
    pub address: String,
    /// Its last beat.
    pub beat: u64,
}

/// What a manager without the seat does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is a primary, at this address.
    Follow(String),
    /// The seat may be taken, if it is still as it was found.
    Take(Option<Incumbent>),
}

/// A manager that waits for the seat.
#[derive(Clone, Debug)]
pub struct Candidate {
    times: PrimaryTimes,
    seen: Option<(Incumbent, Monotonic)>,
}

impl Candidate {
    /// It has not looked yet.
    pub fn new(times: PrimaryTimes) -> Self {
        Self { times, seen: None }
    }

    /// A look that has ended at `now` found this.
    pub fn looked(&mut self, found: Option<Incumbent>, now: Monotonic) -> Verdict {
        let Some(found) = found else { return Verdict::Take(None) };
        match &self.seen {
            Some((seen, since)) if *seen == found => {
                if now >= since.plus(self.times.succession()) {
                    return Verdict::Take(Some(found));
                }
            }
            _ => self.seen = Some((found.clone(), now)),
        }
        Verdict::Follow(found.address)
    }
}
