//! Advisory locks of files: what a program asks for.

use serde::{Deserialize, Serialize};

/// Which call a lock belongs to. Locks of different families do not see each other, as on a local file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum LockFamily {
    /// flock(2): one for the whole file, of an open file description.
    Flock = 1,
    /// fcntl(2): ranges of bytes, of a process or (F_OFD_SETLK) an open file description.
    Posix = 2,
    /// No program's: a client's right to append to a file, which it gives back when another one wants it.
    Append = 3,
}

/// How a range is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum LockMode {
    /// Others may lock it so too.
    Shared = 1,
    /// Nobody else may lock it.
    Exclusive = 2,
}

/// Bytes from `start` to `last`, both included; `last` is `u64::MAX` for "to the end, wherever that is".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LockRange {
    /// The first byte.
    pub start: u64,
    /// The last byte.
    pub last: u64,
}

/// Who holds a lock on one client: what the kernel calls a lock owner. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LockOwner(pub u64);

/// A lock that is asked for or held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lock {
    /// Which call it belongs to.
    pub family: LockFamily,
    /// How it locks.
    pub mode: LockMode,
    /// What it locks.
    pub range: LockRange,
    /// The process, on its own host; for F_GETLK.
    pub pid: u32,
}

impl LockFamily {
    /// The family with this number in a record or message.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Flock, Self::Posix, Self::Append].into_iter().find(|family| *family as u8 == number)
    }
}

impl LockMode {
    /// The mode with this number in a record or message.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Shared, Self::Exclusive].into_iter().find(|mode| *mode as u8 == number)
    }
}

impl LockRange {
    /// The whole file.
    pub const ALL: Self = Self { start: 0, last: u64::MAX };

    /// Whether both have a byte in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.last && other.start <= self.last
    }
}

impl Lock {
    /// Whether two owners cannot hold both.
    pub fn excludes(&self, other: &Self) -> bool {
        let exclusive = self.mode == LockMode::Exclusive || other.mode == LockMode::Exclusive;
        exclusive && self.family == other.family && self.range.overlaps(&other.range)
    }
}
