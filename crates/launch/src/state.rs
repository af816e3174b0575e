//! `run/state.json`: which processes run at which addresses. Addresses stay while the cluster rests, so
//! that it comes back where it was; a process id counts only while the supervisor's lock is held.

use kiln_config::write_file;
use kiln_types::{Context, Error, Result, Timestamp};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What the supervisor last wrote down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct State {
    /// The servers in the order in which they start.
    pub servers: Vec<ServerState>,
}

/// One server's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerState {
    /// `mgmtd`, `meta`, `storage-1`, .., `mount`
    pub name: String,
    /// Where it listens, or listened last.
    pub address: Option<SocketAddr>,
    /// Where a mount's daemon mounts the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<PathBuf>,
    /// Its process; `None` while it does not run.
    pub pid: Option<u32>,
    /// When that process started.
    pub since: Option<Timestamp>,
    /// How often it was started again because it died, since the cluster started.
    pub restarts: u32,
}

fn path_in(dir: &Path) -> PathBuf {
    dir.join("run").join("state.json")
}

impl State {
    /// What was written down in the cluster directory `dir`; empty when nothing was.
    ///
    /// # Errors
    /// `Corrupt` when it is not a state, `Local` when it cannot be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = path_in(dir);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            text => text.context(path.display())?,
        };
        serde_json::from_slice(&text).map_err(|error| {
            Error::corrupt(format!("{}: {error}", path.display()))
                .with_hint("remove the file: it is written anew at the next start")
        })
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::internal(format!("state: {error}")))?;
        write_file(&path_in(dir), &text, 0o600)
    }

    /// The address of the server `name`.
    pub fn address_of(&self, name: &str) -> Option<SocketAddr> {
        self.servers.iter().find(|server| server.name == name)?.address
    }
}
