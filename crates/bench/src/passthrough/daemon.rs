//! The passthrough daemon's answers to the kernel.

use super::nodes::{Nodes, ROOT};
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, TimeOrNow, WriteFlags,
};
use kiln_memory::Pool;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// How long the kernel may keep names and attributes.
const KEEP: Duration = Duration::from_secs(1);
/// The largest request.
const REQUEST_BYTES: u32 = 1 << 20;
/// Requests of read-ahead and of asynchronous direct I/O at a time.
const BACKGROUND: u16 = 64;
const DIRECT: u32 = rustix::fs::OFlags::DIRECT.bits();
/// Which open flags the backing file gets too; not O_APPEND, since the kernel gives the offsets.
const KEPT_FLAGS: u32 = DIRECT | rustix::fs::OFlags::TRUNC.bits();
const DIRECT_FILE: FopenFlags =
    FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

pub(super) struct Daemon {
    nodes: RwLock<Nodes>,
    files: RwLock<HashMap<u64, Open>>,
    listings: Mutex<HashMap<u64, Listing>>,
    last_handle: AtomicU64,
    pool: Pool,
}

/// The entries of an open directory.
type Listing = Arc<Vec<(OsString, FileType)>>;

/// An open file.
#[derive(Clone)]
struct Open {
    file: Arc<File>,
    direct: bool,
}

impl Daemon {
    pub(super) fn new(backing: &Path) -> Self {
        Self {
            nodes: RwLock::new(Nodes::new(backing.to_path_buf())),
            files: RwLock::default(),
            listings: Mutex::default(),
            last_handle: AtomicU64::new(0),
            pool: Pool::new(64 << 20),
        }
    }

