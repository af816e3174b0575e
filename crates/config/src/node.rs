//! The parts that several services share: node, cluster, log.

use crate::human;
use kiln_types::{Error, NodeId, Result, ServiceKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `[node]`: who this server is, where it listens and where it keeps its things.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's id, unique in the cluster and never given to another data directory.
    pub id: NodeId,
    /// Where it listens. Loopback unless the operator says otherwise; port 0: any free one.
    #[serde(default = "loopback")]
    pub listen: SocketAddr,
    /// The `host:port` that others use to reach it; empty: the address that it listens on.
    #[serde(default)]
    pub advertise: String,
    /// The directory of its own state.
    pub data_dir: PathBuf,
    /// The file of the cluster's server key, mode 0600.
    pub server_key: PathBuf,
    /// Failure-domain tags: host, rack, power.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// The manager's port unless it is told another one.
const MGMTD_PORT: u16 = 7411;

fn loopback() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)
}

impl NodeConfig {
    /// The defaults of `service`.
    pub fn of(service: ServiceKind) -> Self {
        let (id, port) = match service {
            ServiceKind::Mgmtd => (1, MGMTD_PORT),
            ServiceKind::Meta => (2, 0),
            ServiceKind::Storage => (101, 0),
        };
        Self {
            id: NodeId(id),
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            advertise: String::new(),
            data_dir: Path::new("/var/lib/kiln").join(service.to_string()),
            server_key: "/etc/kiln/server.key".into(),
            tags: BTreeMap::new(),
        }
    }

    /// The address to register, given the one that was bound.
    pub fn advertised(&self, bound: SocketAddr) -> String {
        if self.advertise.is_empty() { bound.to_string() } else { self.advertise.clone() }
    }

    /// Where others reach what this server bound to `bound`: on the host that it advertises, where it
    /// listens on every address.
    pub fn reachable(&self, bound: SocketAddr) -> String {
        match self.advertise.rsplit_once(':') {
            Some((host, _)) if bound.ip().is_unspecified() => format!("{host}:{}", bound.port()),
            _ => bound.to_string(),
        }
    }

    pub(crate) fn paths(&mut self) -> [&mut PathBuf; 2] {
        [&mut self.data_dir, &mut self.server_key]
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if self.id.0 == 0 {
            return Err(Error::invalid("node.id is 0; ids start at 1"));
        }
        if self.listen.ip().is_unspecified() && self.advertise.is_empty() {
            return Err(Error::invalid(format!(
                "node.listen is {}, every address of this machine, and node.advertise is empty",
                self.listen
            ))
            .with_hint(
                "set node.advertise to the host:port under which others reach this server",
            ));
        }
        if !self.advertise.is_empty() {
            check_address("node.advertise", &self.advertise)?;
        }
        check_path("node.data_dir", &self.data_dir)?;
        check_path("node.server_key", &self.server_key)
    }
}

/// `[cluster]`: how a server finds the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// The managers' addresses, `host:port`.
    pub mgmtd: Vec<String>,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self { mgmtd: vec![format!("127.0.0.1:{MGMTD_PORT}")] }
    }
}

impl ClusterConfig {
    pub(crate) fn validate(&self) -> Result<()> {
        if self.mgmtd.is_empty() {
            return Err(Error::invalid("cluster.mgmtd is empty")
                .with_hint("name at least one manager, for example [\"127.0.0.1:7411\"]"));
        }
        self.mgmtd.iter().try_for_each(|address| check_address("cluster.mgmtd", address))
    }
}

/// `[metrics]`: where the metrics of this process can be read, without a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Where it listens; loopback unless the operator says otherwise. Port 0: any free one; `None`
    /// (empty): nowhere.
    #[serde(with = "human::address")]
    pub listen: Option<SocketAddr>,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { listen: Some(loopback()) }
    }
}

/// `[log]`: what is logged, how and where to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// The least level that is logged.
    pub level: LogLevel,
    /// Text for people or JSON for machines.
    pub format: LogFormat,
    /// The file that is appended to; empty: standard error.
    pub file: PathBuf,
    /// A request that takes so long or longer is logged with where its time went; zero: none is.
    #[serde(with = "human::duration")]
    pub slow: Duration,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: LogLevel::default(),
            format: LogFormat::default(),
            file: PathBuf::new(),
            slow: Duration::from_secs(1),
        }
    }
}

/// A level of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what failed.
    Error,
    /// And what looks wrong.
    Warn,
    /// And what an operator wants to know.
    #[default]
    Info,
    /// And each request.
    Debug,
    /// And each step.
    Trace,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

fn check_address(key: &str, address: &str) -> Result<()> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(port)) if port > 0 => Ok(()),
        _ => Err(Error::invalid(format!("{key}: '{address}' is not host:port"))
            .with_hint("for example 127.0.0.1:7411 or storage-3.example.org:7411")),
    }
}

pub(crate) fn check_path(key: &str, path: &Path) -> Result<()> {
    if path.as_os_str().is_empty() {
        return Err(Error::invalid(format!("{key} is empty")));
    }
    Ok(())
}

pub(crate) fn check_size(key: &str, bytes: u64, least: u64, most: u64) -> Result<()> {
    if (least..=most).contains(&bytes) {
        return Ok(());
    }
    let [bytes, least, most] = [bytes, least, most].map(human::format_size);
    Err(Error::invalid(format!("{key} is {bytes}; allowed is {least} to {most}")))
}

pub(crate) fn check_count(key: &str, count: u32, least: u32, most: u32) -> Result<()> {
    if (least..=most).contains(&count) {
        return Ok(());
    }
    Err(Error::invalid(format!("{key} is {count}; allowed is {least} to {most}")))
}
