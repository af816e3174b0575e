//! Servers that die and connections that break while transactions commit: nothing that was acknowledged
//! is lost, nothing happens twice, and what is unknown is said to be.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod proxy;
mod server;

use kiln_env::Env;
use kiln_kv::{KeyRange, Kv, RangeOptions, transact};
use kiln_kv_postgres::{Options, PostgresKv};
use kiln_types::{Code, Result};
use proxy::{Cut, Proxy};
use server::Server;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const WRITERS: u8 = 8;

/// What one writer was told of its transactions, by number.
type Told = BTreeMap<u32, Result<(), Code>>;

/// Writes its next number beside a shared sum until it is stopped.
async fn write(
    kv: Arc<PostgresKv>,
    env: Env,
    writer: u8,
    first: u32,
    stop: Arc<AtomicBool>,
) -> Told {
    let mut told = Told::new();
    for number in first.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let begun = kv.begin().await;
        let Ok(mut tx) = begun else {
            env.sleep(Duration::from_millis(20)).await;
            continue;
        };
        tx.set(&key(writer, number), &number.to_le_bytes());
        tx.add(b"sum", 1);
        told.insert(number, tx.commit().await.map_err(|error| error.code()));
    }
    told
}

fn key(writer: u8, number: u32) -> Vec<u8> {
    [&[b'w', writer], number.to_be_bytes().as_slice()].concat()
}

/// Compares what is stored with what the writers were told.
async fn check(kv: &PostgresKv, env: &Env, told: &[Told]) {
    let (mut stored, mut sum) = (BTreeMap::new(), 0);
    for writer in 0..WRITERS {
        let range = KeyRange::prefix(&[b'w', writer]);
        let pairs = transact(kv, env, "check", |tx| {
            let range = range.clone();
            Box::pin(async move {
                let sum = tx.get(b"sum").await?;
                Ok((tx.range(range, RangeOptions::default()).await?, sum))
            })
        });
        let (pairs, total) = pairs.await.unwrap();
        sum = total.map_or(0, |value| i64::from_le_bytes(value.try_into().unwrap()));
        stored.extend(pairs);
    }
    for (writer, told) in (0..).zip(told) {
        for (number, outcome) in told {
            let is_there = stored.contains_key(&key(writer, *number));
            match outcome {
                Ok(()) => {
                    assert!(is_there, "writer {writer}: {number} was acknowledged and is lost")
                }
                Err(Code::MaybeCommitted) => {}
                Err(code) => assert!(!is_there, "writer {writer}: {number}, {code:?}, is there"),
            }
        }
    }
    assert_eq!(
        sum,
        i64::try_from(stored.len()).unwrap(),
        "each addition is there with its key, once"
    );
}

