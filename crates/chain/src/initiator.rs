//! A client's side of one chunk request: where to send it, when to try again, when to give up.

use kiln_types::{Action, Chain, ChainVersion, Code, Deadline, Error, Monotonic, TargetId};
use std::time::Duration;

/// The pause before the second attempt; doubles up to [`PAUSE_MAX`]. The shell adds jitter.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Which replica a request goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Any serving replica; the first choice is spread by `spread`, a number of the caller's.
    Read {
        /// Picks the first replica to ask.
        spread: u64,
    },
    /// The head.
    Write,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Send the request there, naming this chain version.
    Send {
        /// The replica.
        target: TargetId,
        /// The version to name.
        chain_version: ChainVersion,
    },
    /// Wait so long, or until the routing information changes, then ask again.
    Pause(Duration),
    /// Report the error.
    GiveUp(Error),
}

/// One request through its attempts. The request itself (its bytes, its [`kiln_types::RetryKey`]) stays
/// the same in each of them, so that it is applied once.
#[derive(Debug)]
pub struct Initiator {
    intent: Intent,
    deadline: Deadline,
    attempts: u64,
    failures_in_a_row: u32,
    last_error: Option<Error>,
    /// Replicas that failed a read since the last pause: others are asked first.
    failed: Vec<TargetId>,
}

impl Initiator {
    /// A request that may be tried until `deadline`.
    pub fn new(intent: Intent, deadline: Deadline) -> Self {
        Self {
            intent,
            deadline,
            attempts: 0,
            failures_in_a_row: 0,
            last_error: None,
            failed: Vec::new(),
        }
    }

    /// Where to send the request, as the chain is known now.
    pub fn next(&mut self, chain: Option<&Chain>, now: Monotonic) -> Step {
        if self.deadline.passed(now) {
            return Step::GiveUp(self.late());
        }
        let choice = chain.and_then(|chain| self.choose(chain).map(|target| (chain, target)));
        match choice {
            Some((chain, target)) => {
                self.attempts += 1;
                Step::Send { target, chain_version: chain.version }
            }
            None => {
                let text = "no replica of the chain serves";
                self.last_error = Some(Error::new(Code::NotServing, text));
                Step::Pause(self.pause())
            }
        }
    }

    fn choose(&self, chain: &Chain) -> Option<TargetId> {
        match self.intent {
            Intent::Write => chain.head(),
            Intent::Read { spread } => {
                let serving: Vec<_> = chain.serving().collect();
                if serving.is_empty() {
                    return None;
                }
                let start = (spread % serving.len() as u64) as usize;
                let (before, after) = serving.split_at(start);
                let mut order = after.iter().chain(before);
                order.find(|target| !self.failed.contains(target)).copied().or(Some(serving[start]))
            }
        }
    }

    /// Takes the error of the attempt that was sent to `target`.
    pub fn failed(&mut self, target: TargetId, error: Error, now: Monotonic) -> Step {
        let is_read = matches!(self.intent, Intent::Read { .. });
        let another = match (error.code(), error.action()) {
            // A replica's disk or bytes are bad: others are not.
            (Code::DiskFailed | Code::Corrupt, _) => true,
            // Another capability is needed first: the caller fetches one.
            (Code::CapabilityRefused | Code::StaleEpoch, _) => false,
            (_, Action::Retry | Action::Refresh) => true,
            (_, Action::GiveUp | Action::Operator) => false,
        };
        if !another {
            return Step::GiveUp(error);
        }
        self.last_error = Some(error);
        if self.deadline.passed(now) {
            return Step::GiveUp(self.late());
        }
        if is_read && !self.failed.contains(&target) {
            self.failed.push(target);
            // Another replica may answer at once; only after a whole round it is time to wait.
            if self.failed.len() == 1 {
                return Step::Pause(Duration::ZERO);
            }
        }
        Step::Pause(self.pause())
    }

    fn pause(&mut self) -> Duration {
        let pause = PAUSE_MAX.min(PAUSE_MIN * (1 << self.failures_in_a_row.min(8)));
        self.failures_in_a_row += 1;
        if self.failures_in_a_row > 3 {
            self.failed.clear();
        }
        pause
    }

    fn late(&self) -> Error {
        match &self.last_error {
            Some(error) => Error::new(
                Code::DeadlineExceeded,
                format!("gave up after {} attempts; the last one: {error}", self.attempts),
            ),
            None => Error::new(Code::DeadlineExceeded, "the deadline passed before an answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_types::{ChainId, Member, PublicState};

    fn chain() -> Chain {
        let member = |id, state| Member { target: TargetId(id), state };
        Chain {
            id: ChainId(1),
            version: ChainVersion(4),
            members: vec![
                member(1, PublicState::Serving),
                member(2, PublicState::Serving),
                member(3, PublicState::Offline),
            ],
            min_serving: 2,
            replicas: 3,
        }
    }

    fn at(milliseconds: u64) -> Monotonic {
        Monotonic(milliseconds * 1_000_000)
    }

    #[test]
    fn a_read_asks_another_replica_at_once_then_waits() {
        let mut read = Initiator::new(Intent::Read { spread: 1 }, Deadline(at(10_000)));
        let send = |id| Step::Send { target: TargetId(id), chain_version: ChainVersion(4) };
        let lost = || Error::from(Code::ConnectionLost);
        assert_eq!(read.next(Some(&chain()), at(0)), send(2));
        assert_eq!(read.failed(TargetId(2), lost(), at(1)), Step::Pause(Duration::ZERO));
        assert_eq!(read.next(Some(&chain()), at(1)), send(1));
        assert_eq!(read.failed(TargetId(1), lost(), at(2)), Step::Pause(PAUSE_MIN));
    }

    #[test]
    fn a_write_goes_to_the_head_until_the_deadline_and_says_why_it_failed() {
        let mut write = Initiator::new(Intent::Write, Deadline(at(100)));
        let mut now = 0;
        let error = loop {
            match write.next(Some(&chain()), at(now)) {
                Step::Send { target, .. } => assert_eq!(target, TargetId(1)),
                Step::Pause(_) => unreachable!("the chain has a head"),
                Step::GiveUp(error) => break error,
            }
            match write.failed(TargetId(1), Error::new(Code::Unreachable, "nobody"), at(now)) {
                Step::Pause(pause) => now += pause.as_millis() as u64,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(error.code(), Code::DeadlineExceeded);
        assert!(error.message().contains("nobody"));
    }

    #[test]
    fn what_cannot_get_better_is_reported_at_once() {
        let mut write = Initiator::new(Intent::Write, Deadline(at(100)));
        for code in [Code::NoSpace, Code::CapabilityRefused, Code::StaleEpoch] {
            let step = write.failed(TargetId(1), Error::from(code), at(0));
            assert_eq!(step, Step::GiveUp(Error::from(code)));
        }
    }
}
