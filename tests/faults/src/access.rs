//! How clients reach the cluster, and from where.

use crate::namespaces::Host;
use crate::shell;
use kiln_types::{Credential, Result};
use std::path::PathBuf;
use std::process::Output;

pub(crate) struct Access {
    /// Hosts of clients; at least one.
    pub(crate) hosts: Vec<Host>,
    /// Where the manager listens.
    pub(crate) manager: String,
    /// The file of the credential.
    pub(crate) credential: PathBuf,
    /// The `kiln` binary.
    pub(crate) program: PathBuf,
}

impl Access {
    pub(crate) fn credential(&self) -> Result<Credential> {
        kiln_config::read_credential(&self.credential)
    }

    /// Runs a `kiln` command against the cluster from a client's host.
    pub(crate) fn kiln(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.hosts[0].command(&self.program);
        command.args(["--cluster", &self.manager]).arg("--credential").arg(&self.credential);
        shell::output(command.args(arguments), "")
    }
}
