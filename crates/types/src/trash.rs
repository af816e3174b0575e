//! The trash: what was removed and is kept for a while.

use crate::{Attr, InodeId, Timestamp, Usage};
use std::time::Duration;

/// The trash of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Trash {
    /// What is removed goes there.
    pub on: bool,
    /// How long it stays: when nothing goes there any more, what it was last.
    pub keep: Duration,
    /// How much is in it: files and directories that were removed, and the bytes of the files; what is in the
    /// directories is not counted.
    pub usage: Usage,
}

/// What is in the trash: a file or symlink, or a directory with everything in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrashItem {
    /// Its attributes; the inode names it.
    pub attr: Attr,
    /// When it was removed.
    pub removed: Timestamp,
    /// When it goes for good.
    pub expires: Timestamp,
    /// The user who removed it.
    pub by: u32,
    /// The name that it had.
    pub name: Vec<u8>,
    /// The directory in which it was.
    pub parent: InodeId,
    /// The path of that, as it is now; `None` when it is gone, or in the trash.
    pub directory: Option<Vec<u8>>,
}

impl TrashItem {
    /// The path that it had, where its directory is now.
    pub fn path(&self) -> Option<Vec<u8>> {
        let directory = self.directory.as_deref()?;
        let slash: &[u8] = if directory.ends_with(b"/") { b"" } else { b"/" };
        Some([directory, slash, &self.name].concat())
    }
}
