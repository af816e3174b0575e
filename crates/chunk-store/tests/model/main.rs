//! The store against a reference model: random operations, several at once, with faults and
//! crashes.
//!
//! A failing seed is printed; `KILN_SEED=n cargo test -p kiln-chunk-store --test model` reruns it
//! alone, `KILN_SEEDS=n` sets how many are run.
#![allow(clippy::unwrap_used, reason = "tests")]

macro_rules! ensure {
    ($holds:expr, $($words:tt)*) => {
        if !$holds {
            return Err(format!($($words)*));
        }
    };
}

mod checks;
mod reference;
mod sync;
mod world;

use kiln_env::Executor;
use world::{Planted, World};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Lives one seed; what went wrong, if anything, and how much happened.
fn live(seed: u64, planted: Planted) -> (Result<[u64; 3], String>, u64) {
    let executor = Executor::new(seed);
    let env = executor.env();
    let result = executor.run(async move {
        let mut world = World::begin(env, planted).await?;
        let life = world.life.clone();
        let lived = world.live().await;
        lived.map_err(|words| format!("{words}\n{life:?}"))?;
        Ok([world.reboots, world.refusals, world.damages])
    });
    (result, executor.trace())
}

#[test]
fn nothing_acknowledged_is_ever_lost() {
    let first = number("KILN_SEED");
    let count = number("KILN_SEEDS").unwrap_or(if first.is_some() { 1 } else { 200 });
    let first = first.unwrap_or(0);
    let seeds = first..first + count;
    let mut sum = [0; 3];
    for seed in seeds {
        match live(seed, Planted::Nothing).0 {
            Ok(seen) => (0..3).for_each(|at| sum[at] += seen[at]),
            Err(words) => panic!("KILN_SEED={seed}: {words}"),
        }
    }
    println!("{} reboots, {} times no space, {} times filled after damage", sum[0], sum[1], sum[2]);
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in 0..5 {
        assert_eq!(live(seed, Planted::Nothing).1, live(seed, Planted::Nothing).1, "seed {seed}");
    }
}

#[test]
fn a_missing_sync_is_found() {
    for planted in [Planted::DeafDisk, Planted::SkippedSync] {
        let found = (0..30).filter(|seed| live(*seed, planted).0.is_err()).count();
        assert!(found >= 10, "{planted:?}: found by {found} of 30 seeds");
    }
}
