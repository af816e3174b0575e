//! Giving what is in the trash a name again.

use super::reach_item;
use crate::name;
use crate::quota;
use crate::records::Inode;
use crate::store::dir::reach_free;
use crate::store::rename::{arrive, require_outside};
use crate::store::{Change, Outcome, Store, Who};
use crate::tx::{Tx, dentry};
use kiln_types::{Attr, Code, Error, InodeId, Result};

impl Store {
    /// Restores an item of the trash: to a name in a directory (empty: the one that it had), or to where it was.
    ///
    /// # Errors
    /// `NotFound` when there is no such item, or its directory is gone; `Exists`, `OtherQuota` for a directory that
    /// would change the quota that it counts for, `Invalid` for one into itself, `QuotaExceeded`, `NotPermitted` for what another user removed and
    /// owns, `NotAuthorized`, `PermissionDenied` for the directory, `StaleHandle`, or what kv reports.
    pub async fn restore(
        &self,
        change: &Change,
        inode: InodeId,
        to: Option<(InodeId, &[u8])>,
    ) -> Result<Attr> {
        if let Some((_, name)) = to.filter(|(_, name)| !name.is_empty()) {
            name::check(name)?;
        }
        let answer =
            self.change(change, "restore", &|tx| Box::pin(restore(tx, change, inode, to))).await?;
        // What is in a directory may count for another quota now.
        self.recounts.notify_one();
        answer.into_attr()
    }
}

async fn restore(
    tx: &mut Tx<'_, '_>,
    change: &Change,
    id: InodeId,
    to: Option<(InodeId, &[u8])>,
) -> Result<Outcome> {
    let (at, item, mut inode) = reach_item(tx, &change.who, id).await?;
    let (parent, name) = to.unwrap_or((item.directory, &[]));
    let name = if name.is_empty() { &item.name } else { name };
    let found = reach_target(tx, &change.who, id, parent, name).await;
    let directory = if to.is_some() { found } else { found.map_err(not_there) }?;
    let is_elsewhere = directory.id != item.directory;
    if is_elsewhere && quota::is_bound(&inode, inode.quota, directory.quota) {
        return Err(Error::new(Code::OtherQuota, "the directory counts for another quota"));
    }
    tx.room.clone()?;
    tx.clear_item((at, id));
    tx.insert(directory.id, dentry(name, id, inode.kind())).await?;
    tx.touch(directory.id);
    match inode.is_directory() {
        true => tx.add_links(directory.id, 1),
        false => inode.links = 1,
    }
    arrive(tx, &mut inode, &directory).await?;
    Ok(Outcome::from(tx.attr(&inode).await?))
}

/// The directory in which an item is to get a free name.
async fn reach_target(
    tx: &mut Tx<'_, '_>,
    who: &Who,
    item: InodeId,
    parent: InodeId,
    name: &[u8],
) -> Result<Inode> {
    let directory = reach_free(tx, who, parent, name).await?;
    require_outside(tx, item, &directory).await?;
    Ok(directory)
}

/// Why an item cannot be restored to where it was.
fn not_there(error: Error) -> Error {
    let error = match error.code() {
        Code::NotFound | Code::StaleHandle => {
            Error::new(Code::NotFound, "the directory that it was in is gone")
        }
        _ => error,
    };
    error.with_hint("--to PATH restores it elsewhere")
}
