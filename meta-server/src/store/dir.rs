//! Directories: readdir, mkdir, rmdir.

use crate::access::{self, READ, SEARCH, WRITE};
use crate::name;
use crate::records::{Body, Directory, Inode};
use crate::store::lookup::{expect, inode_of, reach_directory};
use crate::store::prune::require_attached;
use crate::store::{Change, Outcome, Store, Who};
use crate::tx::{Found, Tx, dentry};
use kiln_types::{Attr, Code, Error, FileKind, InodeId, MODE_PERMISSIONS, Result};

/// The most entries in one page.
const PAGE_MAX: usize = 1024;

/// An entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub name: Vec<u8>,
    /// The inode.
    pub inode: InodeId,
    /// What it is.
    pub kind: FileKind,
    /// The listing goes on behind this; from 256 up to 2^63 - 1, and fixed as long as the entry
    /// exists.
    pub cookie: u64,
    /// Its attributes, if they were asked for.
    pub attr: Option<Attr>,
}

impl Store {
    /// The entries of a directory behind a cookie (0: from the start) in the order of cookies, at
    /// most `limit`, and whether there are no more. What is there throughout a listing appears in
    /// it once, whatever changes meanwhile. `.` and `..` are left to the mount.
    ///
    /// # Errors
    /// `NotDirectory`, `PermissionDenied`, `StaleHandle`, or what kv reports.
    pub async fn read_dir(
        &self,
        who: &Who,
        inode: InodeId,
        after: u64,
        limit: usize,
        with_attrs: bool,
    ) -> Result<(Vec<Listed>, bool)> {
        let limit = if limit == 0 { PAGE_MAX } else { limit.min(PAGE_MAX) };
        self.transact("readdir", &|tx| {
            Box::pin(async move {
                let directory = reach_directory(tx, who, inode, READ).await?;
                let (entries, end) = tx.entries(directory.id, after, limit).await?;
                // Names are what reading shows; attributes take the right to search.
                let with_attrs = with_attrs && access::allows(&directory, &who.caller, SEARCH);
                let mut listed = Vec::with_capacity(entries.len());
                for (cookie, entry) in entries {
                    let attr = match with_attrs {
                        true => readable(entry.inode, attr_of(tx, entry.inode).await)?,
                        false => None,
                    };
                    let (name, inode, kind) = (entry.name, entry.inode, entry.kind);
                    listed.push(Listed { name, inode, kind, cookie, attr });
                }
                Ok((listed, end))
            })
        })
        .await
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// `Exists`, `PermissionDenied`, `Invalid` and `NameTooLong` for the name, `NotDirectory`,
    /// `StaleHandle`, or what kv reports.
    pub async fn make_dir(
        &self,
        change: &Change,
        parent: InodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<Attr> {
        name::check(name)?;
        let id = self.next_inode().await?;
        let answer = self
            .change(change, "mkdir", &|tx| Box::pin(make(tx, change, id, parent, name, mode)))
            .await?;
        answer.into_attr()
    }

    /// Removes an empty directory. Answers as [`unlink`](Self::unlink).
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NotEmpty`, `PermissionDenied`, `NotPermitted` (sticky
    /// directory), `StaleHandle`, or what kv reports.
    pub async fn remove_dir(
        &self,
        change: &Change,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Option<Attr>> {
        name::check(name)?;
        let answer =
            self.change(change, "rmdir", &|tx| Box::pin(remove(tx, change, parent, name))).await?;
        Ok(answer.attr)
    }
}

/// One damaged file does not hide the others of its directory.
fn readable(inode: InodeId, attr: Result<Attr>) -> Result<Option<Attr>> {
    match attr {
        Err(error) if matches!(error.code(), Code::Corrupt | Code::StaleHandle) => {
            tracing::error!(%inode, %error, "a name of what cannot be read; 'kiln admin meta check' tells more");
            Ok(None)
        }
        attr => attr.map(Some),
    }
}

async fn attr_of(tx: &mut Tx<'_, '_>, inode: InodeId) -> Result<Attr> {
    let inode = tx.inode(inode).await?;
    tx.attr(&inode).await
}

/// The directory in which the caller may make `name`, which is free.
///
/// # Errors
/// `Exists`, `PermissionDenied`, and those of reaching it.
pub(crate) async fn reach_free(
    tx: &mut Tx<'_, '_>,
    who: &Who,
    parent: InodeId,
    name: &[u8],
) -> Result<Inode> {
    let directory = reach_directory(tx, who, parent, SEARCH).await?;
    if tx.find(directory.id, name).await?.is_some() {
        return Err(Error::new(Code::Exists, format!("'{}' exists", name.escape_ascii())));
    }
    access::require(&directory, &who.caller, WRITE | SEARCH)?;
    require_attached(&directory)?;
    Ok(directory)
}

async fn make(
    tx: &mut Tx<'_, '_>,
    change: &Change,
    id: InodeId,
    parent: InodeId,
    name: &[u8],
    mode: u32,
) -> Result<Outcome> {
    let caller = &change.who.caller;
    let above = reach_free(tx, &change.who, parent, name).await?;
    let (gid, mode) = access::group_and_mode(&above, caller, mode & MODE_PERMISSIONS, true);
    let inode = Inode {
        id,
        mode,
        uid: caller.uid,
        gid,
        parent: above.id,
        links: 0,
        atime: tx.now,
        mtime: tx.now,
        ctime: tx.now,
        btime: tx.now,
        body: Body::Directory(Directory { mtime_set: tx.now, wish: above.directory()?.wish }),
        quota: above.quota,
        counted: true,
    };
    tx.insert(above.id, dentry(name, id, FileKind::Directory)).await?;
    tx.touch(above.id);
    tx.add_links(above.id, 1);
    tx.make_inode(&inode)?;
    Ok(Outcome::from(tx.attr(&inode).await?))
}

async fn remove(
    tx: &mut Tx<'_, '_>,
    change: &Change,
    parent: InodeId,
    name: &[u8],
) -> Result<Outcome> {
    let (above, found, mut inode) = reach_removable(tx, change, parent, name).await?;
    require_empty(tx, &inode).await?;
    take_out(tx, above, &found).await?;
    drop_directory(tx, &mut inode, above, name).await
}

/// Drops an empty directory whose entry `name` is gone, and answers with it as who has it open sees it.
pub(crate) async fn drop_directory(
    tx: &mut Tx<'_, '_>,
    inode: &mut Inode,
    above: InodeId,
    name: &[u8],
) -> Result<Outcome> {
    let attr = tx.attr(inode).await?;
    if !tx.discard(inode, above, name) {
        tx.drop_inode(inode);
    }
    Ok(Outcome::from(Attr { links: 0, ctime: tx.now, ..attr }))
}

/// The directory with a name that the caller may take away: where the name is, its entry, the inode.
///
/// # Errors
/// `NotFound`, `NotDirectory`, `PermissionDenied`, `NotPermitted`.
pub(crate) async fn reach_removable(
    tx: &mut Tx<'_, '_>,
    change: &Change,
    parent: InodeId,
    name: &[u8],
) -> Result<(InodeId, Found, Inode)> {
    let above = reach_directory(tx, &change.who, parent, SEARCH).await?;
    let found = expect(tx, above.id, name).await?;
    access::require(&above, &change.who.caller, WRITE | SEARCH)?;
    let inode = inode_of(tx, &found).await?;
    access::require_sticky(&above, &inode, &change.who.caller)?;
    inode.directory()?;
    Ok((above.id, found, inode))
}

/// Takes the name of a directory away.
pub(crate) async fn take_out(tx: &mut Tx<'_, '_>, above: InodeId, found: &Found) -> Result<()> {
    tx.remove(above, found).await?;
    tx.touch(above);
    tx.add_links(above, -1);
    Ok(())
}

/// # Errors
/// `NotEmpty`.
pub(crate) async fn require_empty(tx: &mut Tx<'_, '_>, directory: &Inode) -> Result<()> {
    if tx.is_empty(directory.id).await? {
        return Ok(());
    }
    Err(Error::new(Code::NotEmpty, format!("directory {} is not empty", directory.id)))
}
