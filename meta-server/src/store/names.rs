//! Names of what is no directory: unlink, link, symlink, mknod.

use crate::access::{self, SEARCH, WRITE};
use crate::name;
use crate::records::{Body, Inode, Special, TARGET_BYTES_MAX};
use crate::store::dir::reach_free;
use crate::store::lookup::{expect, inode_of, reach, reach_directory};
use crate::store::{Change, Outcome, Store};
use crate::tx::{Tx, dentry};
use kiln_types::{Attr, Code, Error, FileKind, InodeId, MODE_PERMISSIONS, Result};

/// The most names of one inode.
const LINKS_MAX: u32 = 1 << 30;

impl Store {
    /// Takes a name away from a file or symlink, and with the last one the inode, as soon as nobody
    /// has it open. Its chunks are removed in the background. Answers with the inode as it is then; without, to
    /// whom an earlier version has answered before.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`, `PermissionDenied`, `NotPermitted` (sticky directory),
    /// `StaleHandle`, or what kv reports.
    pub async fn unlink(
        &self,
        change: &Change,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Option<Attr>> {
        name::check(name)?;
        let answer =
            self.change(change, "unlink", &|tx| Box::pin(unlink(tx, change, parent, name))).await?;
        Ok(answer.attr)
    }

    /// Gives an inode another name.
    ///
    /// # Errors
    /// `Exists`, `NotPermitted` for a directory, `NotFound` when its last name is gone,
    /// `TooManyLinks`, `OtherQuota`, `PermissionDenied`, `Invalid` and `NameTooLong` for the name, `StaleHandle`,
    /// or what kv reports.
    pub async fn link(
        &self,
        change: &Change,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Attr> {
        name::check(name)?;
        let answer = self
            .change(change, "link", &|tx| Box::pin(link(tx, change, inode, parent, name)))
            .await?;
        answer.into_attr()
    }

    /// Makes a symlink.
    ///
    /// # Errors
    /// `Exists`, `PermissionDenied`, `NotFound` for an empty target, `NameTooLong` for one above
    /// [`TARGET_BYTES_MAX`], `Invalid` and `NameTooLong` for the name, `StaleHandle`, or what kv
    /// reports.
    pub async fn symlink(
        &self,
        change: &Change,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr> {
        name::check(name)?;
        check_target(target)?;
        let id = self.next_inode().await?;
        let answer = self
            .change(change, "symlink", &|tx| {
                let body = Body::Symlink { target: target.to_vec() };
                Box::pin(make(tx, change, NewInode { id, parent, name, mode: 0o777, body }))
            })
            .await?;
        answer.into_attr()
    }

    /// Makes a fifo, a socket, or a device with the number `device`.
    ///
    /// # Errors
    /// `Invalid` for another kind, `NotPermitted` for a device unless root makes it; `Exists`,
    /// `PermissionDenied`, `Invalid` and `NameTooLong` for the name, `StaleHandle`, or what kv reports.
    pub async fn make_node(
        &self,
        change: &Change,
        (parent, name): (InodeId, &[u8]),
        mode: u32,
        kind: FileKind,
        device: u32,
    ) -> Result<Attr> {
        name::check(name)?;
        if !kind.is_special() {
            return Err(Error::invalid(format!("{kind:?} is not made as a node")));
        }
        let is_device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
        if is_device && change.who.caller.uid != 0 {
            return Err(Error::new(Code::NotPermitted, "only root makes devices"));
        }
        let device = if is_device { device } else { 0 };
        let id = self.next_inode().await?;
        let mode = mode & MODE_PERMISSIONS;
        let answer = self
            .change(change, "make_node", &|tx| {
                let body = Body::Special(Special { kind, device });
                Box::pin(make(tx, change, NewInode { id, parent, name, mode, body }))
            })
            .await?;
        answer.into_attr()
    }
}

fn check_target(target: &[u8]) -> Result<()> {
    if target.is_empty() {
        return Err(Error::new(Code::NotFound, "a symlink to nothing"));
    }
    if target.len() > TARGET_BYTES_MAX {
        let text = format!("a target of {} bytes, at most {TARGET_BYTES_MAX}", target.len());
        return Err(Error::new(Code::NameTooLong, text));
    }
    if target.contains(&0) {
        return Err(Error::invalid("a target with a NUL byte"));
    }
    Ok(())
}

async fn unlink(
    tx: &mut Tx<'_, '_>,
    change: &Change,
    parent: InodeId,
    name: &[u8],
) -> Result<Outcome> {
    let caller = &change.who.caller;
    let directory = reach_directory(tx, &change.who, parent, SEARCH).await?;
    let found = expect(tx, directory.id, name).await?;
    access::require(&directory, caller, WRITE | SEARCH)?;
    let mut inode = inode_of(tx, &found).await?;
    access::require_sticky(&directory, &inode, caller)?;
    if inode.is_directory() {
        let text = format!("'{}' is a directory", name.escape_ascii());
        return Err(Error::new(Code::IsDirectory, text));
    }
    tx.remove(directory.id, &found).await?;
    tx.touch(directory.id);
    tx.drop_name(&mut inode, directory.id, name).await?;
    Ok(Outcome::from(tx.attr(&inode).await?))
}

pub(crate) async fn link(
    tx: &mut Tx<'_, '_>,
    change: &Change,
    inode: InodeId,
    parent: InodeId,
    name: &[u8],
) -> Result<Outcome> {
    let mut inode = reach(tx, &change.who, inode).await?;
    let directory = reach_free(tx, &change.who, parent, name).await?;
    if inode.is_directory() {
        return Err(Error::new(Code::NotPermitted, "a directory has one name"));
    }
    let was_nameless = match &mut inode.body {
        Body::File(file) => std::mem::take(&mut file.nameless),
        _ => false,
    };
    if inode.links == 0 && !was_nameless {
        return Err(Error::new(Code::NotFound, "the inode's last name is gone"));
    }
    if was_nameless {
        inode.quota = directory.quota;
    } else if inode.quota != directory.quota {
        return Err(Error::new(Code::OtherQuota, "the directory counts for another quota"));
    }
    if inode.links >= LINKS_MAX {
        return Err(Error::new(Code::TooManyLinks, format!("{LINKS_MAX} names")));
    }
    tx.room.clone()?;
    inode.links += 1;
    inode.ctime = tx.now;
    if inode.parent == InodeId(0) || was_nameless {
        inode.parent = directory.id;
    }
    tx.insert(directory.id, dentry(name, inode.id, inode.kind())).await?;
    tx.touch(directory.id);
    tx.put_inode(&inode);
    Ok(Outcome::from(tx.attr(&inode).await?))
}

/// What a new inode is to be.
struct NewInode<'a> {
    id: InodeId,
    parent: InodeId,
    name: &'a [u8],
    mode: u32,
    body: Body,
}

/// Makes what has neither content nor entries.
async fn make(tx: &mut Tx<'_, '_>, change: &Change, new: NewInode<'_>) -> Result<Outcome> {
    let caller = &change.who.caller;
    let directory = reach_free(tx, &change.who, new.parent, new.name).await?;
    let (gid, mode) = access::group_and_mode(&directory, caller, new.mode, false);
    let inode = Inode {
        id: new.id,
        mode,
        uid: caller.uid,
        gid,
        parent: directory.id,
        links: 1,
        atime: tx.now,
        mtime: tx.now,
        ctime: tx.now,
        btime: tx.now,
        body: new.body,
        quota: directory.quota,
        counted: true,
    };
    tx.insert(directory.id, dentry(new.name, inode.id, inode.kind())).await?;
    tx.touch(directory.id);
    tx.make_inode(&inode)?;
    Ok(Outcome::from(tx.attr(&inode).await?))
}
