//! The shortest part of a random sequence that still fails.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Runs that may be spent on making a sequence shorter.
const TRIES: u32 = 300;

/// The chance of one step: the same, whichever steps come before it.
pub(super) fn random(seed: u64, step: u64) -> fastrand::Rng {
    fastrand::Rng::with_seed(fastrand::Rng::with_seed(seed).u64(..) ^ (step + 1))
}

/// Does the steps `0..count` by `run`. When that panics, steps are left out as long as it still does, and what
/// the shortest sequence panics with is what the test fails with.
pub(super) fn check(name: &str, count: u64, run: impl Fn(Vec<u64>)) {
    println!("{name}");
    let attempt = |steps: &[u64]| catch_unwind(AssertUnwindSafe(|| run(steps.to_vec()))).err();
    let mut steps: Vec<u64> = (0..count).collect();
    let Some(mut failure) = attempt(&steps) else { return };
    let (mut tries, mut part) = (0, steps.len() / 2);
    while part > 0 {
        let mut at = 0;
        while at < steps.len() && tries < TRIES {
            tries += 1;
            let mut fewer = steps.clone();
            fewer.drain(at..(at + part).min(steps.len()));
            match attempt(&fewer) {
                Some(panic) => (steps, failure) = (fewer, panic),
                None => at += part,
            }
        }
        part /= 2;
    }
    println!("{name}: of {count} steps these {} fail: {steps:?}", steps.len());
    resume_unwind(failure);
}

#[test]
fn what_is_not_needed_for_a_failure_is_left_out() {
    let shortest = std::sync::Mutex::new(Vec::new());
    let run = |steps: Vec<u64>| {
        let fails = steps.contains(&17) && steps.contains(&42);
        if fails {
            *shortest.lock().unwrap() = steps;
        }
        assert!(!fails, "both");
    };
    assert!(catch_unwind(AssertUnwindSafe(|| check("a sequence", 100, run))).is_err());
    assert_eq!(*shortest.lock().unwrap(), [17, 42]);
}
