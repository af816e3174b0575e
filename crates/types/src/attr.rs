//! Inode attributes and the user who asks.

use crate::{InodeId, Layout, Timestamp, TruncateEpoch};

/// The bits of a mode that chmod sets.
pub const MODE_PERMISSIONS: u32 = 0o7777;

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum FileKind {
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
    /// A symbolic link.
    Symlink = 3,
    /// A named pipe.
    Fifo = 4,
    /// A name that a socket is bound to.
    Socket = 5,
    /// A character device.
    CharDevice = 6,
    /// A block device.
    BlockDevice = 7,
}

impl FileKind {
    /// The kind with this number in a record or message.
    pub fn from_number(number: u8) -> Option<Self> {
        let kinds = [
            Self::File,
            Self::Directory,
            Self::Symlink,
            Self::Fifo,
            Self::Socket,
            Self::CharDevice,
            Self::BlockDevice,
        ];
        kinds.into_iter().find(|kind| *kind as u8 == number)
    }

    /// Whether it is only a name for something that a kernel has: a fifo, a socket, a device.
    pub fn is_special(self) -> bool {
        !matches!(self, Self::File | Self::Directory | Self::Symlink)
    }
}

/// The attributes of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Its id.
    pub inode: InodeId,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, 0..0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that lead to it; for a directory 2 plus its subdirectories.
    pub links: u32,
    /// Length in bytes; of a symlink, its target's length; of a directory, 0.
    pub length: u64,
    /// Every byte of a file below was written, none is a hole; 0 for other kinds. See
    /// [`Acknowledged`](crate::Acknowledged).
    pub dense_end: u64,
    /// The number of a device, as Linux packs it into 32 bits; 0 for other kinds.
    pub device: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// The file's truncate epoch; 0 for other kinds.
    pub epoch: TruncateEpoch,
    /// From which chunk index on which epoch a chunk must at least have to count: older chunks there
    /// are what a truncation cut off. Both grow strictly.
    pub floors: Vec<(u64, TruncateEpoch)>,
    /// A file's placement, or what a directory gives to new files below it.
    pub layout: Option<Layout>,
}

impl Attr {
    /// The least epoch that chunk `index` must have to count.
    pub fn epoch_floor(&self, index: u64) -> TruncateEpoch {
        self.floors
            .iter()
            .rev()
            .find(|(first, _)| *first <= index)
            .map_or(TruncateEpoch(0), |(_, epoch)| *epoch)
    }
}

/// The user as whom a request is made.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl Caller {
    /// Root.
    pub fn root() -> Self {
        Self::default()
    }

    /// Whether `gid` is the caller's group or one of its supplementary groups.
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}
