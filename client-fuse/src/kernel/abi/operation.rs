//! What a request asks for.

use super::init::Offer;
use crate::filesystem::{Handle, OpenFlags, SeekTo, SetAttr, SetXattr, WriteAt};
use kiln_memory::Bytes;
use kiln_types::{InodeId, Lock, LockFamily, LockOwner, LockRange};

/// What is asked for, beside what the header says.
#[derive(Debug)]
pub(crate) enum Operation {
    Init(Offer),
    Lookup {
        name: Vec<u8>,
    },
    /// Has no answer.
    Forget(Vec<(InodeId, u64)>),
    GetAttr,
    SetAttr {
        change: SetAttr,
        through: Option<Handle>,
    },
    ReadLink,
    Symlink {
        name: Vec<u8>,
        target: Vec<u8>,
    },
    /// `mode` with the type, which may be none.
    MakeNode {
        name: Vec<u8>,
        mode: u32,
        device: u32,
    },
    MakeDir {
        name: Vec<u8>,
        mode: u32,
    },
    Unlink {
        name: Vec<u8>,
    },
    RemoveDir {
        name: Vec<u8>,
    },
    Rename {
        from: Vec<u8>,
        to: (InodeId, Vec<u8>),
        flags: u32,
    },
    Link {
        inode: InodeId,
        name: Vec<u8>,
    },
    Open {
        flags: OpenFlags,
    },
    Create {
        name: Vec<u8>,
        mode: u32,
        exclusive: bool,
        flags: OpenFlags,
    },
    MakeTemporary {
        mode: u32,
        flags: OpenFlags,
    },
    Read {
        handle: Handle,
        offset: u64,
        length: usize,
    },
    /// `drop_set_ids`: by somebody whose writes take set-user-id bits away.
    Write {
        handle: Handle,
        at: WriteAt,
        bytes: Bytes,
        drop_set_ids: bool,
    },
    Flush {
        handle: Handle,
        owner: LockOwner,
    },
    Release {
        handle: Handle,
    },
    Fsync {
        handle: Handle,
    },
    Fallocate {
        handle: Handle,
        mode: u32,
        offset: u64,
        length: u64,
    },
    Seek {
        handle: Handle,
        offset: u64,
        to: SeekTo,
    },
    /// `wide`: the answer has room for more than 4 GiB.
    CopyRange {
        from: (Handle, u64),
        to: (Handle, u64),
        to_inode: InodeId,
        length: u64,
        wide: bool,
    },
    GetLock {
        handle: Handle,
        owner: LockOwner,
        lock: Lock,
    },
    SetLock {
        handle: Handle,
        owner: LockOwner,
        lock: Lock,
        waits: bool,
    },
    Unlock {
        handle: Handle,
        owner: LockOwner,
        family: LockFamily,
        range: LockRange,
    },
    OpenDir,
    /// At most `room` bytes, `with_attributes` or without.
    ReadDir {
        handle: Handle,
        after: u64,
        room: usize,
        with_attributes: bool,
    },
    ReleaseDir {
        handle: Handle,
    },
    FsyncDir,
    StatFs,
    /// A `room` of 0 asks for the length, here and below.
    GetXattr {
        name: Vec<u8>,
        room: usize,
    },
    SetXattr {
        name: Vec<u8>,
        value: Vec<u8>,
        how: SetXattr,
    },
    ListXattrs {
        room: usize,
    },
    RemoveXattr {
        name: Vec<u8>,
    },
    /// The program that waits for this request got a signal. Has no answer but "again".
    Interrupt {
        unique: u64,
    },
    /// The last one.
    Destroy,
    /// What no mount answers.
    Other,
}

impl Operation {
    /// The kernel's name of it, for logs and metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Init(_) => "init",
            Self::Lookup { .. } => "lookup",
            Self::Forget(_) => "forget",
            Self::GetAttr => "getattr",
            Self::SetAttr { .. } => "setattr",
            Self::ReadLink => "readlink",
            Self::Symlink { .. } => "symlink",
            Self::MakeNode { .. } => "mknod",
            Self::MakeDir { .. } => "mkdir",
            Self::Unlink { .. } => "unlink",
            Self::RemoveDir { .. } => "rmdir",
            Self::Rename { .. } => "rename",
            Self::Link { .. } => "link",
            Self::Open { .. } => "open",
            Self::Create { .. } => "create",
            Self::MakeTemporary { .. } => "tmpfile",
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush { .. } => "flush",
            Self::Release { .. } => "release",
            Self::Fsync { .. } => "fsync",
            Self::Fallocate { .. } => "fallocate",
            Self::Seek { .. } => "lseek",
            Self::CopyRange { .. } => "copy_file_range",
            Self::GetLock { .. } => "getlk",
            Self::SetLock { waits: true, .. } => "setlkw",
            Self::SetLock { .. } | Self::Unlock { .. } => "setlk",
            Self::OpenDir => "opendir",
            Self::ReadDir { with_attributes: true, .. } => "readdirplus",
            Self::ReadDir { .. } => "readdir",
            Self::ReleaseDir { .. } => "releasedir",
            Self::FsyncDir => "fsyncdir",
            Self::StatFs => "statfs",
            Self::GetXattr { .. } => "getxattr",
            Self::SetXattr { .. } => "setxattr",
            Self::ListXattrs { .. } => "listxattr",
            Self::RemoveXattr { .. } => "removexattr",
            Self::Interrupt { .. } => "interrupt",
            Self::Destroy => "destroy",
            Self::Other => "other",
        }
    }
}
