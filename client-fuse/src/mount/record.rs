//! Which daemon serves which mount: one small file for each mount, as long as its daemon lives.
//!
//! A file is named after the mount's device number, which no two mounts have at once. What a killed
//! daemon left is told by its process, and goes when the number is used again.

use super::process::ProcessId;
use super::table;
use kiln_types::{Context, Error, Result, Timestamp};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A mount and the daemon that serves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Where it is mounted.
    pub path: PathBuf,
    /// What is mounted.
    pub source: String,
    /// The cluster's directory, where it is on this machine.
    pub cluster_dir: Option<PathBuf>,
    /// The daemon.
    pub daemon: ProcessId,
    /// Since when it is mounted.
    pub since: Timestamp,
    /// Where it logs; `None`: to standard error.
    pub log: Option<PathBuf>,
    /// Where its metrics are; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
}

/// Where daemons of this user write down their mounts: /run/kiln for root, else `kiln` in
/// XDG_RUNTIME_DIR, else one in the temporary directory.
pub fn runtime_dir() -> PathBuf {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return "/run/kiln".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute()) {
        Some(dir) => Path::new(&dir).join("kiln"),
        None => std::env::temp_dir().join(format!("kiln-{}", user.as_raw())),
    }
}

impl Record {
    /// Writes it down; it goes when what this returns is dropped.
    ///
    /// # Errors
    /// `Local` when it cannot be written, or another user's directory is in the way.
    pub fn write(&self, device: &str) -> Result<Written> {
        let dir = runtime_dir();
        own_dir(&dir)?;
        let file = dir.join(file_name(device));
        let text = serde_json::to_vec(self)
            .map_err(|error| Error::internal(format!("record of a mount: {error}")))?;
        let new = file.with_extension("new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, &file)).context(file.display())?;
        Ok(Written { file, daemon: self.daemon })
    }
}

/// A record that is written down.
#[derive(Debug)]
pub struct Written {
    file: PathBuf,
    daemon: ProcessId,
}

impl Drop for Written {
    fn drop(&mut self) {
        // Another daemon may have taken the mount over.
        if read(&self.file).is_some_and(|record| record.daemon == self.daemon) {
            let _ = fs::remove_file(&self.file);
        }
    }
}

fn file_name(device: &str) -> String {
    format!("mount-{}.json", device.replace(':', "-"))
}

/// The directory must be this user's alone: what is written there is believed.
fn own_dir(dir: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).context(dir.display());
        }
        _ => {}
    }
    if !is_own(dir) {
        return Err(Error::invalid(format!(
            "{} is not a directory of this user alone",
            dir.display()
        ))
        .with_hint("remove it, or set XDG_RUNTIME_DIR"));
    }
    Ok(())
}

fn is_own(dir: &Path) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|metadata| {
        let user = rustix::process::geteuid().as_raw();
        metadata.is_dir() && metadata.uid() == user && metadata.mode() & 0o022 == 0
    })
}

fn read(file: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// The record of a mount, when its daemon lives and wrote one that this user may read.
pub fn record_of(mount: &table::Mount) -> Option<Record> {
    let dir = runtime_dir();
    let record = is_own(&dir).then(|| read(&dir.join(file_name(&mount.device)))).flatten()?;
    (record.path == mount.path && record.daemon.runs()).then_some(record)
}

/// The mounts of clusters that are there, each with its record where there is one.
///
/// # Errors
/// `Local` when the kernel does not show its mounts.
pub fn records() -> Result<Vec<(table::Mount, Option<Record>)>> {
    let mounts = table::read()?;
    let ours = mounts.into_iter().filter(table::Mount::is_kiln);
    Ok(ours.map(|mount| (mount.clone(), record_of(&mount))).collect())
}

/// The name of a mount in file names: its path, with dashes.
pub fn name_of(path: &Path) -> String {
    let parts = path.iter().filter(|part| *part != OsStr::new("/"));
    let parts: Vec<_> = parts.map(|part| part.to_string_lossy()).collect();
    let name = parts.join("-").replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_");
    name[name.len().saturating_sub(100)..].to_string()
}
