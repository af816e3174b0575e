//! `[kv]`: the key-value engine under the metadata.

use crate::human;
use crate::node::{check_count, check_size};
use kiln_types::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `[kv]`: which engine, and what it needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KvConfig {
    /// Which engine.
    pub engine: KvEngine,
    /// Bytes of memory for the cache of the embedded one.
    #[serde(with = "human::size")]
    pub cache: u64,
    /// What the engine `postgres` needs.
    pub postgres: PostgresConfig,
}

/// A key-value engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum KvEngine {
    /// In this process, under `node.data_dir`; one server opens it. One copy.
    #[default]
    Embedded,
    /// A PostgreSQL that several servers share.
    Postgres,
}

/// `[kv.postgres]`: where the PostgreSQL is and what of it is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PostgresConfig {
    /// `postgres://USER@HOST:PORT/DATABASE`, without a password.
    pub url: String,
    /// The file with the password, mode 0600; empty: none.
    pub password_file: PathBuf,
    /// The schema with the tables of the cluster.
    pub schema: String,
    /// Connections that read at the same time.
    pub connections: u32,
    /// Dangers that are accepted by name.
    pub allow: Vec<String>,
}

impl Default for KvConfig {
    fn default() -> Self {
        let (engine, postgres) = (KvEngine::Embedded, PostgresConfig::default());
        Self { engine, cache: 64 << 20, postgres }
    }
}

impl Default for PostgresConfig {
    fn default() -> Self {
        let (url, password_file, allow) = Default::default();
        Self { url, password_file, schema: "kiln".into(), connections: 16, allow }
    }
}

impl KvConfig {
    /// Checks what types cannot say.
    ///
    /// # Errors
    /// `Invalid`, naming the key and what is allowed.
    pub fn validate(&self) -> Result<()> {
        check_size("kv.cache", self.cache, 1 << 20, 1 << 40)?;
        match self.engine {
            KvEngine::Embedded => Ok(()),
            KvEngine::Postgres => self.postgres.validate(),
        }
    }

    pub(crate) fn path(&mut self) -> &mut PathBuf {
        &mut self.postgres.password_file
    }
}

impl PostgresConfig {
    fn validate(&self) -> Result<()> {
        check_count("kv.postgres.connections", self.connections, 1, 1000)?;
        let Some((_, place)) = self.url.split_once("://") else {
            let text = "kv.postgres.url is not postgres://USER@HOST:PORT/DATABASE";
            return Err(Error::invalid(text).with_hint("kv.engine is \"postgres\": it needs one"));
        };
        let user = place.split('/').next().and_then(|host| host.rsplit_once('@'));
        if user.is_some_and(|(user, _)| user.contains(':')) || place.contains("password=") {
            let text = "kv.postgres.url has a password in it, and a configuration is no secret";
            let hint = "put it into a file of mode 0600 and name that: kv.postgres.password_file, or kiln up \
                        --postgres-password";
            return Err(Error::invalid(text).with_hint(hint));
        }
        Ok(())
    }
}
