//! Every service's configuration: plain structs with defaults, validation, a commented example, and the
//! layers file < environment < flag. Also the files that hold secrets.
//!
//! Invariants: an unknown key is refused in every layer; the example of a service parses to its defaults;
//! what [`load`] returns has passed `validate`. Only binaries call [`load`]: libraries take the structs.
#![forbid(unsafe_code)]

mod files;
mod human;
mod kv;
mod layers;
mod meta;
mod mgmtd;
mod node;
mod secrets;
mod settings;
mod storage;

pub use files::{create_file, write_file};
pub use human::{
    address, duration, format_address, format_duration, format_size, parse_address, parse_duration,
    parse_size, size,
};
pub use kv::{FoundationDbConfig, KvConfig, KvEngine, PostgresConfig};
pub use layers::{Setting, load, parse_file, to_toml};
pub use meta::{ClientLeaseConfig, MetaConfig, NewFileConfig};
pub use mgmtd::{BootstrapConfig, LeaseConfig, MgmtdConfig, RebuildConfig};
pub use node::{ClusterConfig, LogConfig, LogFormat, LogLevel, MetricsConfig, NodeConfig};
pub use secrets::{
    create_credential, create_server_key, read_credential, read_password, read_server_key,
};
pub use settings::{check_setting, settings, with_settings};
pub use storage::{DiskConfig, IoConfig, IoEngine, RecoveryConfig, ScrubConfig, StorageConfig};

use kiln_types::{Result, ServiceKind};

/// What all service configurations have in common.
pub trait ServiceConfig: serde::Serialize + serde::de::DeserializeOwned + Clone + Default {
    /// The service that it configures.
    const SERVICE: ServiceKind;
    /// The keys that may change while it runs; see [`with_settings`].
    const HOT: &'static [&'static str];

    /// Checks what types cannot say.
    ///
    /// # Errors
    /// `Invalid`, naming the key and what is allowed.
    fn validate(&self) -> Result<()>;

    /// The part that every server has.
    fn node(&self) -> &NodeConfig;

    /// The same, for what only the running server knows.
    fn node_mut(&mut self) -> &mut NodeConfig;

    /// Where and how it logs.
    fn log(&self) -> &LogConfig;

    /// Where its metrics are.
    fn metrics(&self) -> &MetricsConfig;

    /// Its paths; relative ones in a file count from the directory of that file.
    fn paths(&mut self) -> Vec<&mut std::path::PathBuf>;
}

/// A commented configuration file of `service`; it says the defaults.
pub fn example(service: ServiceKind) -> &'static str {
    match service {
        ServiceKind::Mgmtd => include_str!("examples/mgmtd.toml"),
        ServiceKind::Meta => include_str!("examples/meta.toml"),
        ServiceKind::Storage => include_str!("examples/storage.toml"),
    }
}
