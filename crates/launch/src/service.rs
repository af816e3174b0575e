//! The servers of a local cluster: their names, ids and configuration.

use crate::Shape;
use kiln_config::{
    BootstrapConfig, DiskConfig, KvConfig, MetaConfig, MgmtdConfig, NodeConfig, StorageConfig,
    to_toml,
};
use kiln_types::{ClusterId, NodeId, Result, ServiceKind};
use std::path::PathBuf;

/// One server of a local cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `mgmtd`, `meta` (of several: `meta-1`, ..), `storage-1`, ..: its directory and how people name it.
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
        let mut services = vec![one(ServiceKind::Mgmtd, "mgmtd".into(), 1)];
        services.extend((1..=shape.meta).map(|i| {
            let name = if shape.meta == 1 { "meta".into() } else { format!("meta-{i}") };
            one(ServiceKind::Meta, name, u64::from(1 + i))
        }));
        services.extend(
            (1..=shape.storage)
                .map(|i| one(ServiceKind::Storage, format!("storage-{i}"), u64::from(100 + i))),
        );
        services
    }

    /// The configuration file that it starts with. Paths are relative to the file, so that the cluster's
    /// directory can be moved; addresses are given as flags at each start.
    pub(crate) fn config(&self, cluster: ClusterId, shape: &Shape) -> Result<String> {
        let node = NodeConfig {
            id: self.node,
            data_dir: ".".into(),
            server_key: "../server.key".into(),
            listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
            ..NodeConfig::of(self.kind)
        };
        // A schema for each cluster: several may use one database.
        let kv = || match &shape.postgres {
            Some(postgres) => postgres.kv(format!("kiln_{cluster}")),
            None => KvConfig::default(),
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
                kv: kv(),
                ..MgmtdConfig::default()
            }),
            ServiceKind::Meta => to_toml(&MetaConfig { node, kv: kv(), ..MetaConfig::default() }),
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
