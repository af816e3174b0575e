//! The manager's configuration.

use crate::node::check_count;
use crate::{KvConfig, LogConfig, MetricsConfig, NodeConfig, ServiceConfig, human};
use kiln_types::{Error, Result, ServiceKind};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Everything that `kiln mgmtd` is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MgmtdConfig {
    /// Who and where it is.
    pub node: NodeConfig,
    /// Its log.
    pub log: LogConfig,
    /// Where its metrics are.
    pub metrics: MetricsConfig,
    /// The engine that keeps its state.
    pub kv: KvConfig,
    /// How the first chain table is made.
    pub bootstrap: BootstrapConfig,
    /// How servers prove that they live.
    pub lease: LeaseConfig,
    /// When lost targets are made anew.
    pub rebuild: RebuildConfig,
}

/// `[rebuild]`: what is gone for long is made anew on other servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RebuildConfig {
    /// A target that has been gone for this long is rebuilt elsewhere; 0s: never by itself. The manager
    /// counts from when it noticed, anew after its restart.
    #[serde(with = "human::duration")]
    pub after: Duration,
}

/// `[bootstrap]`: the first chain table, made once, when enough storage servers have registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootstrapConfig {
    /// How many storage servers it waits for.
    pub storage_servers: u32,
    /// Copies of each chunk: targets in a chain.
    pub replicas: u32,
    /// Targets on each disk.
    pub targets_per_disk: u32,
    /// Serving targets below which a chain takes no writes; 0: see [`Self::min_serving`].
    pub min_serving: u32,
    /// The name of the first client credential, known from the start; its holder may do everything.
    pub credential: String,
}

/// `[lease]`: heartbeats and how long one counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeaseConfig {
    /// A server that has not been heard for this long is declared dead.
    #[serde(with = "human::duration")]
    pub duration: Duration,
    /// How often a server reports.
    #[serde(with = "human::duration")]
    pub heartbeat: Duration,
}

impl Default for MgmtdConfig {
    fn default() -> Self {
        Self {
            node: NodeConfig::of(ServiceKind::Mgmtd),
            log: LogConfig::default(),
            metrics: MetricsConfig::default(),
            kv: KvConfig::default(),
            bootstrap: BootstrapConfig::default(),
            lease: LeaseConfig::default(),
            rebuild: RebuildConfig::default(),
        }
    }
}

impl Default for RebuildConfig {
    fn default() -> Self {
        Self { after: Duration::from_secs(30 * 60) }
    }
}

impl RebuildConfig {
    fn validate(&self) -> Result<()> {
        let least = Duration::from_secs(1);
        if !self.after.is_zero() && self.after < least {
            return Err(Error::invalid(format!(
                "rebuild.after is {}; allowed is 0s (never) or 1s and more",
                human::format_duration(self.after)
            )));
        }
        Ok(())
    }
}

impl Default for BootstrapConfig {
    fn default() -> Self {
        Self {
            storage_servers: 3,
            replicas: 3,
            targets_per_disk: 6,
            min_serving: 0,
            credential: "admin".into(),
        }
    }
}

impl BootstrapConfig {
    /// The least number of serving targets for writes: what was configured, else a majority of three or
    /// more replicas, else 1.
    pub fn min_serving(&self) -> u32 {
        match (self.min_serving, self.replicas) {
            (0, 0..=2) => 1,
            (0, replicas) => replicas / 2 + 1,
            (configured, _) => configured,
        }
    }

    fn validate(&self) -> Result<()> {
        check_count("bootstrap.storage_servers", self.storage_servers, 1, 100_000)?;
        check_count("bootstrap.replicas", self.replicas, 1, 8)?;
        check_count("bootstrap.targets_per_disk", self.targets_per_disk, 1, 64)?;
        if self.replicas > self.storage_servers {
            return Err(Error::invalid(format!(
                "bootstrap.replicas is {} and bootstrap.storage_servers only {}",
                self.replicas, self.storage_servers
            ))
            .with_hint("each replica of a chunk is on another server: add servers or lower it"));
        }
        if self.credential.is_empty() || self.credential.len() > 64 {
            return Err(Error::invalid(
                "bootstrap.credential is empty or longer than 64 bytes; it is a name such as admin",
            ));
        }
        if self.min_serving > self.replicas {
            return Err(Error::invalid(format!(
                "bootstrap.min_serving is {}; allowed is 0 (automatic) to bootstrap.replicas, {}",
                self.min_serving, self.replicas
            )));
        }
        Ok(())
    }
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self { duration: Duration::from_secs(5), heartbeat: Duration::from_millis(500) }
    }
}

impl LeaseConfig {
    fn validate(&self) -> Result<()> {
        let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(600));
        if !(shortest..=longest).contains(&self.duration) {
            return Err(Error::invalid(format!(
                "lease.duration is {}; allowed is 100ms to 10m",
                human::format_duration(self.duration)
            )));
        }
        if self.heartbeat.is_zero() || self.heartbeat * 4 > self.duration {
            return Err(Error::invalid(format!(
                "lease.heartbeat is {}; allowed is more than 0 to a quarter of lease.duration, {}",
                human::format_duration(self.heartbeat),
                human::format_duration(self.duration / 4)
            )));
        }
        Ok(())
    }
}

impl ServiceConfig for MgmtdConfig {
    const SERVICE: ServiceKind = ServiceKind::Mgmtd;
    const HOT: &'static [&'static str] = &["log.level", "log.slow", "rebuild.after"];

    fn validate(&self) -> Result<()> {
        self.node.validate()?;
        self.kv.validate()?;
        self.bootstrap.validate()?;
        self.lease.validate()?;
        self.rebuild.validate()
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
