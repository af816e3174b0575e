//! An open data file or block device: its lock, its size, how it is opened, and its errors.

use crate::kernel;
use crate::range::BLOCK;
use crate::{Beneath, OpenOptions};
use kiln_telemetry::metrics;
use kiln_types::{BLOCK_BYTES, Code, Context, Error, Result};
use rustix::fs::{FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

pub(crate) struct DataFile {
    fd: OwnedFd,
    path: PathBuf,
    capacity: u64,
    device: bool,
    direct: bool,
}

impl DataFile {
    /// Opens, locks and sizes what is at `path`; see [`crate::open`] for the rules.
    pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let shown = path.display();
        let (fd, device) = open_fd(path, options)?;
        lock(&fd, path)?;
        let found = if device {
            rustix::fs::seek(&fd, SeekFrom::End(0))
        } else {
            rustix::fs::fstat(&fd).map(|stat| u64::try_from(stat.st_size).unwrap_or(0))
        };
        let found = found.map_err(std::io::Error::from).context(format_args!("size of {shown}"))?;
        let capacity = decide_capacity(path, device, found, options.capacity)?;
        if !device && capacity > found {
            grow(&fd, path, capacity)?;
        }
        if !device && (options.create || capacity > found) {
            // Also when it is there already: whoever created it may have died before this.
            sync_parent(path)?;
        }
        let mut file = Self { fd, path: path.to_owned(), capacity, device, direct: false };
        if options.direct {
            file.go_direct()?;
        }
        Ok(file)
    }

    /// Leaves the page cache out, where the file system can do that for whole blocks.
    fn go_direct(&mut self) -> Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.fd)
            .map_err(|errno| self.failed(format_args!("flags: {errno}")))?;
        if rustix::fs::fcntl_setfl(&self.fd, flags | OFlags::DIRECT).is_ok() {
            let mut probe = kiln_memory::Buffer::zeroed(BLOCK_BYTES);
            match rustix::io::pread(&self.fd, &mut *probe, 0) {
                Ok(_) => self.direct = true,
                Err(Errno::INVAL) => {}
                Err(errno) => return Err(self.error("read", 0, BLOCK_BYTES, errno)),
            }
        }
        if !self.direct {
            rustix::fs::fcntl_setfl(&self.fd, flags)
                .map_err(|errno| self.failed(format_args!("flags: {errno}")))?;
            tracing::warn!(
                path = %self.path.display(),
                "no direct I/O of 4 KiB blocks here: going through the page cache, which is slower"
            );
        }
        Ok(())
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the space of a range back, where that is possible.
    pub(crate) fn discard(&self, offset: u64, length: u64) -> Result<()> {
        loop {
            let done = if self.device {
                kernel::discard_device(self.fd.as_fd(), offset, length)
            } else {
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.fd, hole, offset, length)
            };
            return match done {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY) => Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(self.error("discard", offset, length as usize, errno)),
            };
        }
    }

    /// Whether no file system is beneath.
    pub(crate) fn has_all_space(&self) -> bool {
        self.device
    }

    /// Takes the space of a range, where the file system can do that ahead of writes.
    pub(crate) fn reserve(&self, offset: u64, length: u64) -> Result<()> {
        loop {
            return match rustix::fs::fallocate(&self.fd, FallocateFlags::KEEP_SIZE, offset, length)
            {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(self.error("reservation", offset, length as usize, errno)),
            };
        }
    }

    /// What the file system has left.
    pub(crate) fn beneath(&self) -> Result<Option<Beneath>> {
        if self.device {
            return Ok(None);
        }
        let found = rustix::fs::fstat(&self.fd)
            .and_then(|stat| rustix::fs::fstatvfs(&self.fd).map(|system| (stat.st_dev, system)));
        let (device, system) =
            found.map_err(|errno| self.failed(format_args!("its file system: {errno}")))?;
        // Devices are numbered by each kernel for itself.
        let id = kernel_id() ^ u128::from(device);
        Ok(Some(Beneath { id, free_bytes: system.f_bavail.saturating_mul(system.f_frsize) }))
    }

    /// The disk is broken: `what` says how it shows.
    pub(crate) fn failed(&self, what: impl fmt::Display) -> Error {
        metrics::DISK_FAILED.increment();
        Error::new(Code::DiskFailed, format!("{}: {what}", self.path.display()))
    }

    /// What the system's answer to an operation means.
    pub(crate) fn error(&self, what: &str, offset: u64, length: usize, errno: Errno) -> Error {
        let source = std::io::Error::from(errno);
        let what = format!("{what} of {length} bytes at offset {offset}: {source}");
        match errno {
            Errno::NOSPC | Errno::DQUOT => {
                let message = format!("{}: {what}", self.path.display());
                Error::new(Code::NoSpace, message)
                    .with_hint("free space on the file system that holds this file")
            }
            _ => self.failed(what).with_hint("the kernel's log (dmesg) may say more"),
        }
    }
}

