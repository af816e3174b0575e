//! The key-value engine that a server's configuration names.

use kiln_config::{KvConfig, KvEngine, NodeConfig, PostgresConfig};
use kiln_env::Env;
use kiln_kv::Kv;
use kiln_kv_embedded::EmbeddedKv;
use kiln_kv_postgres::PostgresKv;
#[cfg(not(feature = "foundationdb"))]
use kiln_types::{Code, Error};
use kiln_types::{Context, Result};
use std::sync::Arc;

/// An open engine; clones share it.
#[derive(Clone)]
pub(crate) enum Engine {
    Embedded(Arc<EmbeddedKv>),
    Postgres(Arc<PostgresKv>),
    #[cfg(feature = "foundationdb")]
    FoundationDb(Arc<kiln_kv_fdb::FdbKv>),
}

impl Engine {
    /// Opens it: the embedded one in a directory of its own below the server's.
    pub(crate) async fn open(node: &NodeConfig, kv: &KvConfig, env: &Env) -> Result<Self> {
        match kv.engine {
            KvEngine::Embedded => {
                let options =
                    kiln_kv_embedded::Options { cache_bytes: kv.cache, ..Default::default() };
                let opened = EmbeddedKv::open(node.data_dir.join("kv"), env, options).await?;
                Ok(Self::Embedded(Arc::new(opened)))
            }
            KvEngine::Postgres => {
                let opened = PostgresKv::open(postgres(&kv.postgres)?, env).await;
                Ok(Self::Postgres(Arc::new(opened.context("kv.postgres")?)))
            }
            #[cfg(feature = "foundationdb")]
            KvEngine::FoundationDb => {
                let opened = kiln_kv_fdb::FdbKv::open(foundationdb(&kv.foundationdb), env).await;
                Ok(Self::FoundationDb(Arc::new(opened.context("kv.foundationdb")?)))
            }
            #[cfg(not(feature = "foundationdb"))]
            KvEngine::FoundationDb => {
                let error = Error::new(Code::Unsupported, "this build does not know FoundationDB");
                Err(error.with_hint(
                    "build one that does: cargo build --release --features foundationdb",
                ))
            }
        }
    }

    pub(crate) fn kv(&self) -> Arc<dyn Kv> {
        match self {
            Self::Embedded(kv) => kv.clone(),
            Self::Postgres(kv) => kv.clone(),
            #[cfg(feature = "foundationdb")]
            Self::FoundationDb(kv) => kv.clone(),
        }
    }

    /// Ends when nothing works any more until the engine is opened anew.
    pub(crate) async fn failed(&self) {
        match self {
            Self::Embedded(kv) => kv.failed().await,
            // They connect anew by themselves.
            Self::Postgres(_) => std::future::pending().await,
            #[cfg(feature = "foundationdb")]
            Self::FoundationDb(_) => std::future::pending().await,
        }
    }

    /// Makes what waits durable and lets go.
    pub(crate) async fn close(&self) -> Result<()> {
        match self {
            Self::Embedded(kv) => kv.close().await,
            Self::Postgres(kv) => kv.close().await,
            // What it has answered is durable, and nothing waits inside.
            #[cfg(feature = "foundationdb")]
            Self::FoundationDb(_) => Ok(()),
        }
    }
}

/// Whether the PostgreSQL that a configuration names can keep a store; changes nothing.
pub(crate) async fn check(kv: &KvConfig, env: &Env) -> Result<()> {
    kv.validate()?;
    PostgresKv::check(postgres(&kv.postgres)?, env).await
}

fn postgres(config: &PostgresConfig) -> Result<kiln_kv_postgres::Options> {
    let allow = config.allow.iter().map(|name| name.parse()).collect::<Result<_>>();
    let password = match config.password_file.as_os_str().is_empty() {
        true => None,
        false => Some(kiln_config::read_password(&config.password_file)?.into_bytes()),
    };
    Ok(kiln_kv_postgres::Options {
        url: config.url.clone(),
        password,
        schema: config.schema.clone(),
        connections: config.connections,
        allow: allow.context("kv.postgres.allow")?,
    })
}

#[cfg(feature = "foundationdb")]
fn foundationdb(config: &kiln_config::FoundationDbConfig) -> kiln_kv_fdb::Options {
    let tls = kiln_kv_fdb::Tls {
        certificate: config.tls_certificate.clone(),
        key: config.tls_key.clone(),
        authority: config.tls_authority.clone(),
        verify_peers: config.tls_verify_peers.clone(),
    };
    kiln_kv_fdb::Options {
        cluster_file: config.cluster_file.clone(),
        library: config.library.clone(),
        name: config.name.clone(),
        tls: (!config.tls_certificate.as_os_str().is_empty()).then_some(tls),
    }
}
