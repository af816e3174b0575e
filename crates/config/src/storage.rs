//! The storage server's configuration.

use crate::node::{check_path, check_size};
use crate::{ClusterConfig, LogConfig, MetricsConfig, NodeConfig, ServiceConfig, human};
use kiln_types::{Error, Result, ServiceKind};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Everything that `kiln storage` is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// Who and where it is.
    pub node: NodeConfig,
    /// How it finds the cluster.
    pub cluster: ClusterConfig,
    /// Its log.
    pub log: LogConfig,
    /// Where its metrics are.
    pub metrics: MetricsConfig,
    /// How it reads and writes its disks.
    pub io: IoConfig,
    /// What it spends on filling targets that were away.
    pub recovery: RecoveryConfig,
    /// How it looks for damage.
    pub scrub: ScrubConfig,
    /// Its disks; at least one.
    pub disks: Vec<DiskConfig>,
}

/// `[io]`: how disks are read and written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IoConfig {
    /// How it speaks to the kernel.
    pub engine: IoEngine,
    /// Bytes of memory for buffers and caches.
    #[serde(with = "human::size")]
    pub memory: u64,
}

/// `[recovery]`: how targets are filled that were away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecoveryConfig {
    /// Bytes that this server sends to others in a second; 0: as many as it can.
    #[serde(with = "human::size")]
    pub rate: u64,
}

/// `[scrub]`: all chunks are read now and then, so that decay is found while another replica is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScrubConfig {
    /// Bytes of each disk that are read in a second; 0: none.
    #[serde(with = "human::size")]
    pub rate: u64,
    /// The time from the beginning of a pass to that of the next one.
    #[serde(with = "human::duration")]
    pub every: Duration,
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self { rate: 8 << 20, every: Duration::from_secs(7 * 24 * 3600) }
    }
}

/// How disks are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum IoEngine {
    /// io_uring where the kernel allows it, else plain.
    #[default]
    Auto,
    /// io_uring, or refuse to start.
    Uring,
    /// pread and pwrite on a few threads.
    Plain,
}

/// One `[[disks]]` entry: a chunk store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// A directory (the store is files in it) or a block device (the store is the device).
    pub path: PathBuf,
    /// Bytes that the store may take; of a block device, at most its size.
    #[serde(with = "human::size")]
    pub capacity: u64,
}

impl Default for IoConfig {
    fn default() -> Self {
        Self { engine: IoEngine::Auto, memory: 256 << 20 }
    }
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            node: NodeConfig::of(ServiceKind::Storage),
            cluster: ClusterConfig::default(),
            log: LogConfig::default(),
            metrics: MetricsConfig::default(),
            io: IoConfig::default(),
            recovery: RecoveryConfig::default(),
            scrub: ScrubConfig::default(),
            disks: Vec::new(),
        }
    }
}

impl ServiceConfig for StorageConfig {
    const SERVICE: ServiceKind = ServiceKind::Storage;
    const HOT: &'static [&'static str] =
        &["log.level", "log.slow", "recovery.rate", "scrub.every", "scrub.rate"];

    fn validate(&self) -> Result<()> {
        self.node.validate()?;
        self.cluster.validate()?;
        check_size("io.memory", self.io.memory, 32 << 20, 1 << 44)?;
        if self.disks.is_empty() {
            return Err(Error::invalid("no disk is configured").with_hint(
                "add a [[disks]] section with path = \"DIR or DEVICE\" and capacity = \"SIZE\"",
            ));
        }
        for (i, disk) in self.disks.iter().enumerate() {
            check_path("disks.path", &disk.path)?;
            check_size("disks.capacity", disk.capacity, 64 << 20, 1 << 50)?;
            if self.disks[..i].iter().any(|other| other.path == disk.path) {
                return Err(Error::invalid(format!(
                    "two [[disks]] sections have the path {}",
                    disk.path.display()
                )));
            }
        }
        Ok(())
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
        paths.extend(self.disks.iter_mut().map(|disk| &mut disk.path));
        paths
    }
}
