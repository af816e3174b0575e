//! The trash: what loses its last name is kept for a while.
//!
//! An inode in the trash has no name. [`TRASHED`] is its parent, and an item says where it was; items lie in the
//! order in which they were removed. A directory that was removed with what is in it is one item: below it everything
//! stays as it is. An item that is older than the setting says goes the way it would have gone without a trash: a
//! file to the collector as soon as nobody has it open, a directory to the detached ones.

mod list;
mod restore;

use crate::keys::{ItemName, item_name};
use crate::records::{Body, Inode, Item, Record, Trash, marked_time, number, time_mark};
use crate::rounds::SCAN_INTERVAL;
use crate::store::lookup::{check_confined, root_of};
use crate::store::prune::queue;
use crate::store::quota::sees_all;
use crate::store::{Change, Outcome, Store, Who};
use crate::tx::Tx;
use kiln_kv::RangeOptions;
use kiln_types::{Code, Error, InodeId, Result, Timestamp, Usage};
use std::time::Duration;

/// The parent of what is in the trash; no inode.
pub(crate) const TRASHED: InodeId = InodeId(3);

/// Items in one transaction.
const PAGE: usize = 128;
/// How long the trash may keep something.
const KEEP_MIN: Duration = Duration::from_secs(1);
const KEEP_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl Store {
    /// Says for how long what is removed from now on, and what is in the trash, is kept; `None`: nothing goes there
    /// any more, and what is there stays for as long as was said last.
    ///
    /// # Errors
    /// `NotPermitted` unless root asks, who is not confined to a directory; `Invalid` for less than a second or more
    /// than 100 years; or what kv reports.
    pub async fn set_trash(&self, change: &Change, keep: Option<Duration>) -> Result<()> {
        if !sees_all(&change.who) {
            let text = "only root sets the trash, with a credential for the whole file system";
            return Err(Error::new(Code::NotPermitted, text));
        }
        if keep.is_some_and(|keep| !(KEEP_MIN..=KEEP_MAX).contains(&keep)) {
            let text = "the trash keeps what is in it for a second to 100 years";
            return Err(Error::invalid(text).with_hint("off in place of a time: there is none"));
        }
        let set = self
            .change(change, "set trash", &|tx| {
                Box::pin(async move {
                    let key = tx.keys.trash();
                    let old = tx.get::<Trash>(&key).await?.unwrap_or_default();
                    let new = Trash { on: keep.is_some(), keep: keep.unwrap_or(old.keep) };
                    tx.put(&key, &new);
                    tx.kv.add(&tx.keys.quota_changes(), 1);
                    Ok(Outcome::done())
                })
            })
            .await;
        self.limits.forget();
        self.expiry.notify_one();
        set.map(drop)
    }

    /// How the trash is set, and how much is in it.
    ///
    /// # Errors
    /// What kv reports.
    pub async fn trash(&self) -> Result<kiln_types::Trash> {
        self.transact("trash", &|tx| {
            Box::pin(async move {
                let Trash { on, keep } = tx.get(&tx.keys.trash()).await?.unwrap_or_default();
                let mut numbers = [0; 2];
                for (found, key) in numbers.iter_mut().zip(tx.keys.trash_usage()) {
                    *found = number(tx.kv.snapshot_get(&key).await?.as_deref())?;
                }
                let [bytes, inodes] = numbers;
                Ok(kiln_types::Trash { on, keep, usage: Usage { bytes, inodes } })
            })
        })
        .await
    }

    /// Lets go of items for good; those that are gone already are no error unless all are.
    ///
    /// # Errors
    /// `NotFound`, `NotPermitted` for what other users removed and own, `NotAuthorized` for what was outside of the
    /// caller's directory, `Invalid` for more than 128, or what kv reports; then nothing is let go.
    pub async fn empty_trash(&self, change: &Change, inodes: &[InodeId]) -> Result<()> {
        if inodes.len() > PAGE {
            return Err(Error::invalid(format!("more than {PAGE} items at once")));
        }
        self.change(change, "empty trash", &|tx| Box::pin(empty(tx, change, inodes))).await?;
        self.detached.notify_one();
        Ok(())
    }

    /// Lets go of items that are older than the setting says, a page of them: how many, and in how long to look
    /// again; `None`: there may be more.
    ///
    /// # Errors
    /// What kv reports.
    pub(crate) async fn expire(&self) -> Result<(usize, Option<Duration>)> {
        self.transact("expiry of the trash", &|tx| Box::pin(expire(tx))).await
    }
}

