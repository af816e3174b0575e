//! The tree of names: what `ls`, `mkdir` and `mv` need.

use crate::client::Client;
use kiln_rpc::convert::{file_kind, required};
use kiln_rpc::v1;
use kiln_types::{Attr, Caller, Code, Error, FileKind, InodeId, Result};

/// Entries in one page of a directory.
const PAGE: u32 = 1024;

/// A name in a directory and all about what it leads to.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name, without any '/'.
    pub name: Vec<u8>,
    /// What it leads to.
    pub attr: Attr,
}

/// An entry of a directory, as it is read page by page.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// The name.
    pub name: Vec<u8>,
    /// What it leads to.
    pub inode: InodeId,
    /// What that is.
    pub kind: FileKind,
    /// The listing goes on behind this: from 256 up to 2^63 - 1, and the same as long as the entry
    /// exists.
    pub cookie: u64,
    /// The attributes, if they were asked for and the caller may search the directory.
    pub attr: Option<Attr>,
}

/// What a rename does with what has the new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Rename {
    /// It goes: a file for a file, an empty directory for a directory.
    #[default]
    Replace,
    /// There must be nothing (RENAME_NOREPLACE).
    NoReplace,
    /// It gets the old name (RENAME_EXCHANGE).
    Exchange,
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

    /// Makes a fifo, a socket, or a device with a number as in [`Attr::device`].
    ///
    /// # Errors
    /// `Exists`, `NotFound`, `PermissionDenied`, `NameTooLong`; `NotPermitted` for a device, unless
    /// root makes it; `Invalid` for another kind.
    pub async fn make_node(
        &self,
        caller: &Caller,
        (parent, name): (InodeId, &[u8]),
        mode: u32,
        (kind, device): (FileKind, u32),
    ) -> Result<Attr> {
        let turn = self.meta.turn(caller);
        let request = v1::MakeNodeRequest {
            origin: turn.origin(),
            parent: parent.0,
            name: name.to_vec().into(),
            mode,
            kind: u32::from(kind as u8),
            device,
        };
        required(self.meta.make_node(request).await?.attr, "attr")
    }

    /// Where a symlink leads.
    ///
    /// # Errors
    /// `Invalid` when it is none.
    pub async fn read_link(&self, caller: &Caller, inode: InodeId) -> Result<Vec<u8>> {
        let request = v1::GetAttrRequest { caller: Some(caller.into()), inode: inode.0 };
        Ok(self.meta.read_link(request).await?.target.to_vec())
    }

    /// Removes a name: of an empty directory with `directory`, of anything else without. Answers with what had the
    /// name, as it is then; an earlier version's server does not tell.
    ///
    /// # Errors
    /// `NotFound`, `NotEmpty`, `IsDirectory`, `NotDirectory`, `PermissionDenied`.
    pub async fn remove(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        directory: bool,
    ) -> Result<Option<Attr>> {
        self.take_away(caller, (parent, name), directory, false).await
    }

    /// The same; what loses its last name goes for good, also when there is a trash.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub async fn remove_past_trash(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        directory: bool,
    ) -> Result<Option<Attr>> {
        self.take_away(caller, (parent, name), directory, true).await
    }

    async fn take_away(
        &self,
        caller: &Caller,
        (parent, name): (InodeId, &[u8]),
        directory: bool,
        past_trash: bool,
    ) -> Result<Option<Attr>> {
        let turn = self.meta.turn(caller);
        let request = v1::RemoveRequest {
            origin: turn.origin(),
            parent: parent.0,
            name: name.to_vec().into(),
            past_trash,
        };
        let gone = match directory {
            true => self.meta.remove_dir(request).await?,
            false => self.meta.unlink(request).await?,
        };
        gone.attr.map(Attr::try_from).transpose()
    }

    /// Removes a directory with everything in it: its name at once, the rest in the background; with `past_trash`
    /// also when there is a trash. What the caller could not remove one by one is looked for before anything changes.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `PermissionDenied`, `NotPermitted` (sticky directory).
    pub async fn remove_tree(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        past_trash: bool,
    ) -> Result<()> {
        let turn = self.meta.turn(caller);
        let request = v1::RemoveRequest {
            origin: turn.origin(),
            parent: parent.0,
            name: name.to_vec().into(),
            past_trash,
        };
        self.meta.remove_tree(request).await.map(drop)
    }

    /// Gives a file or symlink another name.
    ///
    /// # Errors
    /// `Exists`, `NotPermitted` for a directory, `NotFound` when its last name is gone, `TooManyLinks`,
    /// `PermissionDenied`, `StaleHandle`.
    pub async fn link(
        &self,
        caller: &Caller,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Attr> {
        let turn = self.meta.turn(caller);
        let request = v1::LinkRequest {
            origin: turn.origin(),
            inode: inode.0,
            parent: parent.0,
            name: name.to_vec().into(),
        };
        required(self.meta.link(request).await?.attr, "attr")
    }

    /// Moves a name. Answers with what moved, where that is one thing and no directory, or with the directory that
    /// another one replaced.
    ///
    /// # Errors
    /// As renameat2(2).
    pub async fn rename(
        &self,
        caller: &Caller,
        (parent, name): (InodeId, &[u8]),
        (new_parent, new_name): (InodeId, &[u8]),
        how: Rename,
    ) -> Result<Option<Attr>> {
        let turn = self.meta.turn(caller);
        let request = v1::RenameRequest {
            origin: turn.origin(),
            parent: parent.0,
            name: name.to_vec().into(),
            new_parent: new_parent.0,
            new_name: new_name.to_vec().into(),
            no_replace: how == Rename::NoReplace,
            exchange: how == Rename::Exchange,
        };
        self.meta.rename(request).await?.attr.map(Attr::try_from).transpose()
    }

    /// At most `limit` entries of a directory behind the cookie `after` (0: from the start), in the
    /// order of cookies, and whether there are no more. What is there all the time appears once,
    /// whatever changes meanwhile. Neither `.` nor `..` is among them.
    ///
    /// # Errors
    /// `NotDirectory`, `PermissionDenied`, `StaleHandle`.
    pub async fn read_dir(
        &self,
        caller: &Caller,
        inode: InodeId,
        after: u64,
        limit: u32,
        with_attrs: bool,
    ) -> Result<(Vec<DirEntry>, bool)> {
        let caller = Some(caller.into());
        let request = v1::ReadDirRequest { caller, inode: inode.0, after, limit, with_attrs };
        let reply = self.meta.read_dir(request).await?;
        let entry = |entry: v1::DirEntry| {
            Ok(DirEntry {
                name: entry.name.to_vec(),
                inode: InodeId(entry.inode),
                kind: file_kind(entry.kind)?,
                cookie: entry.cookie,
                attr: entry.attr.map(Attr::try_from).transpose()?,
            })
        };
        Ok((reply.entries.into_iter().map(entry).collect::<Result<_>>()?, reply.end))
    }

    /// All entries of a directory with their attributes, sorted by name.
    ///
    /// # Errors
    /// As [`Self::read_dir`], and `PermissionDenied` when the caller may read the names only.
    pub async fn list_dir(&self, caller: &Caller, inode: InodeId) -> Result<Vec<Entry>> {
        let (mut all, mut after, mut end) = (Vec::new(), 0, false);
        while !end {
            let (entries, is_last) = self.read_dir(caller, inode, after, PAGE, true).await?;
            (after, end) = (entries.last().map_or(after, |entry| entry.cookie), is_last);
            for DirEntry { name, attr, .. } in entries {
                let attr = attr.ok_or_else(|| {
                    let text = format!("directory {inode} may be read, not searched");
                    Error::new(Code::PermissionDenied, text)
                })?;
                all.push(Entry { name, attr });
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }
}
