//! Which error strikes next.

use crate::codes::{self, Code};
use crate::settings::Settings;
use kiln_types::Monotonic;
use std::time::Duration;

/// How long an outage takes at most.
const OUTAGE: Duration = Duration::from_millis(300);
/// How much later than its answer a commit may happen.
const LATE: Duration = Duration::from_millis(50);
/// How long an answer takes at most while there are faults: so what is asked at once is answered in any order.
const DELAY: Duration = Duration::from_millis(1);

pub(crate) struct Faults {
    settings: Settings,
    random: fastrand::Rng,
    outage_until: Monotonic,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is done and answered at that time.
    Done(Monotonic),
    /// It fails, at that time.
    Fails(Monotonic, Code),
    /// It is answered with `commit_unknown_result`, and done at the second time, if at any.
    Unknown(Monotonic, Option<Monotonic>),
    /// It is never answered, and not done.
    Lost,
}

impl Faults {
    pub(crate) fn new(settings: Settings) -> Self {
        let random = fastrand::Rng::with_seed(settings.seed);
        Self { settings, random, outage_until: Monotonic(0) }
    }

    fn strikes(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.random.f64() < chance
    }

    fn within(&mut self, from: Monotonic, most: Duration) -> Monotonic {
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        Monotonic(from.0 + self.random.u64(0..=most))
    }

    /// When something that is asked `now` is answered.
    fn due(&mut self, now: Monotonic) -> Monotonic {
        match self.settings.is_calm() {
            true => now,
            false => self.within(now.max(self.outage_until), DELAY),
        }
    }

    /// The client itself asks again for a read version.
    pub(crate) fn of_read_version(&mut self, now: Monotonic) -> Fate {
        let due = self.due(now);
        if self.strikes(self.settings.lost) { Fate::Lost } else { Fate::Done(due) }
    }

    pub(crate) fn of_read(&mut self, now: Monotonic) -> Fate {
        let due = self.due(now);
        if self.strikes(self.settings.lost) {
            return Fate::Lost;
        }
        if self.strikes(self.settings.too_old) {
            return Fate::Fails(due, codes::TRANSACTION_TOO_OLD);
        }
        if self.strikes(self.settings.behind) {
            let code = [codes::FUTURE_VERSION, codes::PROCESS_BEHIND][self.random.usize(0..2)];
            return Fate::Fails(due, code);
        }
        Fate::Done(due)
    }

    pub(crate) fn of_commit(&mut self, now: Monotonic) -> Fate {
        if self.strikes(self.settings.outage) {
            self.outage_until = self.within(now, OUTAGE);
            let happened = self.random.bool().then_some(now);
            return Fate::Unknown(self.outage_until, happened);
        }
        let due = self.due(now);
        if self.strikes(self.settings.lost) {
            return Fate::Lost;
        }
        if self.strikes(self.settings.conflict) {
            return Fate::Fails(due, codes::NOT_COMMITTED);
        }
        if self.strikes(self.settings.too_old) {
            return Fate::Fails(due, codes::TRANSACTION_TOO_OLD);
        }
        if self.strikes(self.settings.unknown) {
            let happens = match self.random.u8(0..3) {
                0 => None,
                1 => Some(due),
                _ => Some(self.within(due, LATE)),
            };
            return Fate::Unknown(due, happens);
        }
        Fate::Done(due)
    }
}
