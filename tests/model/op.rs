//! Operations of a file system, and what a program sees of them.

use rustix::fs::{FallocateFlags, OFlags, RenameFlags, SeekFrom, XattrFlags};
use rustix::io::Errno;
use std::fmt;

/// Bytes to write, made from a seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub(crate) seed: u64,
    pub(crate) length: usize,
}

impl Fill {
    pub(crate) fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        fastrand::Rng::with_seed(self.seed).fill(&mut bytes);
        bytes
    }
}

/// A time to set, or what utimensat(2) knows besides.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Time {
    At(i64, u32),
    Now,
    Omit,
}

/// How a handle's file becomes durable.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sync {
    File,
    Data,
    FileSystem,
}

/// One operation. Paths are relative to the tree's root; slots are places for open files.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// What follows is done by this user of [`super::user::USERS`].
    Become(usize),
    Open {
        slot: usize,
        path: String,
        flags: OFlags,
        mode: u32,
    },
    Close {
        slot: usize,
    },
    Read {
        slot: usize,
        length: usize,
    },
    Write {
        slot: usize,
        fill: Fill,
    },
    ReadAt {
        slot: usize,
        at: u64,
        length: usize,
    },
    WriteAt {
        slot: usize,
        at: u64,
        fill: Fill,
    },
    Seek {
        slot: usize,
        to: SeekFrom,
    },
    MapRead {
        slot: usize,
        at: u64,
        length: usize,
    },
    MapWrite {
        slot: usize,
        at: u64,
        fill: Fill,
    },
    CopyRange {
        from: (usize, u64),
        to: (usize, u64),
        length: usize,
    },
    Allocate {
        slot: usize,
        how: FallocateFlags,
        at: u64,
        length: u64,
    },
    /// Where data is and where holes are.
    Holes {
        slot: usize,
    },
    Sync {
        slot: usize,
        how: Sync,
    },
    SetLength {
        slot: usize,
        length: u64,
    },
    Attr {
        slot: usize,
    },
    SetMode {
        slot: usize,
        mode: u32,
    },
    SetOwner {
        slot: usize,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    SetTimes {
        slot: usize,
        atime: Time,
        mtime: Time,
    },
    Truncate {
        path: String,
        length: u64,
    },
    Stat {
        path: String,
        follow: bool,
    },
    Access {
        path: String,
        mode: u32,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    Chown {
        path: String,
        follow: bool,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Times {
        path: String,
        follow: bool,
        atime: Time,
        mtime: Time,
    },
    MakeDir {
        path: String,
        mode: u32,
    },
    RemoveDir {
        path: String,
    },
    Unlink {
        path: String,
    },
    Rename {
        from: String,
        to: String,
        flags: RenameFlags,
    },
    Link {
        from: String,
        to: String,
        follow: bool,
    },
    Symlink {
        target: String,
        path: String,
    },
    ReadLink {
        path: String,
    },
    List {
        path: String,
    },
    GetXattr {
        path: String,
        name: &'static str,
    },
    SetXattr {
        path: String,
        name: &'static str,
        fill: Fill,
        flags: XattrFlags,
    },
    ListXattrs {
        path: String,
    },
    RemoveXattr {
        path: String,
        name: &'static str,
    },
}

/// What an operation returned.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing but that it was done.
    Done,
    /// The slot is empty, or the operation makes no sense for what is in it.
    Nothing,
    Number(u64),
    Bytes(Vec<u8>),
    Names(Vec<String>),
    Attr(Attr),
}

/// Attributes as far as file systems agree about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attr {
    pub(crate) kind: &'static str,
    pub(crate) mode: String,
    pub(crate) owner: (u32, u32),
    /// Names of a file; of directories each file system has its own count.
    pub(crate) links: Option<u64>,
    /// Length of a file or a symlink.
    pub(crate) size: Option<u64>,
    /// When it was set to a time long ago.
    pub(crate) mtime: Option<(i64, u64)>,
    /// The same, right after it was set only: reading changes it.
    pub(crate) atime: Option<(i64, u64)>,
}

pub(crate) type Outcome = Result<Seen, Errno>;

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Nothing => f.write_str("nothing to do"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Bytes(bytes) => {
                write!(f, "{} bytes {:02x?}..", bytes.len(), &bytes[..bytes.len().min(8)])
            }
            Self::Names(names) => write!(f, "{names:?}"),
            Self::Attr(attr) => write!(f, "{attr:?}"),
        }
    }
}

/// How two outcomes differ, if they do.
pub(crate) fn difference(expected: &Outcome, found: &Outcome) -> Option<String> {
    if expected == found {
        return None;
    }
    let mut said = format!("expected {expected:?}\n   found {found:?}");
    if let (Ok(Seen::Bytes(expected)), Ok(Seen::Bytes(found))) = (expected, found) {
        said += &first_difference(expected, found);
    }
    Some(said)
}

/// Where two contents differ first and last.
pub(crate) fn first_difference(expected: &[u8], found: &[u8]) -> String {
    let pairs = || expected.iter().zip(found).enumerate();
    let first = pairs().find(|(_, (a, b))| a != b).map(|(at, _)| at);
    let last = pairs().rfind(|(_, (a, b))| a != b).map(|(at, _)| at);
    let (Some(first), Some(last)) = (first, last) else {
        return format!("\n   the lengths differ: {} and {}", expected.len(), found.len());
    };
    let show = |bytes: &[u8]| format!("{:02x?}", &bytes[first..bytes.len().min(first + 8)]);
    format!(
        "\n   they differ from {first} to {last}: expected {}, found {}",
        show(expected),
        show(found)
    )
}
