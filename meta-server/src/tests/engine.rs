//! The engine under the store: the one in memory, or with the feature `test-foundationdb` the one over FoundationDB,
//! through the double of its client library.

use kiln_env::Env;
use kiln_kv::Kv;
use std::sync::Arc;

#[cfg(not(feature = "test-foundationdb"))]
pub(crate) async fn new(env: &Env) -> Arc<dyn Kv> {
    Arc::new(kiln_kv::MemoryKv::new(env))
}

#[cfg(feature = "test-foundationdb")]
pub(crate) async fn new(env: &Env) -> Arc<dyn Kv> {
    Arc::new(double::Alone::new(env).await)
}

#[cfg(feature = "test-foundationdb")]
mod double {
    use async_trait::async_trait;
    use kiln_env::Env;
    use kiln_kv::{Kv, Transaction};
    use kiln_kv_fdb::{FdbKv, Options};
    use kiln_types::Result;
    use tempfile::TempDir;

    /// A store that nobody else has, as the engine in memory.
    pub(super) struct Alone {
        kv: FdbKv,
        _cluster: TempDir,
    }

    impl Alone {
        pub(super) async fn new(env: &Env) -> Self {
            let cluster = tempfile::tempdir().expect("a directory");
            let file = cluster.path().join("fdb.cluster");
            let (conflict, unknown) = (chance(env, "kv.conflict"), chance(env, "kv.maybe"));
            let (seed, other) = (env.random_u64(), chance(env, "kv.read") / 64.0);
            let settings = format!(
                "at_once = true\nseed = {seed}\nconflict = {conflict}\nunknown = {unknown}\n\
                 too_old = {other}\nbehind = {other}\n"
            );
            std::fs::write(&file, settings).expect("a cluster file");
            let library = std::env::current_exe().expect("this test's path");
            let library = library.with_file_name("libkiln_fdb_double.so");
            let built = "cargo build -p kiln-fdb-double builds it";
            assert!(library.exists(), "{} is missing; {built}", library.display());
            let options = Options { library, ..Options::new(file, "test") };
            let kv = FdbKv::open(options, env).await.expect("an open store");
            Self { kv, _cluster: cluster }
        }
    }

    /// How often a fault point strikes. A transaction reads many times and commits once: its reads fail more rarely.
    fn chance(env: &Env, point: &'static str) -> f64 {
        const TRIES: u32 = 64;
        let struck = (0..TRIES).filter(|_| env.fault(point)).count();
        struck as f64 / f64::from(TRIES)
    }

    #[async_trait]
    impl Kv for Alone {
        async fn begin(&self) -> Result<Box<dyn Transaction>> {
            self.kv.begin().await
        }

        fn is_exclusive(&self) -> bool {
            true
        }
    }
}
