//! What a supervisor tells while it works.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Something that whoever started the cluster wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A process of an earlier run was still there and was ended.
    Swept {
        /// The server.
        name: String,
        /// The process.
        pid: u32,
    },
    /// The server's port was taken by another program: it listens elsewhere now.
    Moved {
        /// The server.
        name: String,
        /// Where it was.
        from: SocketAddr,
        /// Where it is.
        to: SocketAddr,
    },
    /// The server is ready.
    Ready {
        /// The server.
        name: String,
        /// Its process.
        pid: u32,
        /// Where it listens.
        address: SocketAddr,
    },
    /// The cluster is mounted.
    Mounted {
        /// Where.
        path: PathBuf,
        /// The daemon's process.
        pid: u32,
    },
    /// Somebody unmounted it.
    Unmounted {
        /// Where it was.
        path: PathBuf,
    },
    /// The server died; it will be started again.
    Died {
        /// The server.
        name: String,
        /// How it ended, and what it said last.
        how: String,
        /// The pause before it is started again.
        pause: Duration,
    },
    /// The server did not start; it will be tried again.
    NotStarted {
        /// The server.
        name: String,
        /// Why.
        why: String,
        /// The pause before the next try.
        pause: Duration,
    },
    /// Something failed that the servers do not need.
    Trouble {
        /// What.
        what: String,
    },
    /// The server was asked to stop, and did.
    Stopped {
        /// The server.
        name: String,
    },
    /// The server did not stop in time and was killed.
    Killed {
        /// The server.
        name: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Swept { name, pid } => {
                write!(f, "{name} (pid {pid}) was left from an earlier run and has been ended")
            }
            Self::Moved { name, from, to } => {
                write!(f, "{name}: another program listens on {from}; using {to} from now on")
            }
            Self::Ready { name, pid, address } => {
                write!(f, "{name} is ready on {address} (pid {pid})")
            }
            Self::Mounted { path, pid } => {
                write!(f, "mounted on {} (pid {pid})", path.display())
            }
            Self::Unmounted { path } => write!(f, "{} has been unmounted", path.display()),
            Self::Died { name, how, pause } => {
                write!(f, "{name} {how}; starting it again in {pause:?}")
            }
            Self::NotStarted { name, why, pause } => {
                write!(f, "{name} did not start: {why}; trying again in {pause:?}")
            }
            Self::Trouble { what } => f.write_str(what),
            Self::Stopped { name } => write!(f, "{name} has stopped"),
            Self::Killed { name } => write!(f, "{name} did not stop in time and was killed"),
        }
    }
}
