//! Where the FoundationDB is.

use kiln_types::{Error, Result};
use std::path::PathBuf;

/// Where FoundationDB's packages put the cluster file.
pub const CLUSTER_FILE: &str = "/etc/foundationdb/fdb.cluster";
/// The client library, found as the system finds libraries.
pub const LIBRARY: &str = "libfdb_c.so";
/// The longest name of a store, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Where the FoundationDB is, and whose keys in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The file that names its coordinators; its client writes it anew when they change.
    pub cluster_file: PathBuf,
    /// FoundationDB's client library.
    pub library: PathBuf,
    /// What the keys begin with, so that several stores share one FoundationDB: `a-z`, `0-9`, `-` and `_`.
    pub name: String,
    /// Encryption; `None`: as the cluster file says, without a certificate.
    pub tls: Option<Tls>,
}

/// Certificates, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// This process's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Who signs the servers' certificates.
    pub authority: PathBuf,
    /// What the servers' certificates have to say, as FoundationDB writes it, for example `Check.Valid=1`; empty:
    /// what FoundationDB checks by itself.
    pub verify_peers: String,
}

impl Options {
    /// The store `name` in the cluster of a cluster file.
    pub fn new(cluster_file: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        let (cluster_file, name) = (cluster_file.into(), name.into());
        Self { cluster_file, library: LIBRARY.into(), name, tls: None }
    }

    pub(crate) fn prefix(&self) -> Result<Vec<u8>> {
        let is_plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        let name = self.name.as_bytes();
        if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.iter().copied().all(is_plain) {
            return Ok([name, &[0]].concat());
        }
        let error =
            Error::invalid(format!("'{}' is no name of a store in FoundationDB", self.name));
        Err(error.with_hint(format!("1 to {NAME_BYTES_MAX} of a-z, 0-9, - and _")))
    }
}