async fn empty(tx: &mut Tx<'_, '_>, change: &Change, inodes: &[InodeId]) -> Result<Outcome> {
    let (mut any, mut missing) = (false, None);
    for inode in inodes {
        match reach_item(tx, &change.who, *inode).await {
            Ok((at, item, inode)) => {
                tx.let_go(at, &item, inode).await?;
                any = true;
            }
            Err(error) if error.code() == Code::NotFound => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    missing.filter(|_| !any).map_or_else(|| Ok(Outcome::done()), Err)
}

async fn expire(tx: &mut Tx<'_, '_>) -> Result<(usize, Option<Duration>)> {
    let Some(Trash { keep, .. }) = tx.get(&tx.keys.trash()).await? else {
        return Ok((0, Some(SCAN_INTERVAL)));
    };
    let now = tx.now;
    let page = tx.kv.range(tx.keys.items(), RangeOptions::limit(PAGE).snapshot()).await?;
    for (count, (key, value)) in page.iter().enumerate() {
        let (at, id) = item_name(key)?;
        let left = expires(at, keep).0.saturating_sub(now.0);
        if left > 0 {
            return Ok((count, Some(Duration::from_nanos(left.unsigned_abs()))));
        }
        match tx.find_inode(id).await?.filter(|inode| inode.parent == TRASHED) {
            Some(inode) => tx.let_go(at, &Item::decode(value)?, inode).await?,
            // An earlier version, which knows no trash, has dropped it.
            None => tx.clear_item((at, id)),
        }
    }
    let is_end = page.len() < PAGE;
    Ok((page.len(), is_end.then_some(SCAN_INTERVAL)))
}

/// When what was removed goes for good.
fn expires(removed: Timestamp, keep: Duration) -> Timestamp {
    let keep = i64::try_from(keep.as_nanos()).unwrap_or(i64::MAX);
    Timestamp(removed.0.saturating_add(keep))
}

/// An item that the caller may restore or let go of: who removed it or owns it, and root.
///
/// # Errors
/// `NotFound`, `NotPermitted`, `NotAuthorized` when it was outside of the caller's directory.
async fn reach_item(
    tx: &mut Tx<'_, '_>,
    who: &Who,
    id: InodeId,
) -> Result<(Timestamp, Item, Inode)> {
    let (Some((at, item)), Some(inode)) = (tx.item(id).await?, tx.find_inode(id).await?) else {
        return Err(Error::new(Code::NotFound, format!("nothing in the trash is item {id}")));
    };
    if who.subtree.is_some() {
        let root = root_of(tx, who).await?;
        check_confined(tx, root, &inode).await?;
    }
    if !concerns(who, &item, &inode) {
        let text = format!("item {id} of the trash was removed by another user");
        return Err(Error::new(Code::NotPermitted, text));
    }
    Ok((at, item, inode))
}

/// Whether an item is its user's own.
fn is_own(who: &Who, item: &Item, inode: &Inode) -> bool {
    [item.by, inode.uid].contains(&who.caller.uid)
}

fn concerns(who: &Who, item: &Item, inode: &Inode) -> bool {
    who.caller.uid == 0 || is_own(who, item, inode)
}

impl Tx<'_, '_> {
    /// Keeps what has lost its last name, if there is a trash for it. If not, its caller drops it.
    pub(crate) fn discard(&mut self, inode: &mut Inode, directory: InodeId, name: &[u8]) -> bool {
        let holds = !matches!(inode.body, Body::Special(_));
        let Some(by) = self.trash.filter(|_| holds) else { return false };
        let at = self.now;
        (inode.parent, inode.ctime) = (TRASHED, at);
        self.put_inode(inode);
        self.put(&self.keys.item((at, inode.id)), &Item { directory, name: name.to_vec(), by });
        self.kv.set(&self.keys.item_of(inode.id), &time_mark(at).to_le_bytes());
        true
    }

    /// The item of an inode: when it was removed, and where it was.
    async fn item(&mut self, inode: InodeId) -> Result<Option<(Timestamp, Item)>> {
        let mark = self.kv.get(&self.keys.item_of(inode)).await?;
        let Some(mark) = mark else { return Ok(None) };
        let at = marked_time(number(Some(&mark))?);
        let item: Option<Item> = self.get(&self.keys.item((at, inode))).await?;
        let missing = || Error::corrupt(format!("inode {inode} is in the trash without an item"));
        Ok(Some((at, item.ok_or_else(missing)?)))
    }

    fn clear_item(&mut self, name: ItemName) {
        self.kv.clear(&self.keys.item(name));
        self.kv.clear(&self.keys.item_of(name.1));
    }

    /// Lets go of an item for good.
    async fn let_go(&mut self, at: Timestamp, item: &Item, mut inode: Inode) -> Result<()> {
        self.clear_item((at, inode.id));
        if inode.is_directory() {
            queue(self, &mut inode);
            return Ok(());
        }
        inode.parent = item.directory;
        match self.is_open(inode.id).await? {
            true => self.put_unseen(&inode),
            false => self.drop_inode(&inode),
        }
        Ok(())
    }

    /// The directory above an inode; of what is in the trash the one in which it was.
    pub(crate) async fn directory_of(&mut self, inode: &Inode) -> Result<InodeId> {
        if inode.parent != TRASHED {
            return Ok(inode.parent);
        }
        Ok(self.item(inode.id).await?.map_or(TRASHED, |(_, item)| item.directory))
    }
}
