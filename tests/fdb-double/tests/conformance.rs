//! The engine over FoundationDB runs the conformance suite through the double of its client library.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use async_trait::async_trait;
use kiln_env::Env;
use kiln_kv::conformance::{self, Case};
use kiln_kv::{KeyRange, Kv, RangeOptions, Transaction, transact};
use kiln_kv_fdb::{FdbKv, Options};
use kiln_types::{Code, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

/// Engines that take turns, as several servers over one store would.
struct Several(Vec<FdbKv>, AtomicUsize);

#[async_trait]
impl Kv for Several {
    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        self.0[self.1.fetch_add(1, Ordering::Relaxed) % self.0.len()].begin().await
    }
}

/// A directory with a cluster file of the double.
struct Cluster(TempDir);

impl Cluster {
    fn new(settings: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("fdb.cluster"), settings).unwrap();
        Self(directory)
    }

    fn options(&self, name: &str) -> Options {
        let file = self.0.path().join("fdb.cluster");
        Options { library: library(), ..Options::new(file, name) }
    }

    async fn several(&self, env: &Env) -> Arc<Several> {
        let (one, other) = (self.options("test"), self.options("test"));
        let engines =
            [FdbKv::open(one, env).await.unwrap(), FdbKv::open(other, env).await.unwrap()];
        Arc::new(Several(engines.into(), AtomicUsize::new(0)))
    }
}

/// The double, which cargo built beside this test.
fn library() -> PathBuf {
    std::env::current_exe().unwrap().with_file_name("libkiln_fdb_double.so")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conformance_of_engines_that_share_a_store() {
    let (cluster, env) = (Cluster::new(""), Env::real());
    let kv = cluster.several(&env).await;
    for seed in 0..8 {
        let case = Case { kv: kv.clone(), env: env.clone(), seed };
        conformance::concurrent(&case).await.unwrap();
    }
    let case = Case { kv, env, seed: 1000 };
    conformance::exact(&case).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conformance_while_foundationdb_fails() {
    let env = Env::real();
    for seed in 0..8 {
        let settings = format!(
            "seed = {seed}\nconflict = 0.03\nunknown = 0.05\ntoo_old = 0.01\nbehind = 0.01\noutage = 0.0005"
        );
        let cluster = Cluster::new(&settings);
        let kv = cluster.several(&env).await;
        let case = Case { kv, env: env.clone(), seed };
        conformance::concurrent(&case).await.unwrap();
    }
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
async fn stores_share_a_foundationdb_and_stay() {
    let directory = tempfile::tempdir().unwrap();
    let settings = format!("directory = {}", directory.path().display());
    let (cluster, env) = (Cluster::new(&settings), Env::real());
    let kv = FdbKv::open(cluster.options("one"), &env).await.unwrap();
    let other = FdbKv::open(cluster.options("one2"), &env).await.unwrap();
    let name = |at: u16| [b"k".as_slice(), &at.to_be_bytes()].concat();
    let mut tx = kv.begin().await.unwrap();
    (0..3000).for_each(|at| tx.set(&name(at), b"v"));
    tx.commit().await.unwrap();
    set(&other, &env, b"a", b"1").await.unwrap();
    drop((kv, other));
    let kv = FdbKv::open(cluster.options("one"), &env).await.unwrap();
    let mut tx = kv.begin().await.unwrap();
    let forwards = tx.range(KeyRange::all(), RangeOptions::default()).await.unwrap();
    assert_eq!(forwards.len(), 3000, "its own and no others");
    assert!(forwards.is_sorted());
    let backwards = RangeOptions::default().reverse();
    let mut backwards = tx.range(KeyRange::all(), backwards).await.unwrap();
    backwards.reverse();
    assert_eq!(forwards, backwards);
    for limit in [1, 16, 17, 300, 2999] {
        let page = tx.range(KeyRange::all(), RangeOptions::limit(limit)).await.unwrap();
        assert_eq!(page, forwards[..limit]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_opened_says_why() {
    let (cluster, env) = (Cluster::new("nonsense = 1"), Env::real());
    let open = async |options: Options| {
        let error = FdbKv::open(options, &env).await.err().unwrap();
        assert!(error.hint().is_some() || error.code() == Code::Invalid, "{error}");
        error.code()
    };
    assert_eq!(open(cluster.options("one")).await, Code::Invalid);
    assert_eq!(open(cluster.options("One/two")).await, Code::Invalid);
    let nowhere = Options { cluster_file: "/nowhere/fdb.cluster".into(), ..cluster.options("one") };
    assert_eq!(open(nowhere).await, Code::NotFound);
    let another = Options { library: "libfdb_c.so".into(), ..cluster.options("one") };
    assert_eq!(open(another).await, Code::Invalid, "one client in a process");
}
