//! Making and opening files.

use crate::client::Client;
use crate::file::File;
use kiln_rpc::convert::required;
use kiln_rpc::v1;
use kiln_types::{Attr, Caller, Code, InodeId, Result};

/// For what a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OpenMode {
    /// Reading.
    pub read: bool,
    /// Writing.
    pub write: bool,
    /// Whether the content is dropped.
    pub truncate: bool,
}

impl OpenMode {
    /// Reading only.
    pub const READ: Self = Self { read: true, write: false, truncate: false };
    /// Reading and writing.
    pub const EDIT: Self = Self { read: true, write: true, truncate: false };
    /// Writing a new content.
    pub const REPLACE: Self = Self { read: false, write: true, truncate: true };
}

/// A file to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewFile<'a> {
    /// The directory.
    pub parent: InodeId,
    /// The name in it.
    pub name: &'a [u8],
    /// Permission bits, after the umask.
    pub mode: u32,
    /// Fail when the name exists; otherwise what is there is opened.
    pub exclusive: bool,
    /// For what it is opened; a new file opens for everything, whatever its mode.
    pub open: OpenMode,
}

impl Client {
    /// Opens a file.
    ///
    /// # Errors
    /// `StaleHandle` when it is gone, `IsDirectory`, `SymlinkLoop` for a symlink, `PermissionDenied`.
    pub async fn open(&self, caller: &Caller, inode: InodeId, mode: OpenMode) -> Result<File> {
        let sent = self.env.now();
        let turn = self.meta.turn(caller);
        let request = v1::OpenRequest {
            origin: turn.origin(),
            inode: inode.0,
            read: mode.read,
            write: mode.write,
            truncate: mode.truncate,
        };
        self.file(caller, mode, self.meta.open(request).await?, sent)
    }

    /// Walks `path` from the root, following symlinks, and opens what is there, in one round trip.
    ///
    /// # Errors
    /// As [`Self::resolve`] and [`Self::open`].
    pub async fn open_path(&self, caller: &Caller, path: &[u8], mode: OpenMode) -> Result<File> {
        let sent = self.env.now();
        let turn = self.meta.turn(caller);
        let request = v1::OpenPathRequest {
            origin: turn.origin(),
            start: InodeId::ROOT.0,
            path: path.to_vec().into(),
            read: mode.read,
            write: mode.write,
            truncate: mode.truncate,
        };
        match self.meta.open_path(request).await {
            // A server of an earlier version.
            Err(error) if error.code() == Code::Unsupported => {
                let inode = self.resolve(caller, path, true).await?.inode;
                self.open(caller, inode, mode).await
            }
            opened => self.file(caller, mode, opened?, sent),
        }
    }

    /// Makes a file and opens it.
    ///
    /// # Errors
    /// `Exists` with `exclusive`, `IsDirectory` and `SymlinkLoop` when such a thing has the name,
    /// `PermissionDenied`, `NotFound` when the directory is gone, `NameTooLong`, `NotReady` while the
    /// cluster has no chains yet.
    pub async fn create(&self, caller: &Caller, new: &NewFile<'_>) -> Result<File> {
        let sent = self.env.now();
        self.file(caller, new.open, self.create_call(caller, new, false).await?, sent)
    }

    /// Makes a file without a name and opens it; `new.name` and `new.exclusive` do not count. It goes when it is
    /// closed, unless it was given a name ([`Self::link`]).
    ///
    /// # Errors
    /// `PermissionDenied`, `NotFound` when the directory is gone, `NotReady` while the cluster has no chains yet.
    pub async fn create_nameless(&self, caller: &Caller, new: &NewFile<'_>) -> Result<File> {
        let sent = self.env.now();
        self.file(caller, new.open, self.create_call(caller, new, true).await?, sent)
    }

    /// Makes a file that nobody has open (mknod of a regular file).
    ///
    /// # Errors
    /// As [`Self::create`] with `exclusive`.
    pub async fn make_file(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<Attr> {
        let new = NewFile { parent, name, mode, exclusive: true, open: OpenMode::default() };
        required(self.create_call(caller, &new, false).await?.attr, "attr")
    }

    async fn create_call(
        &self,
        caller: &Caller,
        new: &NewFile<'_>,
        nameless: bool,
    ) -> Result<v1::OpenReply> {
        let turn = self.meta.turn(caller);
        let request = v1::CreateRequest {
            origin: turn.origin(),
            parent: new.parent.0,
            name: new.name.to_vec().into(),
            mode: new.mode,
            exclusive: new.exclusive,
            read: new.open.read,
            write: new.open.write,
            truncate: new.open.truncate,
            nameless,
            ..Default::default()
        };
        self.meta.create(request).await
    }
}
