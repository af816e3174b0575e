//! From names to inodes: lookup, path walks, attributes.

use crate::access::{self, SEARCH};
use crate::name::NAME_BYTES_MAX;
use crate::records::{Body, Inode};
use crate::store::{Store, Who};
use crate::tx::{Found, Tx};
use kiln_types::{Attr, Code, Error, InodeId, Result};
use std::collections::VecDeque;

/// The most symlinks that a path walk follows.
const SYMLINKS_MAX: u32 = 40;
/// The longest path, in bytes.
const PATH_BYTES_MAX: usize = 4096;
/// How far below the root a directory of a confined caller may be.
const DEPTH_MAX: u32 = 4096;

impl Store {
    /// The inode that a directory has under a name; `.` and `..` work.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `PermissionDenied`, `NameTooLong`, `StaleHandle`, or what kv
    /// reports.
    pub async fn lookup(&self, who: &Who, parent: InodeId, name: &[u8]) -> Result<Attr> {
        self.transact("lookup", &|tx| {
            Box::pin(async move {
                let inode = lookup(tx, who, parent, name).await?;
                tx.attr(&inode).await
            })
        })
        .await
    }

    /// Walks a path; a relative one from `start`. Symlinks on the way are followed, one in the last
    /// place if `follow` is set.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup), and `SymlinkLoop`.
    pub async fn resolve(
        &self,
        who: &Who,
        start: InodeId,
        path: &[u8],
        follow: bool,
    ) -> Result<Attr> {
        self.transact("path walk", &|tx| {
            Box::pin(async move {
                let inode = resolve(tx, who, start, path, follow).await?;
                tx.attr(&inode).await
            })
        })
        .await
    }

    /// The attributes of an inode.
    ///
    /// # Errors
    /// `StaleHandle`, `NotAuthorized`, or what kv reports.
    pub async fn get_attr(&self, who: &Who, inode: InodeId) -> Result<Attr> {
        self.transact("getattr", &|tx| {
            Box::pin(async move {
                let inode = reach(tx, who, inode).await?;
                tx.attr(&inode).await
            })
        })
        .await
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// `Invalid` when it is not one, `StaleHandle`, or what kv reports.
    pub async fn read_link(&self, who: &Who, inode: InodeId) -> Result<Vec<u8>> {
        self.transact("readlink", &|tx| {
            Box::pin(async move {
                match reach(tx, who, inode).await?.body {
                    Body::Symlink { target } => Ok(target),
                    _ => Err(Error::invalid(format!("inode {inode} is not a symlink"))),
                }
            })
        })
        .await
    }
}

/// The inode with an id, for a caller who may be confined to a subtree: its directory is 1 to them.
///
/// # Errors
/// `StaleHandle` when it is gone, `NotAuthorized` when it is outside.
pub(crate) async fn reach(tx: &mut Tx<'_, '_>, who: &Who, id: InodeId) -> Result<Inode> {
    let root = root_of(tx, who).await?;
    if root == InodeId::ROOT {
        return tx.inode(id).await;
    }
    let inode = tx.inode(if id == InodeId::ROOT { root } else { id }).await?;
    check_confined(tx, root, &inode).await?;
    Ok(inode)
}

/// A directory in which the caller may do `want`.
///
/// # Errors
/// As [`reach`], `NotDirectory`, `PermissionDenied`.
pub(crate) async fn reach_directory(
    tx: &mut Tx<'_, '_>,
    who: &Who,
    id: InodeId,
    want: u32,
) -> Result<Inode> {
    let inode = reach(tx, who, id).await?;
    inode.directory()?;
    access::require(&inode, &who.caller, want)?;
    Ok(inode)
}

/// The entry of a name.
///
/// # Errors
/// `NotFound`.
pub(crate) async fn expect(tx: &mut Tx<'_, '_>, directory: InodeId, name: &[u8]) -> Result<Found> {
    tx.find(directory, name).await?.ok_or_else(|| {
        let text = format!("directory {directory} has no '{}'", name.escape_ascii());
        Error::new(Code::NotFound, text)
    })
}

/// The inode of an entry: it exists as long as the entry does.
pub(crate) async fn inode_of(tx: &mut Tx<'_, '_>, found: &Found) -> Result<Inode> {
    let id = found.entry.inode;
    let inode = tx.find_inode(id).await?;
    inode.ok_or_else(|| {
        let name = found.entry.name.escape_ascii();
        Error::corrupt(format!("the entry '{name}' names inode {id}, which does not exist"))
    })
}

/// The directory that a caller may not leave.
pub(crate) async fn root_of(tx: &mut Tx<'_, '_>, who: &Who) -> Result<InodeId> {
    let Some(subtree) = &who.subtree else { return Ok(InodeId::ROOT) };
    let mut root = InodeId::ROOT;
    for name in components(subtree.as_bytes()) {
        let found = tx.find(root, name).await?;
        let Some(found) = found.filter(|f| f.entry.kind == kiln_types::FileKind::Directory) else {
            let text = format!("the credential's directory {subtree} does not exist");
            return Err(Error::new(Code::NotAuthorized, text));
        };
        root = found.entry.inode;
    }
    Ok(root)
}

/// Follows parents up to `root`. Of what is not a directory, one name counts; of what is in the trash, the last one.
pub(crate) async fn check_confined(
    tx: &mut Tx<'_, '_>,
    root: InodeId,
    inode: &Inode,
) -> Result<()> {
    let mut at = if inode.is_directory() { inode.id } else { tx.directory_of(inode).await? };
    for _ in 0..DEPTH_MAX {
        if at == root {
            return Ok(());
        }
        if at == InodeId::ROOT {
            break;
        }
        match tx.find_inode(at).await? {
            Some(parent) => at = tx.directory_of(&parent).await?,
            None => break,
        }
    }
    let text = format!("inode {} is outside of the credential's directory", inode.id);
    Err(Error::new(Code::NotAuthorized, text))
}

/// The inode that a directory has under a name.
pub(crate) async fn lookup(
    tx: &mut Tx<'_, '_>,
    who: &Who,
    parent: InodeId,
    name: &[u8],
) -> Result<Inode> {
    let directory = reach_directory(tx, who, parent, SEARCH).await?;
    let root = root_of(tx, who).await?;
    step(tx, root, directory, name).await
}

/// One step of a walk, from a directory that may be searched.
async fn step(tx: &mut Tx<'_, '_>, root: InodeId, directory: Inode, name: &[u8]) -> Result<Inode> {
    match name {
        b"." => Ok(directory),
        b".." if directory.id == root => Ok(directory),
        b".." => tx.inode(directory.parent).await,
        _ if name.len() > NAME_BYTES_MAX => {
            Err(Error::new(Code::NameTooLong, format!("a name of {} bytes", name.len())))
        }
        _ => {
            let found = expect(tx, directory.id, name).await?;
            inode_of(tx, &found).await
        }
    }
}

pub(crate) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
}

