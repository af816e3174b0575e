//! The kernel's requests, each passed on to the file system.

use super::convert::{
    caller, file_attr, file_type, fopen_flags, inode, node_kind, nothing, open_flags, set_time,
};
use super::privileges::Privileges;
use super::requests::{Refuse, Requests, send};
use crate::filesystem::{
    CAPABILITY, DirEntry, FileSystem, Handle, KernelCache, Known, Looked, NewFile, Opened, SetAttr,
    SetXattr,
};
use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use kiln_env::Env;
use kiln_memory::Pool;
use kiln_telemetry::{MOUNT, metrics};
use kiln_types::{FileKind, MODE_PERMISSIONS, Result};
use rustix::fs::{OFlags, XattrFlags};
use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;

/// Inode numbers are never used twice, so that one generation is enough.
const GENERATION: Generation = Generation(0);
/// About as many entries as fit into what getdents reads at once, with and without attributes.
const PAGE: usize = 1024;
const PAGE_PLUS: usize = 200;
/// The block that statfs counts in.
const BLOCK: u32 = 4096;
/// Idle memory for the bytes of writes.
const IDLE_BYTES_MAX: usize = 32 << 20;

/// fuser's file system over ours.
pub(super) struct Adapter {
    fs: Arc<dyn FileSystem>,
    requests: Arc<Requests>,
    pool: Pool,
    privileges: Arc<Privileges>,
    /// Told when nothing is mounted any more.
    ended: Option<oneshot::Sender<()>>,
}

impl Adapter {
    /// Requests are worked out in the runtime of the calling task. `ended` is told when nothing is mounted
    /// any more.
    pub(super) fn new(
        fs: Arc<dyn FileSystem>,
        kernel: Arc<dyn KernelCache>,
        env: Env,
        ended: oneshot::Sender<()>,
    ) -> Self {
        Self {
            fs,
            requests: Arc::new(Requests::new(env)),
            pool: Pool::new(IDLE_BYTES_MAX),
            privileges: Arc::new(Privileges::new(kernel)),
            ended: Some(ended),
        }
    }

    /// Answers with an entry.
    fn entry(&self) -> impl FnOnce(ReplyEntry, Known) + Send + use<> {
        let privileges = Arc::clone(&self.privileges);
        move |reply, known| {
            privileges.note(&known.attr);
            let attr = file_attr(&known.attr);
            reply.entry_with_ttls(&known.attr_for, &known.name_for, &attr, GENERATION);
        }
    }

    /// Answers with attributes.
    fn attributes(&self) -> impl FnOnce(ReplyAttr, Known) + Send + use<> {
        let privileges = Arc::clone(&self.privileges);
        move |reply, known| {
            privileges.note(&known.attr);
            reply.attr(&known.attr_for, &file_attr(&known.attr));
        }
    }

    /// Works out what `call` answers and sends it with `answer`.
    fn serve<R, T, F>(
        &self,
        what: &'static str,
        reply: R,
        call: impl FnOnce(Arc<dyn FileSystem>) -> F,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) where
        R: Refuse,
        T: Send,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let called = call(Arc::clone(&self.fs));
        let requests = Arc::clone(&self.requests);
        self.requests.run(what, async move {
            let result = MOUNT.measure(requests.env(), what, "the kernel", called).await;
            send(&requests, what, reply, result, answer);
        });
    }
}

