//! The limit of a FUSE file system: a daemon that hands each request on to a local directory.
//!
//! It has the options of kiln's mount (a thread for each core with a descriptor of its own, requests of
//! 1 MiB, read-ahead, readdirplus) and nothing else: no cache, no work beside the system call that was asked for.
//! What an application opens with O_DIRECT, it opens so too.

mod daemon;
mod nodes;

use crate::machine::mounted;
use daemon::Daemon;
use fuser::{BackgroundSession, Config, MountOption, Session};
use kiln_types::{Context, Result};
use std::path::Path;

/// The kernel's own 128 KiB would make small requests of a sequential reader's.
const READ_AHEAD_KIB: u32 = 4096;

/// A mounted passthrough daemon; dropping it unmounts.
pub(crate) struct Passthrough {
    session: Option<BackgroundSession>,
}

impl Passthrough {
    /// Serves the directory `backing` at `mountpoint`.
    ///
    /// # Errors
    /// `Local` when FUSE is not there or not permitted.
    pub(crate) fn mount(backing: &Path, mountpoint: &Path) -> Result<Self> {
        let mut config = Config::default();
        config.mount_options =
            vec![MountOption::FSName("kiln-bench".into()), MountOption::DefaultPermissions];
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        config.n_threads = Some(cores.max(2));
        config.clone_fd = true;
        let session = Session::new(Daemon::new(backing), mountpoint, &config)
            .and_then(Session::spawn)
            .context("mounting a passthrough daemon to compare with")?;
        if let Some(mount) = mounted(mountpoint) {
            let file = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
            if let Err(error) = std::fs::write(&file, READ_AHEAD_KIB.to_string()) {
                tracing::debug!(%error, file, "the kernel's read-ahead stays as it is");
            }
        }
        Ok(Self { session: Some(session) })
    }
}

impl Drop for Passthrough {
    fn drop(&mut self) {
        if let Some(session) = self.session.take()
            && let Err(error) = session.umount_and_join()
        {
            tracing::warn!(%error, "the passthrough daemon's mount stays");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::{FileExt, OpenOptionsExt};

    #[test]
    fn what_is_done_in_the_mount_happens_behind_it() {
        let (backing, point) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mounted = match Passthrough::mount(backing.path(), point.path()) {
            Ok(mounted) => mounted,
            Err(error) => return eprintln!("SKIPPED: {error}"),
        };
        let (near, far) = (point.path(), backing.path());
        fs::create_dir(near.join("d")).unwrap();
        for number in 0..300 {
            fs::write(near.join(format!("d/{number}")), [number as u8; 100]).unwrap();
        }
        fs::rename(near.join("d"), near.join("e")).unwrap();
        fs::remove_file(near.join("e/7")).unwrap();
        let sizes = fs::read_dir(near.join("e")).unwrap();
        let sizes: Vec<_> = sizes.map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
        assert_eq!(sizes, [100; 299]);
        assert_eq!(fs::read(far.join("e/8")).unwrap(), [8; 100]);
        assert!(!far.join("e/7").exists());

        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).custom_flags(direct);
        let file = options.open(near.join("big")).unwrap();
        let mut block = kiln_memory::Buffer::zeroed(1 << 20);
        block.fill(3);
        file.write_all_at(&block, 1 << 20).unwrap();
        file.sync_all().unwrap();
        block.fill(9);
        file.read_exact_at(&mut block, 512 << 10).unwrap();
        assert!(block[..512 << 10].iter().all(|byte| *byte == 0));
        assert!(block[512 << 10..].iter().all(|byte| *byte == 3));
        drop(file);
        drop(mounted);
        assert_eq!(fs::read_dir(near).unwrap().count(), 0, "unmounted");
        assert_eq!(far.join("big").metadata().unwrap().len(), 2 << 20);
    }
}
