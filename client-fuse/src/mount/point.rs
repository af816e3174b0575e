//! What is at a path where something is to be mounted.

use super::{How, record_of, table, unmount};
use kiln_env::Env;
use kiln_types::{Code, Context, Error, Result};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long a file system may take to show that it is there.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// How a mount is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Works,
    /// Its daemon is gone: everything on it fails.
    Dead,
    /// It does not answer: its daemon is paused, or its cluster does not answer.
    Silent,
}

/// Runs on a thread of its own what may hang for ever; such a thread is left behind.
pub(super) async fn ask<T: Send + 'static>(
    env: &Env,
    what: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = oneshot::channel();
    env.spawn_thread("mount-point", move || {
        let _ = sender.send(body());
    })?;
    let answer = env.timeout(ANSWER_WITHIN, what, receiver).await?;
    answer.map_err(|_| Error::internal(format!("{what}: its thread is gone")))
}

/// How a mount is. One whose daemon lives is not asked: a question that is not answered would keep this
/// process, and the mount busy, until it is.
///
/// # Errors
/// `Local` when no thread can be started.
pub async fn health(mount: &table::Mount, env: &Env) -> Result<Health> {
    if let Some(record) = record_of(mount) {
        return Ok(if record.daemon.is_paused() { Health::Silent } else { Health::Works });
    }
    let place = mount.path.clone();
    match ask(env, "mount", move || rustix::fs::statvfs(&place)).await {
        Ok(Err(Errno::NOTCONN | Errno::CONNABORTED)) => Ok(Health::Dead),
        Ok(_) => Ok(Health::Works),
        Err(error) if error.code() == Code::DeadlineExceeded => Ok(Health::Silent),
        Err(error) => Err(error),
    }
}

/// `path` without symlinks and dots. A mount on it is not asked: it may be dead.
///
/// # Errors
/// `NotFound` when it is not there, `DeadlineExceeded` when a mount on the way does not answer.
pub async fn resolve(path: &Path, env: &Env) -> Result<PathBuf> {
    let shown = path.display().to_string();
    let path = std::path::absolute(path).context(&shown)?;
    let mounts = table::read()?;
    if table::at(&mounts, &path).is_some() {
        return Ok(path);
    }
    let resolved = ask(env, "a file system on the way", move || {
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
            let whole = parent.canonicalize()?.join(name);
            if table::at(&mounts, &whole).is_some() {
                return Ok(whole);
            }
        }
        path.canonicalize()
    });
    resolved.await.context(&shown)?.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::new(Code::NotFound, format!("{shown} does not exist")),
        _ => Error::local(&shown, &error),
    })
}

/// Makes sure that something can be mounted on `path`, and says where that is without symlinks. What a
/// dead daemon left there is taken away. `told` is told of that, and of what will be hidden.
///
/// # Errors
/// `NotFound` and `NotDirectory` for the path, `Exists` when something is mounted there, `Unsupported`
/// when this machine has no FUSE.
pub async fn prepare(path: &Path, env: &Env, mut told: impl FnMut(String)) -> Result<PathBuf> {
    let hint = |error: Error| match error.code() {
        Code::NotFound => error.with_hint(format!("mkdir -p {} makes it", path.display())),
        _ => error,
    };
    let point = resolve(path, env).await.map_err(hint)?;
    let mounts = table::read()?;
    if let Some(mount) = table::at(&mounts, &point) {
        take_over(mount, env, &mut told).await?;
    }
    let metadata = fs::metadata(&point).context(point.display())?;
    if !metadata.is_dir() {
        let message = format!("{} is not a directory", point.display());
        return Err(Error::new(Code::NotDirectory, message)
            .with_hint("a cluster is mounted on a directory"));
    }
    check_machine()?;
    if fs::read_dir(&point).is_ok_and(|mut entries| entries.next().is_some()) {
        let shown = point.display();
        told(format!("{shown} is not empty: what it holds is hidden while the cluster is there"));
    }
    Ok(point)
}

async fn take_over(mount: &table::Mount, env: &Env, told: impl FnOnce(String)) -> Result<()> {
    let shown = mount.path.display();
    let exists = |message: String| Error::new(Code::Exists, message);
    if !mount.is_kiln() {
        let what = format!("{} ({})", mount.source, mount.kind);
        return Err(exists(format!("another file system is mounted on {shown}: {what}"))
            .with_hint("name another directory, or unmount that first"));
    }
    let daemon = record_of(mount).map(|record| record.daemon);
    match health(mount, env).await? {
        Health::Works => Err(exists(format!("{} is already mounted on {shown}", mount.source))
            .with_hint(format!("kiln umount {shown} unmounts it"))),
        Health::Silent => {
            let why = match daemon {
                Some(daemon) if daemon.is_paused() => {
                    format!("its daemon (pid {}) is paused", daemon.pid)
                }
                Some(daemon) => format!("its daemon (pid {}) does not answer", daemon.pid),
                None => "its daemon does not answer".into(),
            };
            Err(exists(format!("{} is already mounted on {shown}, and {why}", mount.source))
                .with_hint(format!("kiln umount --lazy {shown} detaches it")))
        }
        Health::Dead => {
            unmount(&mount.path, How::Lazily)?;
            told(format!("took over {shown}, whose daemon had died"));
            Ok(())
        }
    }
}

/// Whether FUSE is there, and for others than root its helper.
fn check_machine() -> Result<()> {
    let unsupported = |message: &str| Error::new(Code::Unsupported, message);
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err(unsupported("this user may not open /dev/fuse")
                .with_hint("its mode is usually 0666; a container must be given the device"));
        }
        Err(_) => {
            return Err(unsupported("this machine has no FUSE: /dev/fuse is not there")
                .with_hint("modprobe fuse loads it; a container must be given the device"));
        }
    }
    let helper = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(["/usr/bin".into(), "/bin".into()])
            .any(|dir| dir.join("fusermount3").is_file())
    };
    if !rustix::process::geteuid().is_root() && !helper() {
        return Err(unsupported("only root can mount without fusermount3, and it is not there")
            .with_hint("it is in the package fuse3"));
    }
    Ok(())
}
