//! What a mounted file system can do: the one interface between its logic and a kernel (or a test that
//! drives it without one).

use async_trait::async_trait;
pub use kiln_client::{SeekTo, SetAttr, SetTime, SetXattr, Space};
use kiln_memory::Bytes;
use kiln_types::{Attr, Caller, FileKind, InodeId, Lock, LockFamily, LockOwner, LockRange, Result};
use std::time::Duration;

/// The extended attribute in which the kernel keeps a program's capabilities. It asks for it before a
/// write, whenever it was given attributes since the last one.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// An open file or directory of one mount; never reused while the mount lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u64);

/// Attributes, and how long the kernel may go by them without asking.
#[derive(Clone, Debug)]
pub struct Known {
    /// The attributes; those of the mount's root have [`InodeId::ROOT`], whatever the root is.
    pub attr: Attr,
    /// How long they may be kept.
    pub attr_for: Duration,
    /// How long the name that led there may be kept; zero where none did.
    pub name_for: Duration,
    /// Of one number, another generation is another inode to the kernel.
    pub generation: u64,
}

/// What a name leads to.
#[derive(Clone, Debug)]
pub enum Looked {
    /// An inode. Counts as one lookup, for [`FileSystem::forget`].
    Up(Known),
    /// Nothing; and how long the kernel may go by that.
    Nothing(Duration),
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OpenFlags {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Cut to length 0 (O_TRUNC).
    pub truncate: bool,
    /// Past the page cache (O_DIRECT).
    pub direct: bool,
    /// Each write is durable when it returns (O_SYNC, O_DSYNC).
    pub sync: bool,
    /// Writes go to the end of the file (O_APPEND).
    pub append: bool,
}

/// Where bytes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteAt {
    /// The first byte; with `append` where the kernel believes that the file ends.
    pub offset: u64,
    /// At the end of the file, wherever that is, if the file was opened so, too.
    pub append: bool,
}

/// What is to be created.
#[derive(Clone, Copy, Debug)]
pub struct NewFile<'a> {
    /// The directory.
    pub parent: InodeId,
    /// The name in it.
    pub name: &'a [u8],
    /// Permission bits, after the umask.
    pub mode: u32,
    /// Fail when the name is taken (O_EXCL).
    pub exclusive: bool,
    /// How it is opened.
    pub flags: OpenFlags,
}

/// An opened file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its handle.
    pub handle: Handle,
    /// Whether the kernel may go on using what it has cached of the content.
    pub keep_cache: bool,
    /// Whether the kernel is to pass every read and write on (O_DIRECT, and O_APPEND, whose writes may land
    /// elsewhere than the kernel believes).
    pub direct: bool,
}

/// An entry of a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// The name; `.` and `..` come first.
    pub name: Vec<u8>,
    /// Where to go on behind it.
    pub cookie: u64,
    /// What it leads to. Entries that a kernel takes in as lookups (all but bare ones) must be counted
    /// with [`FileSystem::looked_up`].
    pub known: Known,
    /// No more is known than inode and kind.
    pub bare: bool,
}

/// Told when the program that waits for an answer got a signal.
pub type Interrupt = tokio::sync::oneshot::Receiver<()>;

