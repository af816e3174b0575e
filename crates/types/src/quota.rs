//! Quotas: whom inodes and bytes count for, and how many of both there may be.

use crate::InodeId;
use std::fmt;

/// Whom inodes and bytes count for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Account {
    /// A directory that has a quota: everything below it, but for what another such directory is nearer to.
    Directory(InodeId),
    /// A user: what belongs to them, anywhere.
    User(u32),
    /// A group.
    Group(u32),
}

/// The most that an account may have; `None`: no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct QuotaLimits {
    /// Lengths of files, in bytes.
    pub bytes: Option<u64>,
    /// Files, directories and everything else that has attributes.
    pub inodes: Option<u64>,
}

/// What an account has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Usage {
    /// Lengths of files, in bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// An account with its limits and its usage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Whose.
    pub account: Account,
    /// The limits.
    pub limits: QuotaLimits,
    /// The usage.
    pub usage: Usage,
    /// What was there before it was counted is still being counted.
    pub counting: bool,
    /// Of a directory: a path that leads there; empty when none is known.
    pub path: Vec<u8>,
}

impl Account {
    /// Its kind and number in a record, key or message.
    pub fn to_parts(self) -> (u8, u64) {
        match self {
            Self::Directory(inode) => (1, inode.0),
            Self::User(uid) => (2, uid.into()),
            Self::Group(gid) => (3, gid.into()),
        }
    }

    /// The inverse of [`to_parts`](Self::to_parts).
    pub fn from_parts(kind: u8, number: u64) -> Option<Self> {
        match kind {
            1 => Some(Self::Directory(InodeId(number))),
            2 => Some(Self::User(number.try_into().ok()?)),
            3 => Some(Self::Group(number.try_into().ok()?)),
            _ => None,
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(inode) => write!(f, "directory {inode}"),
            Self::User(uid) => write!(f, "user {uid}"),
            Self::Group(gid) => write!(f, "group {gid}"),
        }
    }
}
