//! The servers of a local cluster: their names, ids and configuration.

use crate::Shape;
use kiln_config::{
    BootstrapConfig, DiskConfig, MetaConfig, MgmtdConfig, NodeConfig, StorageConfig, to_toml,
};
use kiln_types::{NodeId, Result, ServiceKind};
use std::path::PathBuf;

/// One server of a local cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `mgmtd`, `meta`, `storage-1`, ..: its directory and how people name it.
    pub name: String,
    /// What it runs.
    pub kind: ServiceKind,
    /// Its id in the cluster.
    pub node: NodeId,
}

/// The name of the credential that a local cluster's client has.
pub(crate) const CREDENTIAL: &str = "admin";

impl Service {
    /// All servers, in the order in which they start.
    pub fn all(shape: &Shape) -> Vec<Self> {
        let one = |kind: ServiceKind, name: String, node| Self { name, kind, node: NodeId(node) };
        let mut services = vec![
            one(ServiceKind::Mgmtd, "mgmtd".into(), 1),
            one(ServiceKind::Meta, "meta".into(), 2),
        ];
        services.extend(
            (1..=shape.storage)
                .map(|i| one(ServiceKind::Storage, format!("storage-{i}"), u64::from(100 + i))),
        );
        services
    }

    /// The configuration file that it starts with. Paths are relative to the file, so that the cluster's
    /// directory can be moved; addresses are given as flags at each start.
    pub(crate) fn config(&self, shape: &Shape) -> Result<String> {
        let node = NodeConfig {
            id: self.node,
            data_dir: ".".into(),
            server_key: "../server.key".into(),
            listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
            ..NodeConfig::of(self.kind)
        };
        match self.kind {
            ServiceKind::Mgmtd => to_toml(&MgmtdConfig {
                node,
                bootstrap: BootstrapConfig {
                    storage_servers: shape.storage,
                    replicas: shape.replicas,
                    credential: CREDENTIAL.into(),
                    ..BootstrapConfig::default()
                },
                ..MgmtdConfig::default()
            }),
            ServiceKind::Meta => to_toml(&MetaConfig { node, ..MetaConfig::default() }),
            ServiceKind::Storage => to_toml(&StorageConfig {
                node,
                disks: (1..=shape.disks)
                    .map(|i| DiskConfig {
                        path: PathBuf::from(format!("disk-{i}")),
                        capacity: shape.capacity,
                    })
                    .collect(),
                ..StorageConfig::default()
            }),
        }
    }
}