fn count(told: &[Told], outcome: Result<(), Code>) -> usize {
    told.iter().flat_map(BTreeMap::values).filter(|one| **one == outcome).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_killed_server_loses_nothing_that_was_acknowledged() {
    let Some(mut server) = Server::start() else { return };
    let env = Env::real();
    let mut all = vec![Told::new(); WRITERS.into()];
    let kv = Arc::new(PostgresKv::open(Options::new(server.url()), &env).await.unwrap());
    for round in 0..4 {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (kv, env, stop) = (Arc::clone(&kv), env.clone(), Arc::clone(&stop));
                let first = all[usize::from(writer)].keys().next_back().map_or(0, |last| last + 1);
                env.clone().spawn("writer", write(kv, env, writer, first, stop))
            })
            .collect();
        env.sleep(Duration::from_millis(300 + round * 37)).await;
        server.kill();
        server.run();
        env.sleep(Duration::from_millis(300)).await;
        stop.store(true, Ordering::Relaxed);
        for (writer, told) in writers.into_iter().zip(&mut all) {
            told.extend(writer.join().await.unwrap());
        }
        check(&kv, &env, &all).await;
    }
    let acknowledged = count(&all, Ok(()));
    assert!(acknowledged > 100, "{acknowledged} commits");
    println!("{acknowledged} acknowledged, {} unknown", count(&all, Err(Code::MaybeCommitted)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_connection_that_breaks_at_its_commit_leaves_it_unknown_and_the_retry_finds_out() {
    let Some(server) = Server::start() else { return };
    let env = Env::real();
    let proxy = Proxy::start(&server, &env).await;
    let kv = PostgresKv::open(Options::new(proxy.url()), &env).await.unwrap();
    for (at, (cut, happens)) in [(Cut::Before, false), (Cut::After, true)].iter().enumerate() {
        let name = format!("cut {at}").into_bytes();
        let mut tx = kv.begin().await.unwrap();
        tx.set(&name, b"1");
        proxy.cut(*cut);
        assert_eq!(tx.commit().await.unwrap_err().code(), Code::MaybeCommitted, "{cut:?}");
        let mut tx = kv.begin().await.unwrap();
        assert_eq!(tx.get(&name).await.unwrap().is_some(), *happens, "{cut:?}");
        drop(tx);
        // What callers do: they run it again, and it sees its own effects.
        let (mut runs, name) = (0, &format!("once {at}").into_bytes());
        proxy.cut(*cut);
        let transaction = transact(&kv, &env, "once", |tx| {
            runs += 1;
            Box::pin(async move {
                if tx.get(name).await?.is_none() {
                    tx.set(name, b"1");
                    tx.add(b"times", 1);
                }
                Ok(())
            })
        });
        transaction.await.unwrap();
        assert_eq!(runs, 2, "{cut:?}");
    }
    let times = kv.begin().await.unwrap().get(b"times").await.unwrap();
    assert_eq!(times, Some(2u64.to_le_bytes().to_vec()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ended_sessions_are_replaced_and_their_transactions_run_again() {
    let Some(server) = Server::start() else { return };
    let env = Env::real();
    let kv = Arc::new(PostgresKv::open(Options::new(server.url()), &env).await.unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (kv, env, stop) = (Arc::clone(&kv), env.clone(), Arc::clone(&stop));
            env.clone().spawn("writer", write(kv, env, writer, 0, stop))
        })
        .collect();
    for _ in 0..10 {
        env.sleep(Duration::from_millis(60)).await;
        let others = "application_name = 'kiln' AND pid <> pg_backend_pid()";
        server
            .sql(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"));
    }
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for writer in writers {
        all.push(writer.join().await.unwrap());
    }
    check(&kv, &env, &all).await;
    // A view whose session ended is too old, and the connections come back by themselves.
    let mut tx = kv.begin().await.unwrap();
    server.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'kiln'",
    );
    assert_eq!(tx.get(b"sum").await.unwrap_err().code(), Code::TransactionTooOld);
    assert!(kv.begin().await.unwrap().get(b"sum").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_no_standby_has_confirmed_is_unknown() {
    let Some(server) = Server::start() else { return };
    let env = Env::real();
    let kv = PostgresKv::open(Options::new(server.url()), &env).await.unwrap();
    // Commits wait for a standby that is not there; then an operator cancels the waiting.
    server.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    server.sql("SELECT pg_reload_conf(), pg_sleep(0.3)");
    let mut tx = kv.begin().await.unwrap();
    tx.set(b"a", b"1");
    let commit = env.spawn("commit", async move { tx.commit().await });
    let waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    while server.sql(&format!("SELECT count(*) {waiting}")) == "0" {
        env.sleep(Duration::from_millis(10)).await;
    }
    server.sql(&format!("SELECT pg_cancel_backend(pid) {waiting}"));
    let error = commit.join().await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::MaybeCommitted, "{error}");
    assert!(error.message().contains("synchronous replication"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_unfit_counts_as_away() {
    let Some(mut server) = Server::start() else { return };
    let env = Env::real();
    let kv = PostgresKv::open(Options::new(server.url()), &env).await.unwrap();
    server.sql("ALTER SYSTEM SET fsync = off");
    server.kill();
    server.run();
    let error = kv.begin().await.err().unwrap();
    assert_eq!(error.code(), Code::Unreachable, "{error}");
    assert!(error.message().contains("fsync is off"), "{error}");
    server.sql("ALTER SYSTEM RESET fsync");
    server.kill();
    server.run();
    kv.begin().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_engine_that_hangs_with_the_turn_loses_it() {
    let Some(server) = Server::start() else { return };
    let env = Env::real();
    let proxy = Proxy::start(&server, &env).await;
    let hanging = PostgresKv::open(Options::new(proxy.url()), &env).await.unwrap();
    let other = PostgresKv::open(Options::new(server.url()), &env).await.unwrap();
    let mut tx = hanging.begin().await.unwrap();
    tx.set(b"a", b"hanging");
    proxy.cut(Cut::Hang);
    let late = env.spawn("late", async move { tx.commit().await });
    env.sleep(Duration::from_millis(200)).await;
    let (start, wrote) = (
        env.now(),
        transact(&other, &env, "other", |tx| {
            Box::pin(async move {
                tx.set(b"b", b"other");
                Ok(())
            })
        }),
    );
    wrote.await.unwrap();
    let waited = env.now().since(start);
    assert!((Duration::from_secs(1)..Duration::from_secs(4)).contains(&waited), "{waited:?}");
    assert_eq!(late.join().await.unwrap().unwrap_err().code(), Code::MaybeCommitted);
    let mut tx = other.begin().await.unwrap();
    assert_eq!(tx.get(b"a").await.unwrap(), None, "its turn ended without a commit");
    assert!(tx.get(b"b").await.unwrap().is_some());
}
