//! The key-value engine that a server's configuration names.

use kiln_config::{KvConfig, KvEngine, NodeConfig, PostgresConfig};
use kiln_env::Env;
use kiln_kv::Kv;
use kiln_kv_embedded::EmbeddedKv;
use kiln_kv_postgres::PostgresKv;
use kiln_types::{Context, Result};
use std::sync::Arc;

/// An open engine; clones share it.
#[derive(Clone)]
pub(crate) enum Engine {
    Embedded(Arc<EmbeddedKv>),
    Postgres(Arc<PostgresKv>),
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
        }
    }

    pub(crate) fn kv(&self) -> Arc<dyn Kv> {
        match self {
            Self::Embedded(kv) => kv.clone(),
            Self::Postgres(kv) => kv.clone(),
        }
    }

    /// Ends when nothing works any more until the engine is opened anew.
    pub(crate) async fn failed(&self) {
        match self {
            Self::Embedded(kv) => kv.failed().await,
            // It connects anew by itself.
            Self::Postgres(_) => std::future::pending().await,
        }
    }

    /// Makes what waits durable and lets go.
    pub(crate) async fn close(&self) -> Result<()> {
        match self {
            Self::Embedded(kv) => kv.close().await,
            Self::Postgres(kv) => kv.close().await,
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