/// What a path leads to; a relative one begins at `start`.
pub(crate) async fn resolve(
    tx: &mut Tx<'_, '_>,
    who: &Who,
    start: InodeId,
    path: &[u8],
    follow: bool,
) -> Result<Inode> {
    let root = root_of(tx, who).await?;
    let begin = if path.first() == Some(&b'/') { InodeId::ROOT } else { start };
    let mut at = reach(tx, who, begin).await?;
    let mut rest: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
    let mut wants_directory = path.last() == Some(&b'/');
    check_path(path.len())?;
    let mut symlinks = 0;
    while let Some(name) = rest.pop_front() {
        at.directory()?;
        access::require(&at, &who.caller, SEARCH)?;
        let came_from = at.id;
        let next = step(tx, root, at, &name).await?;
        let follows = follow || wants_directory || !rest.is_empty();
        let Body::Symlink { target } = &next.body else {
            at = next;
            continue;
        };
        if !follows {
            at = next;
            continue;
        }
        symlinks += 1;
        if symlinks > SYMLINKS_MAX {
            let text = format!("more than {SYMLINKS_MAX} symlinks in a path");
            return Err(Error::new(Code::SymlinkLoop, text));
        }
        wants_directory |= rest.is_empty() && target.last() == Some(&b'/');
        for name in components(target).rev() {
            rest.push_front(name.to_vec());
        }
        check_path(rest.len())?;
        let begin = if target.first() == Some(&b'/') { root } else { came_from };
        at = tx.inode(begin).await?;
    }
    if wants_directory {
        at.directory()?;
    }
    Ok(at)
}

fn check_path(length: usize) -> Result<()> {
    if length <= PATH_BYTES_MAX {
        return Ok(());
    }
    Err(Error::new(Code::NameTooLong, format!("a path above {PATH_BYTES_MAX} bytes")))
}
