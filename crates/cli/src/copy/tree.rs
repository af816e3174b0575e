//! What a copy asks of either side.

use async_trait::async_trait;
use kiln_memory::{Buffer, Bytes};
use kiln_types::{InodeId, Result, Timestamp};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    /// A socket, a device or a pipe.
    Other,
}

/// What a copy keeps of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) length: u64,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
}

/// An entry of a tree. The local side goes by path, the cluster by inode.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) path: Vec<u8>,
    pub(crate) name: Vec<u8>,
    pub(crate) inode: InodeId,
    pub(crate) info: Info,
}

impl Node {
    /// As people write it.
    pub(crate) fn shown(&self) -> String {
        OsString::from_vec(self.path.clone()).display().to_string()
    }

    /// The path of `name` below it.
    pub(crate) fn below(&self, name: &[u8]) -> Vec<u8> {
        let slash: &[u8] = if self.path.ends_with(b"/") { b"" } else { b"/" };
        [&self.path, slash, name].concat()
    }
}

/// A file that is read.
#[async_trait]
pub(crate) trait Reader: Send + Sync {
    /// Fills `buffer` from `offset`; it comes back shorter when the file ends before.
    async fn read_at(&self, offset: u64, buffer: Buffer) -> Result<Buffer>;

    /// Ends reading, when nothing is under way.
    async fn close(&self);
}

/// A file that is written under a temporary name, or under none.
#[async_trait]
pub(crate) trait Writer: Send + Sync {
    /// Writes `bytes` at `offset`.
    async fn write_at(&self, offset: u64, bytes: Bytes) -> Result<()>;

    /// Gives the file its attributes and then its name, in place of what had it; when nothing is under
    /// way.
    async fn finish(&self, info: &Info) -> Result<()>;

    /// Gives it up.
    async fn abandon(&self);
}

/// One side of a copy.
#[async_trait]
pub(crate) trait Tree: Send + Sync {
    /// What is at `path`; `follow`: also through a symlink in the last place.
    async fn look(&self, path: &[u8], follow: bool) -> Result<Node>;

    /// The entries of a directory.
    async fn list(&self, directory: &Node) -> Result<Vec<Node>>;

    /// Where a symlink leads.
    async fn read_link(&self, link: &Node) -> Result<Vec<u8>>;

    /// Opens a file.
    async fn open(&self, file: &Node) -> Result<Arc<dyn Reader>>;

    /// Makes a directory that its owner may fill, or takes the one that is there.
    async fn make_dir(&self, parent: &Node, name: &[u8]) -> Result<Node>;

    /// Makes a symlink, in place of what had the name.
    async fn make_link(&self, parent: &Node, name: &[u8], target: &[u8], info: &Info)
    -> Result<()>;

    /// Begins a file that will be called `name`.
    async fn create(&self, parent: &Node, name: &[u8]) -> Result<Arc<dyn Writer>>;

    /// Gives a directory its attributes, when everything is in it.
    async fn finish_dir(&self, directory: &Node, info: &Info) -> Result<()>;

    /// Removes what was begun and neither finished nor abandoned.
    async fn clean_up(&self);
}
