//! What a supervisor runs: the servers of a cluster, and perhaps a mount of it.

use crate::process::Process;
use crate::{ClusterDir, Service};
use kiln_types::{Monotonic, ServiceKind, Timestamp};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of a mount among the members.
const MOUNT: &str = "mount";

/// A member and, while it runs, its process.
pub(crate) struct Member {
    pub(crate) role: Role,
    pub(crate) process: Option<Process>,
    pub(crate) restarts: u32,
    /// When it is to be started again, and the pause before that.
    pub(crate) again: Option<Monotonic>,
    pub(crate) pause: Duration,
    /// Where a server listens, or listened last.
    pub(crate) address: Option<SocketAddr>,
    pub(crate) since: Option<Timestamp>,
}

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Server(Service),
    /// The daemon of a mount there.
    Mount(PathBuf),
}

impl Member {
    pub(crate) fn new(role: Role, address: Option<SocketAddr>) -> Self {
        Self {
            role,
            process: None,
            restarts: 0,
            again: None,
            pause: Duration::ZERO,
            address,
            since: None,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.role.name()
    }
}

impl Role {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Server(service) => &service.name,
            Self::Mount(_) => MOUNT,
        }
    }

    pub(crate) fn kind(&self) -> Option<ServiceKind> {
        match self {
            Self::Server(service) => Some(service.kind),
            Self::Mount(_) => None,
        }
    }

    pub(crate) fn mount(&self) -> Option<&Path> {
        match self {
            Self::Server(_) => None,
            Self::Mount(path) => Some(path),
        }
    }

    /// The arguments with which the program is this member.
    pub(crate) fn arguments(
        &self,
        dir: &ClusterDir,
        listen: Option<SocketAddr>,
        mgmtd: Option<SocketAddr>,
    ) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = match self {
            Self::Server(service) => {
                vec![service.kind.to_string().into(), "--config".into(), dir.config(service).into()]
            }
            Self::Mount(path) => {
                let here = dir.path();
                vec![
                    "mount".into(),
                    path.into(),
                    "--foreground".into(),
                    "--dir".into(),
                    here.into(),
                ]
            }
        };
        let mut address = |option: &str, address: Option<SocketAddr>| {
            if let Some(address) = address {
                arguments.extend([option.into(), address.to_string().into()]);
            }
        };
        address("--listen", listen);
        if !matches!(self.kind(), None | Some(ServiceKind::Mgmtd)) {
            address("--mgmtd", mgmtd);
        }
        arguments
    }

    /// Whether the process `pid` runs and was started as this member: one of its arguments is the file
    /// or directory that no other member has.
    pub(crate) fn is_process(&self, dir: &ClusterDir, pid: u32) -> bool {
        let own = match self {
            Self::Server(service) => dir.config(service),
            Self::Mount(path) => path.clone(),
        };
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|byte| *byte == 0).any(|argument| argument == own.as_os_str().as_bytes())
    }
}
