//! The tree of names: what `ls`, `mkdir` and `mv` need.

use crate::client::Client;
use crate::file::File;
use kiln_rpc::convert::required;
use kiln_rpc::v1;
use kiln_types::{Attr, Caller, InodeId, Result, Timestamp};

/// Entries in one page of a directory.
const PAGE: u32 = 1024;

/// A name in a directory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name, without any '/'.
    pub name: Vec<u8>,
    /// What it leads to.
    pub attr: Attr,
}

/// For what a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Writing a new content.
    pub const REPLACE: Self = Self { read: false, write: true, truncate: true };
}

/// Attributes to change; `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub length: Option<u64>,
    /// Last access.
    pub atime: Option<Timestamp>,
    /// Last change.
    pub mtime: Option<Timestamp>,
}

impl Client {
    /// Walks `path` from the root; `follow`: also through a symlink in the last place.
    ///
    /// # Errors
    /// `NotFound` and what else a path walk can say.
    pub async fn resolve(&self, caller: &Caller, path: &[u8], follow: bool) -> Result<Attr> {
        let request = v1::ResolveRequest {
            caller: Some(caller.into()),
            start: InodeId::ROOT.0,
            path: path.to_vec().into(),
            follow,
        };
        required(self.meta.resolve(request).await?.attr, "attr")
    }

    /// The entry `name` of a directory.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `PermissionDenied`.
    pub async fn lookup(&self, caller: &Caller, parent: InodeId, name: &[u8]) -> Result<Attr> {
        let request = v1::LookupRequest {
            caller: Some(caller.into()),
            parent: parent.0,
            name: name.to_vec().into(),
        };
        required(self.meta.lookup(request).await?.attr, "attr")
    }

    /// Opens a file.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`, `PermissionDenied`.
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
        self.file(caller, self.meta.open(request).await?, sent)
    }

    /// Makes the file `name`, which must not exist, and opens it for reading and writing.
    ///
    /// # Errors
    /// `Exists`, `PermissionDenied`, `NotReady` while the cluster has no chains yet.
    pub async fn create(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<File> {
        let sent = self.env.now();
        let turn = self.meta.turn(caller);
        let request = v1::CreateRequest {
            origin: turn.origin(),
            parent: parent.0,
            name: name.to_vec().into(),
            mode,
            exclusive: true,
            read: true,
            write: true,
            ..Default::default()
        };
        self.file(caller, self.meta.create(request).await?, sent)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// `Exists`, `NotFound`, `PermissionDenied`.
    pub async fn make_dir(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<Attr> {
        let turn = self.meta.turn(caller);
        let request = v1::MakeDirRequest {
            origin: turn.origin(),
            parent: parent.0,
            name: name.to_vec().into(),
            mode,
        };
        required(self.meta.make_dir(request).await?.attr, "attr")
    }

    /// Makes a symlink to `target`.
    ///
    /// # Errors
    /// `Exists`, `NotFound`, `PermissionDenied`, `NameTooLong`.
    pub async fn symlink(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr> {
        let turn = self.meta.turn(caller);
        let request = v1::SymlinkRequest {
            origin: turn.origin(),
            parent: parent.0,
            name: name.to_vec().into(),
            target: target.to_vec().into(),
        };
        required(self.meta.symlink(request).await?.attr, "attr")
    }

    /// Where a symlink leads.
    ///
    /// # Errors
    /// `Invalid` when it is none.
    pub async fn read_link(&self, caller: &Caller, inode: InodeId) -> Result<Vec<u8>> {
        let request = v1::GetAttrRequest { caller: Some(caller.into()), inode: inode.0 };
        Ok(self.meta.read_link(request).await?.target.to_vec())
    }

    /// Removes a name: of an empty directory with `directory`, of anything else without.
    ///
    /// # Errors
    /// `NotFound`, `NotEmpty`, `IsDirectory`, `NotDirectory`, `PermissionDenied`.
    pub async fn remove(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        directory: bool,
    ) -> Result<()> {
        let turn = self.meta.turn(caller);
        let request = v1::RemoveRequest {
            origin: turn.origin(),
            parent: parent.0,
            name: name.to_vec().into(),
        };
        match directory {
            true => self.meta.remove_dir(request).await,
            false => self.meta.unlink(request).await,
        }
        .map(drop)
    }

    /// Moves a name, over what has the new name (a file, or an empty directory for a directory).
    ///
    /// # Errors
    /// As rename(2).
    pub async fn rename(
        &self,
        caller: &Caller,
        (parent, name): (InodeId, &[u8]),
        (new_parent, new_name): (InodeId, &[u8]),
    ) -> Result<()> {
        let turn = self.meta.turn(caller);
        let request = v1::RenameRequest {
            origin: turn.origin(),
            parent: parent.0,
            name: name.to_vec().into(),
            new_parent: new_parent.0,
            new_name: new_name.to_vec().into(),
            no_replace: false,
            exchange: false,
        };
        self.meta.rename(request).await.map(drop)
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// `NotPermitted`, `PermissionDenied`, `NotFound`.
    pub async fn set_attr(&self, caller: &Caller, inode: InodeId, change: SetAttr) -> Result<Attr> {
        let turn = self.meta.turn(caller);
        let request = v1::SetAttrRequest {
            origin: turn.origin(),
            inode: inode.0,
            mode: change.mode,
            uid: change.uid,
            gid: change.gid,
            length: change.length,
            atime_ns: change.atime.map(|time| time.0),
            mtime_ns: change.mtime.map(|time| time.0),
            ..Default::default()
        };
        required(Some(self.meta.set_attr(request).await?), "attr")
    }

    /// The entries of a directory behind the cookie `after` (0: from the start), with attributes, and the
    /// cookie for the next page (`None`: that was the last).
    ///
    /// # Errors
    /// `NotDirectory`, `PermissionDenied`.
    pub async fn read_dir(
        &self,
        caller: &Caller,
        inode: InodeId,
        after: u64,
    ) -> Result<(Vec<Entry>, Option<u64>)> {
        let request = v1::ReadDirRequest {
            caller: Some(caller.into()),
            inode: inode.0,
            after,
            limit: PAGE,
            with_attrs: true,
        };
        let reply = self.meta.read_dir(request).await?;
        let next = reply.entries.last().map(|entry| entry.cookie).filter(|_| !reply.end);
        let entry = |entry: v1::DirEntry| {
            Ok(Entry { name: entry.name.to_vec(), attr: required(entry.attr, "attr")? })
        };
        Ok((reply.entries.into_iter().map(entry).collect::<Result<_>>()?, next))
    }

    /// All entries of a directory, sorted by name.
    ///
    /// # Errors
    /// As [`Self::read_dir`].
    pub async fn list_dir(&self, caller: &Caller, inode: InodeId) -> Result<Vec<Entry>> {
        let (mut all, mut next) = (Vec::new(), Some(0));
        while let Some(after) = next {
            let (entries, behind) = self.read_dir(caller, inode, after).await?;
            all.extend(entries);
            next = behind;
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }
}