fn done(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

/// For replies that have one time for both.
fn shorter(known: &Known) -> Duration {
    known.attr_for.min(known.name_for)
}

fn bytes(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

/// An extended attribute, or its length where only that was asked.
fn xattr(reply: ReplyXattr, value: &[u8], room: u32) {
    match u32::try_from(value.len()) {
        Ok(length) if room == 0 => reply.size(length),
        Ok(length) if length <= room => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        super::session::set_up(config);
        Ok(())
    }

    fn destroy(&mut self) {
        // Nobody waits any more when the session itself was dropped.
        let _ = self.ended.take().map(|ended| ended.send(()));
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (caller, name) = (caller(request), bytes(name));
        let entry = self.entry();
        self.serve(
            "lookup",
            reply,
            move |fs| async move { fs.lookup(&caller, inode(parent), &name).await },
            move |reply, looked| match looked {
                Looked::Up(known) => entry(reply, known),
                Looked::Nothing(time) => {
                    reply.entry_with_ttls(&time, &time, &nothing(), GENERATION);
                }
            },
        );
    }

    fn forget(&self, _: &Request, number: INodeNo, lookups: u64) {
        self.fs.forget(inode(number), lookups);
    }

    fn getattr(&self, request: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let caller = caller(request);
        let call =
            move |fs: Arc<dyn FileSystem>| async move { fs.get_attr(&caller, inode(number)).await };
        self.serve("getattr", reply, call, self.attributes());
    }

    fn setattr(
        &self,
        request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let caller = caller(request);
        let through = handle.map(|handle| Handle(handle.0));
        let change = SetAttr {
            mode: mode.map(|mode| mode & MODE_PERMISSIONS),
            uid,
            gid,
            length: size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        let privileges = Arc::clone(&self.privileges);
        let call = move |fs: Arc<dyn FileSystem>| async move {
            let gives_away = uid.is_some() || gid.is_some();
            if gives_away || size.is_some() {
                let set_ids = gives_away || caller.uid != 0;
                privileges.take_from(&*fs, inode(number), set_ids).await?;
            } else if change == SetAttr::default() {
                privileges.give_up(&*fs, inode(number), &caller).await?;
            }
            fs.set_attr(&caller, inode(number), through, change).await
        };
        self.serve("setattr", reply, call, self.attributes());
    }

    fn readlink(&self, request: &Request, number: INodeNo, reply: ReplyData) {
        let caller = caller(request);
        let call = move |fs: Arc<dyn FileSystem>| async move {
            fs.read_link(&caller, inode(number)).await
        };
        self.serve("readlink", reply, call, |reply, target: Vec<u8>| reply.data(&target));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        device: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = node_kind(mode) else { return reply.error(Errno::EINVAL) };
        let (caller, name) = (caller(request), bytes(name));
        let call = move |fs: Arc<dyn FileSystem>| async move {
            let (at, mode) = ((inode(parent), &name[..]), mode & MODE_PERMISSIONS);
            match kind {
                FileKind::File => fs.make_file(&caller, at.0, at.1, mode).await,
                kind => fs.make_node(&caller, at, mode, (kind, device)).await,
            }
        };
        self.serve("mknod", reply, call, self.entry());
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let (caller, name) = (caller(request), bytes(name));
        let call = move |fs: Arc<dyn FileSystem>| async move {
            fs.make_dir(&caller, inode(parent), &name, mode & MODE_PERMISSIONS).await
        };
        self.serve("mkdir", reply, call, self.entry());
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (caller(request), bytes(name));
        let call = move |fs: Arc<dyn FileSystem>| async move {
            fs.unlink(&caller, inode(parent), &name).await
        };
        self.serve("unlink", reply, call, done);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (caller(request), bytes(name));
        let call = move |fs: Arc<dyn FileSystem>| async move {
            fs.remove_dir(&caller, inode(parent), &name).await
        };
        self.serve("rmdir", reply, call, done);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (caller, name, target) = (caller(request), bytes(name), bytes(target.as_os_str()));
        let call = move |fs: Arc<dyn FileSystem>| async move {
            fs.symlink(&caller, inode(parent), &name, &target).await
        };
        self.serve("symlink", reply, call, self.entry());
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (caller, from, to) = (caller(request), bytes(name), bytes(new_name));
        let call = move |fs: Arc<dyn FileSystem>| async move {
            let (from, to) = ((inode(parent), &from[..]), (inode(new_parent), &to[..]));
            fs.rename(&caller, from, to, flags.bits()).await
        };
        self.serve("rename", reply, call, done);
    }

    fn link(
        &self,
        request: &Request,
        number: INodeNo,
        parent: INodeNo,
        name: &OsStr,
        reply: ReplyEntry,
    ) {
        let (caller, name) = (caller(request), bytes(name));
        let call = move |fs: Arc<dyn FileSystem>| async move {
            fs.link(&caller, inode(number), inode(parent), &name).await
        };
        self.serve("link", reply, call, self.entry());
    }

    fn open(&self, request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (caller, flags) = (caller(request), open_flags(flags));
        let privileges = Arc::clone(&self.privileges);
        let call = move |fs: Arc<dyn FileSystem>| async move {
            if flags.truncate {
                privileges.take_from(&*fs, inode(number), caller.uid != 0).await?;
            }
            fs.open(&caller, inode(number), flags).await
        };
        self.serve("open", reply, call, move |reply, opened| {
            reply.opened(FileHandle(opened.handle.0), fopen_flags(opened, flags));
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (caller, name) = (caller(request), bytes(name));
        let exclusive = OFlags::from_bits_retain(flags.cast_unsigned()).contains(OFlags::EXCL);
        let flags = open_flags(OpenFlags(flags));
        let call = move |fs: Arc<dyn FileSystem>| async move {
            let (parent, mode) = (inode(parent), mode & MODE_PERMISSIONS);
            fs.create(&caller, NewFile { parent, name: &name, mode, exclusive, flags }).await
        };
        let privileges = Arc::clone(&self.privileges);
        self.serve("create", reply, call, move |reply, (known, opened): (Known, Opened)| {
            privileges.note(&known.attr);
            let (attr, handle) = (file_attr(&known.attr), FileHandle(opened.handle.0));
            let flags = fopen_flags(opened, flags);
            reply.created(&shorter(&known), &attr, GENERATION, handle, flags);
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let call = move |fs: Arc<dyn FileSystem>| async move {
            fs.read(Handle(handle.0), offset, size as usize).await
        };
        self.serve("read", reply, call, |reply, bytes: kiln_memory::Bytes| {
            metrics::MOUNT_READ.add(bytes.len() as u64);
            reply.data(&bytes);
        });
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut buffer = self.pool.take(data.len());
        buffer.copy_from_slice(data);
        let (bytes, length) = (buffer.freeze(), u32::try_from(data.len()).unwrap_or(u32::MAX));
        let privileges = Arc::clone(&self.privileges);
        let set_ids = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let call = move |fs: Arc<dyn FileSystem>| async move {
            privileges.take_from(&*fs, inode(number), set_ids).await?;
            fs.write(Handle(handle.0), offset, bytes).await
        };
        self.serve("write", reply, call, move |reply, ()| {
            metrics::MOUNT_WRITTEN.add(u64::from(length));
            reply.written(length);
        });
    }

    fn flush(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let owner = kiln_types::LockOwner(owner.0);
        let call =
            move |fs: Arc<dyn FileSystem>| async move { fs.flush(Handle(handle.0), owner).await };
        self.serve("flush", reply, call, done);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let call = move |fs: Arc<dyn FileSystem>| async move {
            fs.release(Handle(handle.0)).await;
            Ok(())
        };
        self.serve("release", reply, call, done);
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let call = move |fs: Arc<dyn FileSystem>| async move { fs.fsync(Handle(handle.0)).await };
        self.serve("fsync", reply, call, done);
    }

    fn opendir(&self, request: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let caller = caller(request);
        let call =
            move |fs: Arc<dyn FileSystem>| async move { fs.open_dir(&caller, inode(number)).await };
        self.serve("opendir", reply, call, |reply, handle: Handle| {
            reply.opened(FileHandle(handle.0), FopenFlags::empty());
        });
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let call = move |fs: Arc<dyn FileSystem>| async move {
            fs.read_dir(Handle(handle.0), offset, PAGE).await
        };
        self.serve("readdir", reply, call, |mut reply, entries: Vec<DirEntry>| {
            for DirEntry { name, cookie, known } in &entries {
                let (number, kind) = (INodeNo(known.attr.inode.0), file_type(known.attr.kind));
                if reply.add(number, *cookie, kind, OsStr::from_bytes(name)) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (fs, privileges) = (Arc::clone(&self.fs), Arc::clone(&self.privileges));
        let call = move |fs: Arc<dyn FileSystem>| async move {
            fs.read_dir(Handle(handle.0), offset, PAGE_PLUS).await
        };
        self.serve("readdirplus", reply, call, move |mut reply, entries: Vec<DirEntry>| {
            for DirEntry { name, cookie, known } in &entries {
                let (attr, time) = (file_attr(&known.attr), shorter(known));
                let name = OsStr::from_bytes(name);
                if reply.add(attr.ino, *cookie, name, &time, &attr, GENERATION) {
                    break;
                }
                // Before the reply goes, and with it the right to forget.
                if name != "." && name != ".." {
                    fs.looked_up(known.attr.inode);
                    privileges.note(&known.attr);
                }
            }
            reply.ok();
        });
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.fs.release_dir(Handle(handle.0));
        reply.ok();
    }

    /// Names are durable when the change of a directory is answered.
    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let call = |fs: Arc<dyn FileSystem>| async move { fs.stat_fs().await };
        self.serve("statfs", reply, call, |reply, space| {
            let blocks = |bytes: u64| bytes / u64::from(BLOCK);
            let (all, free) = (blocks(space.total_bytes), blocks(space.free_bytes));
            // Inodes end when space does: one for each free block is told.
            reply.statfs(all, free, free, space.inodes + free, free, BLOCK, 255, BLOCK);
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        number: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (caller, name, value) = (caller(request), bytes(name), value.to_vec());
        let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
        let how = if flags.contains(XattrFlags::CREATE) {
            SetXattr::Create
        } else if flags.contains(XattrFlags::REPLACE) {
            SetXattr::Replace
        } else {
            SetXattr::Any
        };
        if name == CAPABILITY {
            self.privileges.note_capability(inode(number));
        }
        let call = move |fs: Arc<dyn FileSystem>| async move {
            fs.set_xattr(&caller, inode(number), &name, &value, how).await
        };
        self.serve("setxattr", reply, call, done);
    }

    fn getxattr(
        &self,
        request: &Request,
        number: INodeNo,
        name: &OsStr,
        room: u32,
        reply: ReplyXattr,
    ) {
        let (caller, name) = (caller(request), bytes(name));
        let privileges = (name == CAPABILITY).then(|| Arc::clone(&self.privileges));
        let call = move |fs: Arc<dyn FileSystem>| async move {
            fs.get_xattr(&caller, inode(number), &name).await
        };
        self.serve("getxattr", reply, call, move |reply, value: Vec<u8>| {
            if let Some(privileges) = privileges {
                privileges.note_capability(inode(number));
            }
            xattr(reply, &value, room);
        });
    }

    fn listxattr(&self, request: &Request, number: INodeNo, room: u32, reply: ReplyXattr) {
        let caller = caller(request);
        let call = move |fs: Arc<dyn FileSystem>| async move {
            fs.list_xattrs(&caller, inode(number)).await
        };
        self.serve("listxattr", reply, call, move |reply, names: Vec<Vec<u8>>| {
            let ended = |mut name: Vec<u8>| {
                name.push(0);
                name
            };
            let list: Vec<u8> = names.into_iter().flat_map(ended).collect();
            xattr(reply, &list, room);
        });
    }

    fn removexattr(&self, request: &Request, number: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (caller(request), bytes(name));
        let call = move |fs: Arc<dyn FileSystem>| async move {
            fs.remove_xattr(&caller, inode(number), &name).await
        };
        self.serve("removexattr", reply, call, done);
    }
}