impl AsFd for DataFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Display for DataFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.device { "block device" } else { "file" };
        let cache = if self.direct { "direct" } else { "buffered" };
        let (size, unit) = match self.capacity {
            large if large >= 1 << 30 => (large as f64 / (1_u64 << 30) as f64, "GiB"),
            small => (small as f64 / (1_u64 << 20) as f64, "MiB"),
        };
        write!(f, "{}: {kind} of {size:.1} {unit}, {cache}", self.path.display())
    }
}

impl Drop for DataFile {
    fn drop(&mut self) {
        // A ring that is being torn down may hold the file a moment longer than we do.
        let _ = rustix::fs::flock(&self.fd, FlockOperation::NonBlockingUnlock);
    }
}

/// What tells this machine's kernel from others'; 0 where it does not say.
fn kernel_id() -> u128 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}

/// Opens what is there or creates a file; says whether it is a block device.
fn open_fd(path: &Path, options: &OpenOptions) -> Result<(OwnedFd, bool)> {
    let shown = path.display();
    let mut flags = OFlags::RDWR | OFlags::CLOEXEC;
    let mut device = false;
    match rustix::fs::stat(path) {
        Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::BlockDevice => {
                device = true;
                // Refuses a device that is mounted or part of something else.
                flags |= OFlags::EXCL;
            }
            _ => {
                return Err(Error::invalid(format!(
                    "{shown} is no regular file and no block device"
                ))
                .with_hint("name a file (it is created when missing) or a block device"));
            }
        },
        Err(Errno::NOENT) if options.create => flags |= OFlags::CREATE,
        Err(Errno::NOENT) => {
            return Err(Error::new(Code::NotFound, format!("{shown} does not exist")));
        }
        Err(errno) => return Err(Error::local(format_args!("{shown}"), &errno.into())),
    }
    match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok((fd, device)),
        Err(Errno::BUSY) => Err(busy(path)),
        Err(errno) => Err(Error::local(format_args!("opening {shown}"), &errno.into())),
    }
}

fn lock(fd: &OwnedFd, path: &Path) -> Result<()> {
    match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(busy(path)),
        Err(errno) => Err(Error::local(format_args!("locking {}", path.display()), &errno.into())),
    }
}

fn busy(path: &Path) -> Error {
    let shown = path.display();
    Error::new(Code::Busy, format!("{shown} is in use by another process, or mounted")).with_hint(
        format!(
            "find its user with `fuser -v {shown}` and stop it; never point two servers at one disk"
        ),
    )
}

/// The size to use, given the size that was found and the one that is configured.
fn decide_capacity(path: &Path, device: bool, found: u64, wanted: Option<u64>) -> Result<u64> {
    let shown = path.display();
    match wanted {
        Some(0) => Err(Error::invalid(format!("{shown}: a disk of 0 bytes"))),
        Some(wanted) if !wanted.is_multiple_of(BLOCK) => Err(Error::invalid(format!(
            "{shown}: a size of {wanted} bytes is not a multiple of {BLOCK}"
        ))),
        Some(wanted) if device && wanted > found => Err(Error::invalid(format!(
            "{shown}: {wanted} bytes are configured, the device has {found}"
        ))
        .with_hint("configure at most the device's size, or no size to use all of it")),
        Some(wanted) if !device && wanted < found => Err(Error::invalid(format!(
            "{shown}: {wanted} bytes are configured, the file has {found}: shrinking loses data"
        ))
        .with_hint(format!(
            "configure at least {found} bytes, or drain this disk and start with a new file"
        ))),
        Some(wanted) => Ok(wanted),
        None if found < BLOCK => Err(Error::invalid(format!("{shown}: its size is {found} bytes"))
            .with_hint("configure a capacity for it")),
        None => Ok(found - found % BLOCK),
    }
}

/// Makes the file longer, without taking space.
fn grow(fd: &OwnedFd, path: &Path, capacity: u64) -> Result<()> {
    let shown = path.display();
    rustix::fs::ftruncate(fd, capacity)
        .and_then(|()| rustix::fs::fsync(fd))
        .map_err(std::io::Error::from)
        .context(format_args!("setting the size of {shown} to {capacity} bytes"))
}

/// Makes the name that leads to the file durable.
fn sync_parent(path: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .context(format_args!("sync of directory {}", parent.display()))
}