    fn path(&self, inode: INodeNo) -> PathBuf {
        self.nodes.read().path(inode.0)
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> PathBuf {
        self.path(parent).join(name)
    }

    fn entry(&self, parent: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        let found = std::fs::symlink_metadata(self.child(parent, name))?;
        Ok(attr(self.nodes.write().look_up(parent.0, name), &found))
    }

    fn handle(&self) -> FileHandle {
        FileHandle(self.last_handle.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn keep(&self, file: File, flags: i32) -> (FileHandle, FopenFlags) {
        let (handle, direct) = (self.handle(), flags as u32 & DIRECT != 0);
        self.files.write().insert(handle.0, Open { file: Arc::new(file), direct });
        (handle, if direct { DIRECT_FILE } else { FopenFlags::empty() })
    }

    fn file(&self, handle: FileHandle) -> io::Result<Open> {
        let open = self.files.read().get(&handle.0).cloned();
        open.ok_or_else(|| io::Error::from_raw_os_error(9))
    }

    fn metadata(&self, inode: INodeNo, handle: Option<FileHandle>) -> io::Result<FileAttr> {
        let found = match handle.map(|handle| self.file(handle)) {
            Some(Ok(open)) => open.file.metadata()?,
            _ => std::fs::symlink_metadata(self.path(inode))?,
        };
        Ok(attr(inode.0, &found))
    }

    fn listing(&self, inode: INodeNo) -> io::Result<FileHandle> {
        let mut entries = vec![
            (OsString::from("."), FileType::Directory),
            (OsString::from(".."), FileType::Directory),
        ];
        for entry in std::fs::read_dir(self.path(inode))? {
            let entry = entry?;
            let kind = FileType::from_std(entry.file_type()?).unwrap_or(FileType::RegularFile);
            entries.push((entry.file_name(), kind));
        }
        let handle = self.handle();
        self.listings.lock().insert(handle.0, Arc::new(entries));
        Ok(handle)
    }

    fn entries(&self, handle: FileHandle) -> Listing {
        self.listings.lock().get(&handle.0).cloned().unwrap_or_default()
    }
}

fn attr(number: u64, found: &Metadata) -> FileAttr {
    let time = |seconds: i64, nanos: i64| {
        SystemTime::UNIX_EPOCH + Duration::new(seconds.unsigned_abs(), nanos.unsigned_abs() as u32)
    };
    let kind = FileType::from_std(found.file_type()).unwrap_or(FileType::RegularFile);
    FileAttr {
        ino: INodeNo(number),
        size: found.size(),
        blocks: found.blocks(),
        atime: time(found.atime(), found.atime_nsec()),
        mtime: time(found.mtime(), found.mtime_nsec()),
        ctime: time(found.ctime(), found.ctime_nsec()),
        crtime: SystemTime::UNIX_EPOCH,
        kind,
        perm: (found.mode() & 0o7777) as u16,
        nlink: found.nlink() as u32,
        uid: found.uid(),
        gid: found.gid(),
        rdev: 0,
        blksize: REQUEST_BYTES,
        flags: 0,
    }
}

fn options(flags: i32) -> OpenOptions {
    let access = flags & 0b11;
    let mut options = OpenOptions::new();
    options.read(access != 1).write(access != 0);
    options.custom_flags((flags as u32 & KEPT_FLAGS) as i32);
    options
}

/// Answers with what `$result` is, by `$answer`, or with its error.
macro_rules! answer {
    ($reply:ident, $result:expr, $answer:expr) => {
        match $result {
            Ok(value) => $answer($reply, value),
            Err(error) => $reply.error(Errno::from(error)),
        }
    };
}

impl Filesystem for Daemon {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_MAX_PAGES,
        ];
        for flag in wanted {
            // What this kernel does not have goes without.
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_write(REQUEST_BYTES);
        if let Err(most) = config.set_max_readahead(REQUEST_BYTES) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(BACKGROUND);
        let _ = config.set_congestion_threshold(BACKGROUND / 4 * 3);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer!(reply, self.entry(parent, name), |reply: ReplyEntry, attr| {
            reply.entry(&KEEP, &attr, Generation(0))
        });
    }

    fn forget(&self, _request: &Request, inode: INodeNo, lookups: u64) {
        self.nodes.write().forget(inode.0, lookups);
    }

    fn getattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        answer!(reply, self.metadata(inode, handle), |reply: ReplyAttr, attr| {
            reply.attr(&KEEP, &attr)
        });
    }

    fn setattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let path = self.path(inode);
        let change = || {
            if let Some(mode) = mode {
                std::fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777))?;
            }
            if let Some(size) = size {
                OpenOptions::new().write(true).open(&path)?.set_len(size)?;
            }
            self.metadata(inode, handle)
        };
        answer!(reply, change(), |reply: ReplyAttr, attr| reply.attr(&KEEP, &attr));
    }

    fn mkdir(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let made = DirBuilder::new().mode(mode).create(self.child(parent, name));
        let entry = made.and_then(|()| self.entry(parent, name));
        answer!(reply, entry, |reply: ReplyEntry, attr| {
            reply.entry(&KEEP, &attr, Generation(0))
        });
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = std::fs::remove_file(self.child(parent, name));
        if removed.is_ok() {
            self.nodes.write().remove(parent.0, name);
        }
        answer!(reply, removed, |reply: ReplyEmpty, ()| reply.ok());
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = std::fs::remove_dir(self.child(parent, name));
        if removed.is_ok() {
            self.nodes.write().remove(parent.0, name);
        }
        answer!(reply, removed, |reply: ReplyEmpty, ()| reply.ok());
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let renamed = std::fs::rename(self.child(parent, name), self.child(new_parent, new_name));
        if renamed.is_ok() {
            self.nodes.write().rename((parent.0, name), (new_parent.0, new_name));
        }
        answer!(reply, renamed, |reply: ReplyEmpty, ()| reply.ok());
    }

    fn open(&self, _request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = options(flags.0).open(self.path(inode));
        answer!(reply, opened.map(|file| self.keep(file, flags.0)), |reply: ReplyOpen, kept| {
            let (handle, how): (FileHandle, FopenFlags) = kept;
            reply.opened(handle, how)
        });
    }

    fn create(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let made =
            options(flags).write(true).create(true).mode(mode).open(self.child(parent, name));
        let made = made.and_then(|file| {
            let found = attr(self.nodes.write().look_up(parent.0, name), &file.metadata()?);
            Ok((found, self.keep(file, flags)))
        });
        answer!(reply, made, |reply: ReplyCreate, made| {
            let (attr, (handle, how)): (FileAttr, (FileHandle, FopenFlags)) = made;
            reply.created(&KEEP, &attr, Generation(0), handle, how)
        });
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buffer = self.pool.take(size as usize);
        let read = self.file(handle).and_then(|open| open.file.read_at(&mut buffer, offset));
        answer!(reply, read, |reply: ReplyData, length: usize| reply.data(&buffer[..length]));
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.file(handle).and_then(|open| match open.direct {
            true => {
                // O_DIRECT wants aligned memory, and a request has a header in front.
                let mut aligned = self.pool.take(data.len());
                aligned.copy_from_slice(data);
                open.file.write_at(&aligned, offset)
            }
            false => open.file.write_at(data, offset),
        });
        answer!(reply, written, |reply: ReplyWrite, length: usize| reply.written(length as u32));
    }

    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let closed = self.files.write().remove(&handle.0);
        drop(closed);
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let synced = self.file(handle).and_then(|open| match datasync {
            true => open.file.sync_data(),
            false => open.file.sync_all(),
        });
        answer!(reply, synced, |reply: ReplyEmpty, ()| reply.ok());
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let synced = File::open(self.path(inode)).and_then(|dir| dir.sync_all());
        answer!(reply, synced, |reply: ReplyEmpty, ()| reply.ok());
    }

    fn opendir(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        answer!(reply, self.listing(inode), |reply: ReplyOpen, handle| {
            reply.opened(handle, FopenFlags::empty())
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = self.entries(handle);
        for (at, (name, kind)) in entries.iter().enumerate().skip(offset as usize) {
            if reply.add(inode, at as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let entries = self.entries(handle);
        for (at, (name, _)) in entries.iter().enumerate().skip(offset as usize) {
            let dots = name == "." || name == "..";
            let found = match dots {
                true => self.metadata(INodeNo(ROOT), None),
                false => self.entry(inode, name),
            };
            let Ok(found) = found else { continue };
            if reply.add(found.ino, at as u64 + 1, name, &KEEP, &found, Generation(0)) {
                if !dots {
                    self.nodes.write().forget(found.ino.0, 1);
                }
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.listings.lock().remove(&handle.0);
        reply.ok();
    }
}
