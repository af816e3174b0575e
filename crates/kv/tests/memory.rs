//! The memory engine runs the conformance suite, in the simulator and on threads.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use kiln_env::{Env, Executor};
use kiln_kv::conformance::{self, Case};
use kiln_kv::{Kv, MemoryKv, transact};
use kiln_types::Code;
use std::sync::Arc;

fn simulate(seed: u64, faults: bool) -> u64 {
    let executor = Executor::new(seed);
    executor.set_faults(faults);
    let env = executor.env();
    let outcome = executor.run(async move {
        let case = Case { kv: Arc::new(MemoryKv::new(&env)), env, seed };
        match faults {
            true => conformance::concurrent(&case).await,
            false => conformance::exact(&case).await,
        }
    });
    assert_eq!(outcome, Ok(()), "seed {seed}");
    executor.trace()
}

#[test]
fn exact_in_the_simulator() {
    for seed in 0..30 {
        simulate(seed, false);
    }
}

#[test]
fn concurrent_in_the_simulator_with_faults() {
    for seed in 0..60 {
        simulate(seed, true);
    }
    assert_eq!(simulate(7, true), simulate(7, true), "a seed repeats exactly");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conformance_on_threads() {
    let env = Env::real();
    let kv: Arc<dyn Kv> = Arc::new(MemoryKv::new(&env));
    for seed in 0..20 {
        let case = Case { kv: Arc::clone(&kv), env: env.clone(), seed };
        conformance::concurrent(&case).await.unwrap();
    }
    let case = Case { kv, env, seed: 1000 };
    conformance::exact(&case).await.unwrap();
    conformance::cleared_keys(&case).await.unwrap();
}

#[test]
fn transact_gives_up_in_bounded_time_and_names_what_it_did() {
    let executor = Executor::new(1);
    let env = executor.env();
    executor.run(async move {
        let kv = MemoryKv::new(&env);
        let start = env.now();
        let outcome = transact(&kv, &env, "always late", |_| {
            Box::pin(async { Err::<(), _>(Code::TransactionTooOld.into()) })
        });
        let error = outcome.await.unwrap_err();
        assert_eq!(error.code(), Code::TransactionTooOld);
        assert!(error.message().starts_with("always late: gave up after"), "{error}");
        assert!(env.now().since(start) < kiln_kv::RETRY_TIME_MAX * 2);
        let mut runs = 0;
        let outcome = transact(&kv, &env, "wrong", |_| {
            runs += 1;
            Box::pin(async { Err::<(), _>(Code::NotFound.into()) })
        });
        assert_eq!(outcome.await.unwrap_err().code(), Code::NotFound);
        assert_eq!(runs, 1);
    });
}

#[test]
fn old_versions_are_collected() {
    let executor = Executor::new(3);
    let env = executor.env();
    executor.run(async move {
        let kv = MemoryKv::new(&env);
        for round in 0..5000u32 {
            let mut tx = kv.begin().await.unwrap();
            tx.clear(format!("{}", round.wrapping_sub(1)).as_bytes());
            tx.set(format!("{round}").as_bytes(), b"value");
            tx.commit().await.unwrap();
            env.sleep(std::time::Duration::from_millis(2)).await;
        }
        assert_eq!(kv.key_count(), 1);
        assert!(kv.version_count() < 5000, "{} versions", kv.version_count());
    });
}
