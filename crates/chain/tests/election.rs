//! Several managers with wrong clocks, a slow store that loses answers, and halts: at no moment may two
//! answer, and after the death of one another one comes.
#![allow(clippy::unwrap_used, reason = "tests")]

use kiln_chain::election::{Candidate, Incumbent, PrimaryTimes, Verdict};
use kiln_types::Monotonic;
use std::time::Duration;

const TIMES: PrimaryTimes = PrimaryTimes::DEFAULT;

/// What a manager has under way at the store: it takes effect at one real time, in steps of a
/// millisecond, and is answered at another.
enum Asked {
    Look,
    Take { expected: Option<Incumbent>, term: u128 },
    Beat { term: u128, begun: Monotonic },
}

struct Manager {
    number: u128,
    /// Nanoseconds of its clock in a step.
    rate: u64,
    clock: u64,
    candidate: Candidate,
    holds: Option<(u128, Monotonic)>,
    asked: Option<(Asked, u64, u64)>,
    /// What the store said, once it took effect.
    outcome: Option<Option<Incumbent>>,
    next: Monotonic,
    halted_until: u64,
}

impl Manager {
    fn new(number: u128, random: &mut fastrand::Rng) -> Self {
        let (clock, rate) = (random.u64(..1 << 40), random.u64(900_000..=1_100_000));
        let candidate = Candidate::new(TIMES);
        let (holds, asked, outcome) = (None, None, None);
        Self {
            number,
            rate,
            clock,
            candidate,
            holds,
            asked,
            outcome,
            next: Monotonic(0),
            halted_until: 0,
        }
    }

    fn may_answer(&self) -> bool {
        self.holds.is_some_and(|(_, until)| Monotonic(self.clock) < until)
    }

    /// One step of real time.
    fn step(&mut self, now: u64, store: &mut Option<Incumbent>, random: &mut fastrand::Rng) {
        self.clock += self.rate;
        if let Some((asked, effect, _)) = &self.asked
            && *effect == now
        {
            self.outcome = take_effect(asked, self.number, store);
        }
        if now < self.halted_until {
            return;
        }
        if random.u32(..20_000) == 0 {
            self.halted_until = now + random.u64(..5000);
        }
        let clock = Monotonic(self.clock);
        match self.asked.take() {
            None if clock >= self.next => self.ask(Asked::Look, now, random),
            None => {}
            Some((asked, effect, answer)) if now < answer => {
                self.asked = Some((asked, effect, answer));
            }
            Some((asked, ..)) => {
                let outcome = self.outcome.take();
                self.answered(asked, outcome, now, random);
            }
        }
    }

    fn ask(&mut self, asked: Asked, now: u64, random: &mut fastrand::Rng) {
        let asked = match self.holds {
            Some((term, _)) => Asked::Beat { term, begun: Monotonic(self.clock) },
            None => asked,
        };
        let slow = if random.u32(..20) == 0 { 3000 } else { 40 };
        let effect = now + 1 + random.u64(..slow);
        self.asked = Some((asked, effect, effect + 1 + random.u64(..slow)));
    }

    fn answered(
        &mut self,
        asked: Asked,
        outcome: Option<Option<Incumbent>>,
        now: u64,
        random: &mut fastrand::Rng,
    ) {
        let clock = Monotonic(self.clock);
        self.next = clock.plus(TIMES.beat);
        // An answer that got lost tells nothing.
        let Some(found) = outcome.filter(|_| random.u32(..100) > 0) else { return };
        match asked {
            Asked::Look => {
                if let Verdict::Take(expected) = self.candidate.looked(found, clock) {
                    let term = random.u128(..);
                    self.ask(Asked::Take { expected, term }, now, random);
                }
            }
            Asked::Take { term, .. } if found.as_ref().is_some_and(|f| f.term == term) => {
                // It knows when it asked, but a beat has to be confirmed before anything is answered.
                self.holds = Some((term, Monotonic(0)));
            }
            Asked::Take { .. } => {}
            Asked::Beat { term, begun } => match found {
                Some(found) if found.term == term => {
                    self.holds = Some((term, TIMES.held_until(begun)));
                }
                _ => self.holds = None,
            },
        }
    }
}

/// What the store has after it.
fn take_effect(
    asked: &Asked,
    number: u128,
    store: &mut Option<Incumbent>,
) -> Option<Option<Incumbent>> {
    match asked {
        Asked::Look => {}
        Asked::Take { expected, term } => {
            if store == expected {
                *store = Some(Incumbent { term: *term, address: number.to_string(), beat: 0 });
            }
        }
        Asked::Beat { term, .. } => {
            if let Some(incumbent) = store.as_mut().filter(|found| found.term == *term) {
                incumbent.beat += 1;
            }
        }
    }
    Some(store.clone())
}

#[test]
fn two_managers_never_answer_at_a_time() {
    let mut changes = 0;
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut managers: Vec<_> = (0..3).map(|n| Manager::new(n, &mut random)).collect();
        let (mut store, mut last, mut answered) = (None, None, 0);
        for now in 0..60_000 {
            managers.iter_mut().for_each(|manager| manager.step(now, &mut store, &mut random));
            let may: Vec<_> =
                managers.iter().filter(|m| m.may_answer()).map(|m| m.number).collect();
            assert!(may.len() < 2, "seed {seed}: {may:?} at {now} ms");
            answered += may.len();
            changes += u32::from(!may.is_empty() && may.first() != last.as_ref());
            last = may.first().copied().or(last);
        }
        assert!(answered > 20_000, "seed {seed}: there was a primary for {answered} of 60,000 ms");
    }
    assert!(changes > 120, "the seat changed hands {changes} times");
}

#[test]
fn a_dead_primary_is_replaced_within_two_and_a_half_seconds() {
    let mut candidate = Candidate::new(TIMES);
    let found = || Some(Incumbent { term: 1, address: "a:1".into(), beat: 5 });
    let (mut now, look) = (Monotonic(77), TIMES.beat);
    let start = now;
    while candidate.looked(found(), now) == Verdict::Follow("a:1".into()) {
        now = now.plus(look);
    }
    assert!(now.since(start) <= Duration::from_millis(2200), "{:?}", now.since(start));
}
