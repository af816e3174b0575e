//! Takes a mount away.

use kiln_types::{Code, Error, Result};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::path::Path;
use std::process::Command;

/// What happens when somebody uses the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It stays.
    UnlessBusy,
    /// It disappears from its place at once, and goes when its last user does.
    Lazily,
}

/// Unmounts what is on `path`, by fusermount3 for a user who may not. Does not wait for its daemon.
///
/// # Errors
/// `Busy` when somebody uses it, `PermissionDenied` when this user may not, `Local` otherwise.
pub fn unmount(path: &Path, how: How) -> Result<()> {
    let lazily = if how == How::Lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(path, lazily | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => by_helper(path, how),
        Err(Errno::BUSY) => Err(busy(path)),
        Err(error) => Err(failed(path, &error.to_string())),
    }
}

fn by_helper(path: &Path, how: How) -> Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if how == How::Lazily {
        command.arg("-z");
    }
    let output = command.arg("--").arg(path).output().map_err(|error| {
        let error = Error::local("fusermount3", &error);
        error.with_hint("unmounting needs root, or the package fuse3")
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
    if said.contains("busy") { Err(busy(path)) } else { Err(failed(path, &said)) }
}

fn busy(path: &Path) -> Error {
    Error::new(Code::Busy, format!("{} is in use", path.display()))
}

fn failed(path: &Path, why: &str) -> Error {
    Error::new(Code::Local, format!("cannot unmount {}: {why}", path.display()))
}
