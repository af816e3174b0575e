//! The embedded engine runs the conformance suite.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use kiln_env::Env;
use kiln_kv::conformance::{self, Case};
use kiln_kv::{Kv, RangeOptions, transact};
use kiln_kv_embedded::{EmbeddedKv, Options};
use kiln_types::Code;
use std::sync::Arc;

/// Small enough that tables are written and merged during the tests.
const SMALL: Options =
    Options { cache_bytes: 4 << 20, memtable_bytes: 256 << 10, journal_bytes: 64 << 20 };

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conformance_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let env = Env::real();
    let kv = Arc::new(EmbeddedKv::open(directory.path().join("kv"), &env, SMALL).await.unwrap());
    for seed in 0..15 {
        let case = Case { kv: kv.clone(), env: env.clone(), seed };
        conformance::concurrent(&case).await.unwrap();
    }
    let case = Case { kv: kv.clone(), env, seed: 1000 };
    conformance::exact(&case).await.unwrap();
    conformance::cleared_keys(&case).await.unwrap();
    drop(case);
    kv.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_at_a_time_and_close_lets_go() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep").join("kv");
    let env = Env::real();
    let kv = EmbeddedKv::open(&path, &env, SMALL).await.unwrap();
    let error = EmbeddedKv::open(&path, &env, SMALL).await.err().unwrap();
    assert_eq!(error.code(), Code::Busy, "{error}");
    transact(&kv, &env, "write", |tx| {
        Box::pin(async move {
            tx.set(b"a", b"1");
            Ok(())
        })
    })
    .await
    .unwrap();
    let mut late = kv.begin().await.unwrap();
    late.set(b"a", b"2");
    kv.close().await.unwrap();
    kv.close().await.unwrap();
    assert_eq!(late.commit().await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(kv.begin().await.err().unwrap().code(), Code::Cancelled);
    let kv = EmbeddedKv::open(&path, &env, SMALL).await.unwrap();
    let mut tx = kv.begin().await.unwrap();
    assert_eq!(tx.get(b"a").await.unwrap().as_deref(), Some(&b"1"[..]));
    drop((tx, kv));
    let kv = EmbeddedKv::open(&path, &env, SMALL).await.unwrap();
    kv.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_directories_and_unknown_formats_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kv");
    let env = Env::real();
    EmbeddedKv::open(&path, &env, SMALL).await.unwrap().close().await.unwrap();
    for (marker, code) in [
        ("kiln-kv-embedded 2\n", Code::Unsupported),
        ("something else", Code::Corrupt),
        ("kiln-kv-embedded 1\n", Code::Internal),
    ] {
        std::fs::write(path.join("store").join("FORMAT"), marker).unwrap();
        let opened = EmbeddedKv::open(&path, &env, SMALL).await;
        assert_eq!(opened.err().map_or(Code::Internal, |error| error.code()), code, "{marker}");
    }
    let foreign = directory.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.txt"), "years of work").unwrap();
    let error = EmbeddedKv::open(&foreign, &env, SMALL).await.err().unwrap();
    assert_eq!(error.code(), Code::Invalid, "{error}");
    // A creation that was cut short leaves nothing that matters.
    let cut = directory.path().join("cut");
    std::fs::create_dir_all(cut.join("store.new").join("tree")).unwrap();
    std::fs::write(cut.join("store.new").join("tree").join("0.jnl"), "half").unwrap();
    EmbeddedKv::open(&cut, &env, SMALL).await.unwrap().close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_there_after_many_reopens() {
    let directory = tempfile::tempdir().unwrap();
    let env = Env::real();
    for round in 0..8u32 {
        let kv = EmbeddedKv::open(directory.path(), &env, SMALL).await.unwrap();
        for at in 0..20u32 {
            let mut tx = kv.begin().await.unwrap();
            tx.set(format!("{round} {at}").as_bytes(), &vec![round as u8; 10_000]);
            tx.add(b"count", 1);
            tx.commit().await.unwrap();
        }
        let mut tx = kv.begin().await.unwrap();
        let all = tx.range(kiln_kv::KeyRange::all(), RangeOptions::default()).await.unwrap();
        assert_eq!(all.len() as u32, (round + 1) * 20 + 1);
        assert_eq!(all.last().unwrap().1, u64::from((round + 1) * 20).to_le_bytes());
        drop(tx);
        kv.close().await.unwrap();
    }
}
