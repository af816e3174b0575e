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
    /// What the engine `foundationdb` needs.
    pub foundationdb: FoundationDbConfig,
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
    /// A FoundationDB that many servers share.
    FoundationDb,
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

/// `[kv.foundationdb]`: where the FoundationDB is and how its client speaks to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FoundationDbConfig {
    /// The file that names its coordinators.
    pub cluster_file: PathBuf,
    /// Its client library, found as the system finds libraries unless it is a path.
    pub library: PathBuf,
    /// What the cluster's keys begin with.
    pub name: String,
    /// This server's certificate, for encryption; empty: none.
    pub tls_certificate: PathBuf,
    /// The certificate's key.
    pub tls_key: PathBuf,
    /// Who signs the certificates of FoundationDB's servers.
    pub tls_authority: PathBuf,
    /// What those certificates have to say, as FoundationDB writes it; empty: what it checks by itself.
    pub tls_verify_peers: String,
}

impl Default for KvConfig {
    fn default() -> Self {
        let (postgres, foundationdb) = (PostgresConfig::default(), FoundationDbConfig::default());
        Self { engine: KvEngine::Embedded, cache: 64 << 20, postgres, foundationdb }
    }
}

impl Default for FoundationDbConfig {
    fn default() -> Self {
        let (tls_certificate, tls_key, tls_authority, tls_verify_peers) = Default::default();
        let cluster_file = "/etc/foundationdb/fdb.cluster".into();
        let (library, name) = ("libfdb_c.so".into(), "kiln".into());
        Self {
            cluster_file,
            library,
            name,
            tls_certificate,
            tls_key,
            tls_authority,
            tls_verify_peers,
        }
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
            KvEngine::FoundationDb => self.foundationdb.validate(),
        }
    }

    /// The files that are named relative to the configuration.
    pub(crate) fn paths(&mut self) -> Vec<&mut PathBuf> {
        let fdb = &mut self.foundationdb;
        vec![
            &mut self.postgres.password_file,
            &mut fdb.cluster_file,
            &mut fdb.tls_certificate,
            &mut fdb.tls_key,
            &mut fdb.tls_authority,
        ]
    }
}

impl FoundationDbConfig {
    fn validate(&self) -> Result<()> {
        let files = [&self.tls_certificate, &self.tls_key, &self.tls_authority];
        let named = files.iter().filter(|file| !file.as_os_str().is_empty()).count();
        if named != 0 && named != files.len() {
            let text = "kv.foundationdb names a part of what encryption needs";
            let hint = "set tls_certificate, tls_key and tls_authority, or none of them";
            return Err(Error::invalid(text).with_hint(hint));
        }
        Ok(())
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
