//! The metadata server's configuration.

use crate::node::check_count;
use crate::{ClusterConfig, KvConfig, LogConfig, MetricsConfig, NodeConfig, ServiceConfig, human};
use kiln_types::{
    CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Error, Result, ServiceKind,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Everything that `kiln meta` is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetaConfig {
    /// Who and where it is.
    pub node: NodeConfig,
    /// How it finds the cluster.
    pub cluster: ClusterConfig,
    /// Its log.
    pub log: LogConfig,
    /// Where its metrics are.
    pub metrics: MetricsConfig,
    /// The engine that keeps the metadata.
    pub kv: KvConfig,
    /// How files are laid out where no directory says otherwise.
    pub new_file: NewFileConfig,
    /// How long clients hold what they were given.
    pub client: ClientLeaseConfig,
}

/// `[new_file]`: placement of new files; a directory may have its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NewFileConfig {
    /// Bytes of a chunk: a power of two from 64 KiB to 64 MiB.
    #[serde(with = "human::size")]
    pub chunk: u64,
    /// Over how many chains a file's chunks go round; 0: over all of the chain table, at most
    /// [`Self::STRIPE_MAX`].
    pub stripe: u32,
}

impl NewFileConfig {
    /// The widest stripe that 0 stands for.
    pub const STRIPE_MAX: u32 = 64;

    /// Bytes of a chunk, as layouts have it.
    pub fn chunk_bytes(&self) -> u32 {
        u32::try_from(self.chunk).unwrap_or(CHUNK_BYTES_MAX)
    }

    fn validate(&self) -> Result<()> {
        let allowed = u64::from(CHUNK_BYTES_MIN)..=u64::from(CHUNK_BYTES_MAX);
        if !self.chunk.is_power_of_two() || !allowed.contains(&self.chunk) {
            return Err(Error::invalid(format!(
                "new_file.chunk is {}; allowed is a power of two from 64KiB to 64MiB",
                human::format_size(self.chunk)
            )));
        }
        check_count("new_file.stripe", self.stripe, 0, 65_536)
    }
}

impl Default for NewFileConfig {
    fn default() -> Self {
        Self { chunk: u64::from(CHUNK_BYTES_DEFAULT), stripe: 0 }
    }
}

/// `[client]`: leases that clients get from this server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientLeaseConfig {
    /// A client that was not heard for this long loses its open files.
    #[serde(with = "human::duration")]
    pub lease: Duration,
    /// How long a capability opens chunks; at most the lease.
    #[serde(with = "human::duration")]
    pub capability: Duration,
}

impl Default for ClientLeaseConfig {
    fn default() -> Self {
        Self { lease: Duration::from_secs(60), capability: Duration::from_secs(60) }
    }
}

impl ClientLeaseConfig {
    fn validate(&self) -> Result<()> {
        let (shortest, longest) = (Duration::from_secs(1), Duration::from_secs(3600));
        if !(shortest..=longest).contains(&self.lease) {
            return Err(Error::invalid(format!(
                "client.lease is {}; allowed is 1s to 1h",
                human::format_duration(self.lease)
            )));
        }
        if self.capability < shortest || self.capability > self.lease {
            return Err(Error::invalid(format!(
                "client.capability is {}; allowed is 1s to client.lease, {}",
                human::format_duration(self.capability),
                human::format_duration(self.lease)
            )));
        }
        Ok(())
    }
}

impl Default for MetaConfig {
    fn default() -> Self {
        Self {
            node: NodeConfig::of(ServiceKind::Meta),
            cluster: ClusterConfig::default(),
            log: LogConfig::default(),
            metrics: MetricsConfig::default(),
            kv: KvConfig::default(),
            new_file: NewFileConfig::default(),
            client: ClientLeaseConfig::default(),
        }
    }
}

impl ServiceConfig for MetaConfig {
    const SERVICE: ServiceKind = ServiceKind::Meta;
    const HOT: &'static [&'static str] = &["log.level", "log.slow"];

    fn validate(&self) -> Result<()> {
        self.node.validate()?;
        self.cluster.validate()?;
        self.kv.validate()?;
        self.new_file.validate()?;
        self.client.validate()
    }

    fn node(&self) -> &NodeConfig {
        &self.node
    }

    fn node_mut(&mut self) -> &mut NodeConfig {
        &mut self.node
    }

    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn metrics(&self) -> &MetricsConfig {
        &self.metrics
    }

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let [data_dir, server_key] = self.node.paths();
        let mut paths = vec![data_dir, server_key, &mut self.log.file];
        paths.extend(self.kv.paths());
        paths
    }
}
