//! Removing a directory with everything in it, as one change.
//!
//! The directory is detached from the tree at once: it has no name any more, [`DETACHED`] is its parent, and a
//! key queues it. What is in it goes in the background, a page of entries in a transaction; directories in it
//! are detached in their turn, so that depth costs nothing.

use crate::access::{self, READ, SEARCH, WRITE};
use crate::keys::{cookie_of, directory_of};
use crate::name;
use crate::records::{Dentry, Inode, Record, Slot};
use crate::store::dir::{reach_removable, take_out};
use crate::store::lookup::{expect, reach_directory};
use crate::store::trash::TRASHED;
use crate::store::{Change, Outcome, Store};
use crate::tx::Tx;
use kiln_kv::RangeOptions;
use kiln_types::{Caller, Code, Error, FileKind, InodeId, Result};

/// The parent of a directory that was removed with what is in it; no inode.
pub(crate) const DETACHED: InodeId = InodeId(2);

/// Entries that go in one transaction.
const PAGE: usize = 128;
/// Entries that are looked at in one transaction.
const LOOK: usize = 1024;

impl Store {
    /// Removes a directory with everything in it. What the caller could not remove one by one is looked for
    /// before anything changes; what is put there meanwhile goes, too.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `PermissionDenied`, `NotPermitted` (sticky directory), `StaleHandle`, or what
    /// kv reports.
    pub async fn remove_tree(&self, change: &Change, parent: InodeId, name: &[u8]) -> Result<()> {
        name::check(name)?;
        if change.who.caller.uid != 0 {
            self.check_tree(change, parent, name).await?;
        }
        self.change(change, "remove tree", &|tx| Box::pin(detach(tx, change, parent, name)))
            .await?;
        self.detached.notify_one();
        Ok(())
    }

    /// Whether the caller may remove everything below a name.
    async fn check_tree(&self, change: &Change, parent: InodeId, name: &[u8]) -> Result<()> {
        let top = self
            .transact("remove tree", &|tx| {
                Box::pin(async move {
                    // A retry: it was checked, and is gone.
                    if tx.replay(change.client, change.request).await?.is_some() {
                        return Ok(None);
                    }
                    let above = reach_directory(tx, &change.who, parent, SEARCH).await?;
                    Ok(Some(expect(tx, above.id, name).await?.entry.inode))
                })
            })
            .await?;
        let mut left: Vec<InodeId> = top.into_iter().collect();
        while let Some(directory) = left.pop() {
            let caller = &change.who.caller;
            let mut after = 0;
            loop {
                let (below, end) = self
                    .transact("remove tree", &|tx| {
                        Box::pin(directories_in(tx, caller, directory, after))
                    })
                    .await?;
                left.extend(below);
                match end {
                    Some(cookie) => after = cookie,
                    None => break,
                }
            }
        }
        Ok(())
    }

    /// The directories whose content is to go, a page of them.
    ///
    /// # Errors
    /// What kv reports.
    pub(crate) async fn detached(&self) -> Result<Vec<InodeId>> {
        self.transact("removed directories", &|tx| {
            Box::pin(async move {
                let options = RangeOptions::limit(PAGE).snapshot();
                let page = tx.kv.range(tx.keys.all_detached(), options).await?;
                page.iter().map(|(key, _)| directory_of(key)).collect()
            })
        })
        .await
    }

    /// Removes a page of what is in a detached directory behind the cookie `after`, or the directory when it is
    /// empty. Where to go on; `None` when it is gone.
    ///
    /// # Errors
    /// What kv reports.
    pub(crate) async fn prune(&self, directory: InodeId, after: u64) -> Result<Option<u64>> {
        self.transact("removal of a tree", &|tx| Box::pin(prune(tx, directory, after))).await
    }
}

