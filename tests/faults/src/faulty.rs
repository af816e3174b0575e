//! A disk that fails on demand: a FUSE file system of one file, passed on to a file beneath.

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, SessionACL, WriteFlags,
};
use kiln_types::{Context, Result};
use parking_lot::{Condvar, Mutex};
use rustix::fs::FallocateFlags;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

/// The file of a chunk store.
pub(crate) const STORE: &str = "chunks";
const FILE: INodeNo = INodeNo(2);
/// Nothing about the file is cached for longer.
const TTL: Duration = Duration::from_secs(1);

/// What is wrong with the disk now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Trouble {
    #[default]
    None,
    /// Nothing is answered.
    Hangs,
    /// Each answer takes so long.
    Slow(Duration),
    /// So many of a hundred reads and writes, and all syncs, fail.
    Fails(u8),
}

/// The switch of a faulty disk.
#[derive(Default)]
pub(crate) struct Switch {
    trouble: Mutex<Trouble>,
    changed: Condvar,
}

impl Switch {
    pub(crate) fn set(&self, trouble: Trouble) {
        *self.trouble.lock() = trouble;
        self.changed.notify_all();
    }

    /// Waits as the trouble wants it, and says whether the request fails.
    fn pass(&self, is_sync: bool) -> Result<(), Errno> {
        let mut trouble = self.trouble.lock();
        loop {
            match *trouble {
                Trouble::None => return Ok(()),
                Trouble::Hangs => self.changed.wait(&mut trouble),
                Trouble::Slow(by) => {
                    self.changed.wait_for(&mut trouble, by);
                    return Ok(());
                }
                Trouble::Fails(percent) => {
                    let strikes = is_sync || fastrand::u8(..100) < percent;
                    return if strikes { Err(Errno::EIO) } else { Ok(()) };
                }
            }
        }
    }
}

/// Mounts a disk on the directory `path` whose file is in `beneath`, for as long as this process lives.
pub(crate) fn mount(path: &Path, beneath: &Path) -> Result<Arc<Switch>> {
    std::fs::create_dir_all(path).context(path.display())?;
    std::fs::create_dir_all(beneath).context(beneath.display())?;
    let store = beneath.join(STORE);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(&store).context(store.display())?;
    let switch = Arc::new(Switch::default());
    let disk = Disk { file, switch: Arc::clone(&switch) };
    let mut config = Config::default();
    config.mount_options =
        vec![MountOption::FSName("kiln-faults".into()), MountOption::DefaultPermissions];
    config.acl = SessionACL::All;
    // As many as may hang at once: the server's ring is no deeper.
    config.n_threads = Some(16);
    let session = fuser::Session::new(disk, path, &config).context(path.display())?;
    let served = session.spawn().context("threads of the faulty disk")?;
    // The mount goes with this process.
    std::mem::forget(served);
    Ok(switch)
}

struct Disk {
    file: File,
    switch: Arc<Switch>,
}

impl Disk {
    fn attr(&self, inode: INodeNo) -> std::io::Result<FileAttr> {
        let metadata = self.file.metadata()?;
        let is_file = inode == FILE;
        Ok(FileAttr {
            ino: inode,
            size: if is_file { metadata.len() } else { 0 },
            blocks: if is_file { metadata.blocks() } else { 0 },
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: if is_file { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Disk {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attr(FILE) {
            Ok(attr) if name == STORE => reply.entry(&TTL, &attr, Generation(0)),
            Ok(_) => reply.error(Errno::ENOENT),
            Err(error) => reply.error(error.into()),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(inode) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<fuser::TimeOrNow>,
        _: Option<fuser::TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = size.map_or(Ok(()), |size| self.file.set_len(size));
        match set.and_then(|()| self.attr(inode)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error.into()),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(
            FileHandle(0),
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
        );
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        let mut read = || self.file.read_at(&mut bytes, offset).map_err(Errno::from);
        match self.switch.pass(false).and_then(|()| read()) {
            Ok(length) => reply.data(&bytes[..length]),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let write = || self.file.write_all_at(data, offset).map_err(Errno::from);
        match self.switch.pass(false).and_then(|()| write()) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let sync = || self.file.sync_data().map_err(Errno::from);
        answer(reply, self.switch.pass(true).and_then(|()| sync()));
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        let done = rustix::fs::fallocate(&self.file, mode, offset, length);
        answer(reply, done.map_err(|errno| Errno::from_i32(errno.raw_os_error())));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match rustix::fs::fstatvfs(&self.file) {
            Ok(found) => {
                let (blocks, free) = (found.f_blocks, found.f_bfree);
                let size = found.f_frsize as u32;
                reply.statfs(blocks, free, found.f_bavail, 0, 0, size, 255, size);
            }
            Err(errno) => reply.error(Errno::from_i32(errno.raw_os_error())),
        }
    }
}

fn answer(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}
