//! A mount as the kernel sees it: set up, served, ended.

use super::adapter::Adapter;
use super::link::KernelLink;
use crate::filesystem::FileSystem;
use crate::mount::table;
use fuser::{Config, InitFlags, KernelConfig, MountOption, SessionACL};
use kiln_env::Env;
use kiln_types::{Code, Context, Error, Result};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::oneshot;

/// The type of our mounts in /proc/mounts, after "fuse.".
pub(crate) const SUBTYPE: &str = "kiln";

/// What a request carries at most: the kernel's own limit, unless root raised it.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Requests of the kernel's own (read-ahead, asynchronous direct I/O) that may be under way.
const BACKGROUND_MAX: u16 = 64;
/// What the kernel reads ahead of a sequential reader, in requests of the size above.
const READ_AHEAD_KIB: u32 = 4096;

/// How a file system is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MountOptions {
    /// What `df` and `mount` show as its source.
    pub source: String,
    /// Nothing can be changed.
    pub read_only: bool,
    /// Other users see it, too.
    pub allow_other: bool,
    /// Set-user-id bits count.
    pub suid: bool,
    /// Programs cannot be run.
    pub no_exec: bool,
}

/// A mounted file system that is being served.
pub struct Session {
    path: PathBuf,
    ended: oneshot::Receiver<()>,
    link: Arc<KernelLink>,
}

impl Session {
    /// Mounts `fs` on `path`, which is absolute and free of symlinks, and serves it on threads of its own;
    /// requests are worked out in the runtime of the calling task. The file system has `link`.
    ///
    /// # Errors
    /// `Local` when the kernel or fusermount3 refuses.
    pub fn mount(
        fs: Arc<dyn FileSystem>,
        link: Arc<KernelLink>,
        path: &Path,
        options: &MountOptions,
        env: &Env,
    ) -> Result<Self> {
        let (sender, ended) = oneshot::channel();
        let adapter = Adapter::new(fs, Arc::clone(&link) as _, env.clone(), sender);
        let session = fuser::Session::new(adapter, path, &config(options))
            .map_err(|error| refused(path, &error))?;
        link.connect(session.as_fd(), env)?;
        let served = session.spawn().context("threads of the mount")?;
        // Dropped, it would unmount whatever is on the path then, which may be a later mount.
        std::mem::forget(served);
        read_ahead(path);
        Ok(Self { path: path.into(), ended, link })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until nothing is mounted any more, whoever unmounted it, or its threads cannot go on.
    pub async fn ended(&mut self) {
        // A sender that is gone tells the same.
        let _ = (&mut self.ended).await;
        self.link.end();
    }
}

fn config(options: &MountOptions) -> Config {
    let mut set = vec![
        MountOption::FSName(options.source.clone()),
        MountOption::CUSTOM(format!("subtype={SUBTYPE}")),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
        MountOption::NoDev,
    ];
    set.push(if options.read_only { MountOption::RO } else { MountOption::RW });
    set.push(if options.suid { MountOption::Suid } else { MountOption::NoSuid });
    set.push(if options.no_exec { MountOption::NoExec } else { MountOption::Exec });
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    let mut config = Config::default();
    config.mount_options = set;
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(threads);
    config.clone_fd = true;
    config
}

/// What this mount makes use of. Not the kernel's write-back cache, which would hide writes from other
/// clients; and no locks, so that the kernel keeps them for the processes of this mount.
pub(super) fn set_up(config: &mut KernelConfig) {
    let wanted = [
        InitFlags::FUSE_ATOMIC_O_TRUNC,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_READDIRPLUS_AUTO,
        InitFlags::FUSE_ASYNC_DIO,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        InitFlags::FUSE_CACHE_SYMLINKS,
        InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    ];
    for capability in wanted {
        if config.add_capabilities(capability).is_err() {
            tracing::debug!(?capability, "this kernel does not offer it");
        }
    }
    // Each is within what is allowed: there is nothing to refuse.
    let _ = config.set_max_write(REQUEST_BYTES_MAX);
    let _ = config.set_max_background(BACKGROUND_MAX);
    let _ = config.set_congestion_threshold(BACKGROUND_MAX / 4 * 3);
}

/// The kernel's 128 KiB would make small requests of a sequential reader's.
fn read_ahead(path: &Path) {
    let raised = table::read().and_then(|mounts| {
        let mount = table::at(&mounts, path)
            .ok_or_else(|| Error::internal("the mount is not in /proc/self/mountinfo"))?;
        let file = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
        fs::write(&file, READ_AHEAD_KIB.to_string()).context(file)
    });
    if let Err(error) = raised {
        tracing::debug!(%error, "the kernel's read-ahead stays as it is");
    }
}

fn refused(path: &Path, error: &std::io::Error) -> Error {
    let text = error.to_string();
    let message = format!("cannot mount on {}: {}", path.display(), text.trim());
    let error = Error::new(Code::Local, message);
    if text.contains("user_allow_other") {
        return error
            .with_hint("root allows it with the line 'user_allow_other' in /etc/fuse.conf");
    }
    error
}