/// A mounted file system. Calls come in any number at a time; each is answered within the mount's I/O
/// timeout. Errors carry the errno that a program is to see ([`kiln_types::Code::errno`]).
///
/// Inode numbers are the cluster's, but for the mount's root, which is [`InodeId::ROOT`].
#[async_trait]
pub trait FileSystem: Send + Sync + 'static {
    /// The inode that a directory has under a name.
    async fn lookup(&self, caller: &Caller, parent: InodeId, name: &[u8]) -> Result<Looked>;

    /// The kernel took in an entry of [`Self::read_dir`] as a lookup.
    fn looked_up(&self, inode: InodeId);

    /// The kernel forgets `count` lookups of an inode.
    fn forget(&self, inode: InodeId, count: u64);

    /// An inode's attributes, local writes that nobody else knows of included.
    async fn get_attr(&self, caller: &Caller, inode: InodeId) -> Result<Known>;

    /// Changes attributes; through an open file where the caller has one (its rights count then).
    async fn set_attr(
        &self,
        caller: &Caller,
        inode: InodeId,
        through: Option<Handle>,
        change: SetAttr,
    ) -> Result<Known>;

    /// Where a symlink leads.
    async fn read_link(&self, caller: &Caller, inode: InodeId) -> Result<Vec<u8>>;

    /// Makes a directory.
    async fn make_dir(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<Known>;

    /// Makes a symlink.
    async fn symlink(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<Known>;

    /// Gives a file another name.
    async fn link(
        &self,
        caller: &Caller,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Known>;

    /// Removes a name of what is no directory.
    async fn unlink(&self, caller: &Caller, parent: InodeId, name: &[u8]) -> Result<()>;

    /// Removes an empty directory.
    async fn remove_dir(&self, caller: &Caller, parent: InodeId, name: &[u8]) -> Result<()>;

    /// Moves a name: `flags` as in renameat2(2), 1 RENAME_NOREPLACE, 2 RENAME_EXCHANGE.
    async fn rename(
        &self,
        caller: &Caller,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        flags: u32,
    ) -> Result<()>;

    /// Opens a file.
    async fn open(&self, caller: &Caller, inode: InodeId, flags: OpenFlags) -> Result<Opened>;

    /// Makes a file, unless it is there, and opens it.
    async fn create(&self, caller: &Caller, new: NewFile<'_>) -> Result<(Known, Opened)>;

    /// Makes a file without opening it (mknod of a regular file).
    async fn make_file(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<Known>;

    /// Makes a fifo, a socket or a device with a number.
    async fn make_node(
        &self,
        caller: &Caller,
        at: (InodeId, &[u8]),
        mode: u32,
        node: (FileKind, u32),
    ) -> Result<Known>;

    /// Reads; shorter than `length` at the end of the file only.
    async fn read(&self, handle: Handle, offset: u64, length: usize) -> Result<Bytes>;

    /// Writes all of `bytes`; the bytes of one call with `append` stay together. Durable when [`Self::fsync`]
    /// has returned, or at once for a handle that was opened with `sync`.
    async fn write(&self, handle: Handle, at: WriteAt, bytes: Bytes) -> Result<()>;

    /// Allocates or frees space of a range: `mode` as in fallocate(2), 1 KEEP_SIZE, 2 PUNCH_HOLE,
    /// 0x10 ZERO_RANGE; other ones are `Unsupported`.
    async fn fallocate(&self, handle: Handle, mode: u32, offset: u64, length: u64) -> Result<()>;

    /// The first byte from `offset` on that is stored, or is not (the end of the file is a hole);
    /// `BeyondEnd` when there is none.
    async fn seek(&self, handle: Handle, offset: u64, to: SeekTo) -> Result<u64>;

    /// Copies up to `length` bytes from one place to another; how many were copied, 0 at the end of the
    /// file alone.
    async fn copy_range(&self, from: (Handle, u64), to: (Handle, u64), length: u64) -> Result<u64>;

    /// A descriptor of the handle is closed: what was written becomes visible to others, and an error of
    /// writing it is told here, once. The fcntl(2) locks of `owner` on the file end.
    async fn flush(&self, handle: Handle, owner: LockOwner) -> Result<()>;

    /// What was written becomes durable; an error of writing it is told here, once.
    async fn fsync(&self, handle: Handle) -> Result<()>;

    /// The handle's last descriptor is gone, and with it the locks of its open file description.
    async fn release(&self, handle: Handle);

    /// Makes a file without a name (O_TMPFILE), on the disk of a directory, and opens it. Counts as one
    /// lookup.
    async fn make_temporary(
        &self,
        caller: &Caller,
        parent: InodeId,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Known, Opened)>;

    /// A lock of another owner that excludes `lock`, if there is one; its process is 0 on another host.
    async fn get_lock(&self, handle: Handle, owner: LockOwner, lock: Lock) -> Result<Option<Lock>>;

    /// Locks a range; what `owner` held of it before is replaced. With `wait` it waits until no other
    /// owner's lock excludes it, or is told to end; without, that is an error (`Locked`).
    async fn set_lock(
        &self,
        handle: Handle,
        owner: LockOwner,
        lock: Lock,
        wait: Option<Interrupt>,
    ) -> Result<()>;

    /// Unlocks what `owner` has locked of a range.
    async fn unlock(
        &self,
        handle: Handle,
        owner: LockOwner,
        family: LockFamily,
        range: LockRange,
    ) -> Result<()>;

    /// Opens a directory for reading.
    async fn open_dir(&self, caller: &Caller, inode: InodeId) -> Result<Handle>;

    /// Entries behind the cookie `after` (0: from the start), at least one unless there is none, at most
    /// about `limit`.
    async fn read_dir(&self, handle: Handle, after: u64, limit: usize) -> Result<Vec<DirEntry>>;

    /// Ends the reading of a directory.
    fn release_dir(&self, handle: Handle);

    /// Space and inodes, as they are left for what is at an inode.
    async fn stat_fs(&self, caller: &Caller, inode: InodeId) -> Result<Space>;

    /// An extended attribute's value.
    async fn get_xattr(&self, caller: &Caller, inode: InodeId, name: &[u8]) -> Result<Vec<u8>>;

    /// Sets an extended attribute.
    async fn set_xattr(
        &self,
        caller: &Caller,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        how: SetXattr,
    ) -> Result<()>;

    /// The names of the extended attributes.
    async fn list_xattrs(&self, caller: &Caller, inode: InodeId) -> Result<Vec<Vec<u8>>>;

    /// Whether somebody else may have changed the attributes of an open file since this was last asked.
    fn changed_elsewhere(&self, handle: Handle) -> bool;

    /// Removes an extended attribute.
    async fn remove_xattr(&self, caller: &Caller, inode: InodeId, name: &[u8]) -> Result<()>;

    /// The mount ends: everything written is brought to the cluster, and the client says goodbye.
    async fn shut_down(&self);
}

/// Ends (with an error) when something was dropped, or nothing is mounted (any more).
pub type Dropped = tokio::sync::oneshot::Receiver<()>;

/// What a kernel is told when another client changed something: it drops what it has cached. Calls may
/// come from any task; they return soon and never wait for a request that is under way.
pub trait KernelCache: Send + Sync + 'static {
    /// The attributes of an inode; they are dropped when this returns (an open relies on it).
    fn drop_attributes(&self, inode: InodeId);
    /// The attributes and pages of an inode; the pages are dropped soon after.
    fn drop_content(&self, inode: InodeId) -> Dropped;
    /// What a name leads to; dropped soon after, when no request holds the directory.
    fn drop_name(&self, parent: InodeId, name: &[u8]) -> Dropped;
    /// What any name leads to; dropped soon after.
    fn drop_all_names(&self) -> Dropped;
}
