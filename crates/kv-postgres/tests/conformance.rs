//! The engine runs the conformance suite on a real PostgreSQL, as two servers that share it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod server;

use async_trait::async_trait;
use kiln_env::Env;
use kiln_kv::conformance::{self, Case};
use kiln_kv::{Kv, RangeOptions, Transaction, transact};
use kiln_kv_postgres::{Allow, Options, PostgresKv};
use kiln_types::{Code, Result};
use server::Server;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Engines that take turns, as several servers over one store would.
struct Several(Vec<PostgresKv>, AtomicUsize);

#[async_trait]
impl Kv for Several {
    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        self.0[self.1.fetch_add(1, Ordering::Relaxed) % self.0.len()].begin().await
    }
}

async fn several(server: &Server, count: usize, env: &Env) -> Several {
    let mut engines = Vec::new();
    for _ in 0..count {
        let options = Options { connections: 8, ..Options::new(server.url()) };
        engines.push(PostgresKv::open(options, env).await.unwrap());
    }
    Several(engines, AtomicUsize::new(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conformance_of_engines_that_share_a_store() {
    let Some(server) = Server::start() else { return };
    let env = Env::real();
    let kv = Arc::new(several(&server, 2, &env).await);
    for seed in 0..8 {
        let case = Case { kv: kv.clone(), env: env.clone(), seed };
        conformance::concurrent(&case).await.unwrap();
    }
    let case = Case { kv: kv.clone(), env, seed: 1000 };
    conformance::exact(&case).await.unwrap();
    conformance::cleared_keys(&case).await.unwrap();
    for engine in &kv.0 {
        engine.close().await.unwrap();
    }
    assert_eq!(server.sql("SELECT count(*) FROM pg_stat_activity WHERE state = 'active'"), "1");
}

async fn set(kv: &dyn Kv, env: &Env, key: &[u8], value: &[u8]) -> Result<()> {
    transact(kv, env, "set", |tx| {
        Box::pin(async move {
            tx.set(key, value);
            Ok(())
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_stays_and_close_lets_go() {
    let Some(server) = Server::start() else { return };
    let (env, options) = (Env::real(), Options::new(server.url()));
    let kv = PostgresKv::open(options.clone(), &env).await.unwrap();
    set(&kv, &env, b"a", b"1").await.unwrap();
    let mut late = kv.begin().await.unwrap();
    late.set(b"a", b"2");
    kv.close().await.unwrap();
    kv.close().await.unwrap();
    assert_eq!(late.commit().await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(kv.begin().await.err().unwrap().code(), Code::Cancelled);
    let kv = PostgresKv::open(options.clone(), &env).await.unwrap();
    assert_eq!(kv.begin().await.unwrap().get(b"a").await.unwrap().as_deref(), Some(&b"1"[..]));
    let other = Options { schema: "other".into(), ..options };
    let other = PostgresKv::open(other, &env).await.unwrap();
    assert_eq!(other.begin().await.unwrap().get(b"a").await.unwrap(), None, "another cluster");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_in_byte_order_and_pages_are_whole() {
    let Some(server) = Server::start() else { return };
    let env = Env::real();
    let kv = PostgresKv::open(Options::new(server.url()), &env).await.unwrap();
    let mut tx = kv.begin().await.unwrap();
    let name = |at: u16| [b"k".as_slice(), &at.to_be_bytes()].concat();
    (0..3000).for_each(|at| tx.set(&name(at), b"v"));
    tx.set(b"k", b"");
    tx.set(b"k\0", b"");
    tx.set(b"k\0\0\0", b"");
    tx.commit().await.unwrap();
    let mut tx = kv.begin().await.unwrap();
    let all = kiln_kv::KeyRange::all();
    let forwards = tx.range(all.clone(), RangeOptions::default()).await.unwrap();
    assert_eq!(forwards.len(), 3003);
    assert!(forwards.is_sorted());
    let mut backwards = tx.range(all, RangeOptions::default().reverse()).await.unwrap();
    backwards.reverse();
    assert_eq!(forwards, backwards);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_schemas_and_unknown_formats_are_refused() {
    let Some(server) = Server::start() else { return };
    let env = Env::real();
    let open = async |schema: &str| {
        let options = Options { schema: schema.into(), ..Options::new(server.url()) };
        PostgresKv::open(options, &env).await.err().map(|error| error.code())
    };
    server.sql("CREATE SCHEMA empty");
    assert_eq!(open("empty").await, None);
    assert_eq!(open("public").await, None);
    server.sql("CREATE SCHEMA foreigner; CREATE TABLE foreigner.thesis (text text)");
    assert_eq!(open("foreigner").await, Some(Code::Invalid));
    server.sql("UPDATE empty.meta SET format = 2");
    assert_eq!(open("empty").await, Some(Code::Unsupported));
    server.sql("UPDATE empty.meta SET type = 'something else'");
    assert_eq!(open("empty").await, Some(Code::Corrupt));
    let nowhere = Options::new(server.url() + "_not");
    let error = PostgresKv::open(nowhere, &env).await.err().unwrap();
    assert_eq!(error.code(), Code::NotFound, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_lose_data_are_refused_unless_allowed_by_name() {
    let Some(server) = Server::start() else { return };
    let env = Env::real();
    let slot = "SELECT pg_create_physical_replication_slot('standby')";
    for (danger, cure, allow) in [
        ("ALTER SYSTEM SET fsync = off", "ALTER SYSTEM RESET fsync", Allow::FsyncOff),
        (
            "ALTER SYSTEM SET full_page_writes = off",
            "ALTER SYSTEM RESET full_page_writes",
            Allow::FullPageWritesOff,
        ),
        (
            "ALTER SYSTEM SET synchronous_commit = off",
            "ALTER SYSTEM RESET synchronous_commit",
            Allow::SynchronousCommitOff,
        ),
        (slot, "SELECT pg_drop_replication_slot('standby')", Allow::AsynchronousStandbys),
    ] {
        server.sql(danger);
        server.sql("SELECT pg_reload_conf(), pg_sleep(0.3)");
        let mut options = Options::new(server.url());
        let error = PostgresKv::open(options.clone(), &env).await.err().unwrap();
        assert_eq!(error.code(), Code::NotPermitted, "{danger}: {error}");
        assert!(error.hint().is_some_and(|hint| hint.contains(allow.name())), "{error}");
        options.allow = vec![allow];
        let kv = PostgresKv::open(options, &env).await.unwrap();
        set(&kv, &env, b"a", b"1").await.unwrap();
        server.sql(cure);
        server.sql("SELECT pg_reload_conf(), pg_sleep(0.3)");
    }
    PostgresKv::open(Options::new(server.url()), &env).await.unwrap();
}
