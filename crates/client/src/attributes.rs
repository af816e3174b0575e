//! What inodes say about themselves: attributes, extended attributes, space.

use crate::client::Client;
use kiln_rpc::convert::required;
use kiln_rpc::v1;
use kiln_types::{Attr, Caller, InodeId, LayoutWish, Result, Timestamp};

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The metadata server's present.
    Now,
    /// This one.
    At(Timestamp),
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
    pub atime: Option<SetTime>,
    /// Last change of the content.
    pub mtime: Option<SetTime>,
    /// Of a directory: what new files in it are to be like.
    pub layout: Option<LayoutWish>,
}

impl SetAttr {
    /// The call that asks for it; `session`: the open file through which it is asked for.
    pub(crate) fn request(
        &self,
        origin: Option<v1::Origin>,
        inode: InodeId,
        session: &[u8],
    ) -> v1::SetAttrRequest {
        let at = |time: Option<SetTime>| match time {
            Some(SetTime::At(time)) => Some(time.0),
            _ => None,
        };
        v1::SetAttrRequest {
            origin,
            inode: inode.0,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            length: self.length,
            atime_ns: at(self.atime),
            mtime_ns: at(self.mtime),
            atime_now: self.atime == Some(SetTime::Now),
            mtime_now: self.mtime == Some(SetTime::Now),
            session: session.to_vec().into(),
            written: None,
            keeps_set_ids: false,
            layout: self
                .layout
                .map(|wish| v1::LayoutWish { chunk_bytes: wish.chunk_bytes, stripe: wish.stripe }),
        }
    }
}

/// Whether an extended attribute has to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SetXattr {
    /// Either.
    #[default]
    Any,
    /// It must not.
    Create,
    /// It must.
    Replace,
}

/// Space and inodes of the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that files can have in all, replicas counted.
    pub total_bytes: u64,
    /// Bytes that are free for them.
    pub free_bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// How many more there may be; `None`: as many as there is space for.
    pub free_inodes: Option<u64>,
}

impl Client {
    /// An inode's attributes.
    ///
    /// # Errors
    /// `StaleHandle` when it is gone, `NotAuthorized` outside of the credential's directory.
    pub async fn get_attr(&self, caller: &Caller, inode: InodeId) -> Result<Attr> {
        let request = v1::GetAttrRequest { caller: Some(caller.into()), inode: inode.0 };
        required(Some(self.meta.get_attr(request).await?), "attr")
    }

    /// Changes attributes, all or none; [`crate::File::set_attr`] does it with an open file's
    /// rights.
    ///
    /// # Errors
    /// `NotPermitted` when only the owner or root may, `PermissionDenied`, `StaleHandle`, `IsDirectory`
    /// and `Invalid` for the length of what is no file, `FileTooLarge`.
    pub async fn set_attr(&self, caller: &Caller, inode: InodeId, change: SetAttr) -> Result<Attr> {
        let turn = self.meta.turn(caller);
        let request = change.request(turn.origin(), inode, &[]);
        required(Some(self.meta.set_attr(request).await?), "attr")
    }

    /// Space and inodes.
    ///
    /// # Errors
    /// `NotReady` when no storage server answers for the whole time.
    pub async fn stat_fs(&self) -> Result<Space> {
        self.space(v1::StatFsRequest { caller: None, inode: 0 }).await
    }

    /// Space and inodes as the quota of the directory leaves them for which an inode counts.
    ///
    /// # Errors
    /// As [`Self::stat_fs`], and `StaleHandle`.
    pub async fn stat_fs_at(&self, caller: &Caller, inode: InodeId) -> Result<Space> {
        let caller = Some(caller.into());
        self.space(v1::StatFsRequest { caller, inode: inode.0 }).await
    }

    async fn space(&self, request: v1::StatFsRequest) -> Result<Space> {
        let reply = self.meta.stat_fs(request).await?;
        let v1::StatFsReply { total_bytes, free_bytes, inodes, free_inodes } = reply;
        Ok(Space { total_bytes, free_bytes, inodes, free_inodes })
    }

    /// An extended attribute's value.
    ///
    /// # Errors
    /// `NoAttribute`, `PermissionDenied`, `Unsupported` for an unknown namespace, `OutOfRange` for a bad
    /// name, `StaleHandle`.
    pub async fn get_xattr(&self, caller: &Caller, inode: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        let request = v1::XattrRequest {
            caller: Some(caller.into()),
            inode: inode.0,
            name: name.to_vec().into(),
        };
        Ok(self.meta.get_xattr(request).await?.value.to_vec())
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// `Exists` and `NoAttribute` as `how` wants, `TooBig` for a value above 64 KiB, `NoSpace` for too
    /// many names, `NotPermitted`, and those of [`Self::get_xattr`].
    pub async fn set_xattr(
        &self,
        caller: &Caller,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        how: SetXattr,
    ) -> Result<()> {
        let turn = self.meta.turn(caller);
        let request = v1::SetXattrRequest {
            origin: turn.origin(),
            inode: inode.0,
            name: name.to_vec().into(),
            value: value.to_vec().into(),
            create_only: how == SetXattr::Create,
            replace_only: how == SetXattr::Replace,
        };
        self.meta.set_xattr(request).await.map(drop)
    }

    /// The names of the extended attributes that the caller may know of.
    ///
    /// # Errors
    /// `StaleHandle`.
    pub async fn list_xattrs(&self, caller: &Caller, inode: InodeId) -> Result<Vec<Vec<u8>>> {
        let request = v1::GetAttrRequest { caller: Some(caller.into()), inode: inode.0 };
        let names = self.meta.list_xattrs(request).await?.names;
        Ok(names.into_iter().map(|name| name.to_vec()).collect())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// As [`Self::set_xattr`].
    pub async fn remove_xattr(&self, caller: &Caller, inode: InodeId, name: &[u8]) -> Result<()> {
        let turn = self.meta.turn(caller);
        let request = v1::RemoveXattrRequest {
            origin: turn.origin(),
            inode: inode.0,
            name: name.to_vec().into(),
        };
        self.meta.remove_xattr(request).await.map(drop)
    }
}