/// The directories in a page of a directory whose entries the caller may remove, and where the next page begins.
async fn directories_in(
    tx: &mut Tx<'_, '_>,
    caller: &Caller,
    directory: InodeId,
    after: u64,
) -> Result<(Vec<InodeId>, Option<u64>)> {
    let Some(inode) = tx.find_inode(directory).await? else { return Ok((Vec::new(), None)) };
    if !inode.is_directory() || tx.is_empty(directory).await? {
        return Ok((Vec::new(), None));
    }
    access::require(&inode, caller, READ | WRITE | SEARCH)?;
    let all_own = !access::is_sticky_for(&inode, caller);
    if all_own && tx.number(&tx.keys.links(directory)).await? == 0 {
        return Ok((Vec::new(), None));
    }
    let (entries, end) = tx.entries(directory, after, LOOK).await?;
    let next = entries.last().map(|(cookie, _)| *cookie).filter(|_| !end);
    let mut below = Vec::new();
    for (_, entry) in entries {
        if !all_own {
            let entry = tx.inode(entry.inode).await?;
            access::require_sticky(&inode, &entry, caller)?;
        }
        below.extend((entry.kind == FileKind::Directory).then_some(entry.inode));
    }
    Ok((below, next))
}

async fn detach(
    tx: &mut Tx<'_, '_>,
    change: &Change,
    parent: InodeId,
    name: &[u8],
) -> Result<Outcome> {
    let (above, found, mut inode) = reach_removable(tx, change, parent, name).await?;
    take_out(tx, above, &found).await?;
    if !tx.discard(&mut inode, above, name) {
        queue(tx, &mut inode);
    }
    Ok(Outcome::done())
}

/// Queues a directory that has no name any more.
pub(crate) fn queue(tx: &mut Tx<'_, '_>, inode: &mut Inode) {
    inode.parent = DETACHED;
    inode.ctime = tx.now;
    tx.put_inode(inode);
    let key = tx.keys.detached(inode.id);
    tx.kv.set(&key, &[]);
}

/// An engine may step over what was removed as slowly as over what is there: so each page begins behind the last
/// one, and only an empty one is looked for from the start.
async fn prune(tx: &mut Tx<'_, '_>, directory: InodeId, after: u64) -> Result<Option<u64>> {
    let key = tx.keys.detached(directory);
    let inode = tx.find_inode(directory).await?.filter(|inode| inode.parent == DETACHED);
    let Some(inode) = inode else {
        tx.kv.clear(&key);
        return Ok(None);
    };
    let rest = tx.keys.slots(directory).after(&tx.keys.slot(directory, after));
    let page = tx.range(rest, PAGE).await?;
    let Some((last, _)) = page.last() else {
        if after > 0 {
            return Ok(Some(0));
        }
        tx.kv.clear(&key);
        tx.drop_inode(&inode);
        return Ok(None);
    };
    let next = cookie_of(last)?;
    for (key, value) in page {
        if let Some(entry) = Slot::decode(&value)?.entry {
            remove_entry(tx, directory, &entry).await?;
        }
        tx.kv.clear(&key);
    }
    Ok(Some(next))
}

async fn remove_entry(tx: &mut Tx<'_, '_>, directory: InodeId, entry: &Dentry) -> Result<()> {
    tx.changes.name(directory, &entry.name);
    let inode = tx.find_inode(entry.inode).await?;
    let name = || entry.name.escape_ascii();
    let mut inode = inode.ok_or_else(|| {
        Error::corrupt(format!("the entry '{}' names an inode that does not exist", name()))
    })?;
    if inode.is_directory() {
        tx.add_links(directory, -1);
        queue(tx, &mut inode);
        return Ok(());
    }
    tx.drop_name(&mut inode, directory, &entry.name).await
}

/// Whether a directory has no name any more.
pub(crate) fn is_detached(directory: &Inode) -> bool {
    directory.parent == DETACHED || directory.parent == TRASHED
}

/// Refuses to make something in a directory that was removed.
///
/// # Errors
/// `NotFound`.
pub(crate) fn require_attached(directory: &Inode) -> Result<()> {
    if !is_detached(directory) {
        return Ok(());
    }
    Err(Error::new(Code::NotFound, format!("directory {} was removed", directory.id)))
}
