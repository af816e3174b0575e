//! Rename: atomic, over an existing name or not, or an exchange of two names.

use crate::access::{self, SEARCH, WRITE};
use crate::name;
use crate::quota;
use crate::records::Inode;
use crate::store::dir::{drop_directory, require_empty};
use crate::store::lookup::{expect, inode_of, reach_directory};
use crate::store::prune::require_attached;
use crate::store::{Change, Outcome, Store};
use crate::tx::{Found, Tx, dentry};
use kiln_types::{Attr, Code, Error, InodeId, Result};

/// How far up the way to the root may be.
const DEPTH_MAX: u32 = 100_000;

/// What is renamed to what.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RenameArgs {
    /// The directory of the old name.
    pub parent: InodeId,
    /// The old name.
    pub name: Vec<u8>,
    /// The directory of the new name.
    pub new_parent: InodeId,
    /// The new name.
    pub new_name: Vec<u8>,
    /// Fail when the new name exists.
    pub no_replace: bool,
    /// Both names exist and swap what they name.
    pub exchange: bool,
}

impl Store {
    /// Renames. Answers with what moved, where that is one thing and no directory, or with the directory that
    /// another one replaced: reading the times of one that stays would be a conflict with every change in it.
    ///
    /// # Errors
    /// `NotFound`, `Exists` (`no_replace`), `NotDirectory`, `IsDirectory`, `NotEmpty`, `Invalid`
    /// for a directory into itself and for both flags at once, `OtherQuota` for what has more to it than itself,
    /// `QuotaExceeded`, `PermissionDenied`, `NotPermitted`
    /// (sticky directory), `NameTooLong`, `StaleHandle`, or what kv reports.
    pub async fn rename(&self, change: &Change, args: &RenameArgs) -> Result<Option<Attr>> {
        name::check(&args.name)?;
        name::check(&args.new_name)?;
        if args.no_replace && args.exchange {
            return Err(Error::invalid("either no_replace or exchange"));
        }
        let answer =
            self.change(change, "rename", &|tx| Box::pin(rename(tx, change, args))).await?;
        Ok(answer.attr)
    }
}

/// One of the two names.
struct Side {
    directory: Inode,
    found: Found,
    inode: Inode,
}

async fn rename(tx: &mut Tx<'_, '_>, change: &Change, args: &RenameArgs) -> Result<Outcome> {
    let caller = &change.who.caller;
    let old_dir = reach_directory(tx, &change.who, args.parent, SEARCH).await?;
    let new_dir = reach_directory(tx, &change.who, args.new_parent, SEARCH).await?;
    let found = expect(tx, old_dir.id, &args.name).await?;
    let target = tx.find(new_dir.id, &args.new_name).await?;
    if target.is_some() && args.no_replace {
        let text = format!("'{}' exists", args.new_name.escape_ascii());
        return Err(Error::new(Code::Exists, text));
    }
    access::require(&old_dir, caller, WRITE | SEARCH)?;
    access::require(&new_dir, caller, WRITE | SEARCH)?;
    require_attached(&new_dir)?;
    let inode = inode_of(tx, &found).await?;
    access::require_sticky(&old_dir, &inode, caller)?;
    let source = Side { directory: old_dir, found, inode };
    check_move(tx, change, &source, &new_dir).await?;
    let Some(found) = target else {
        if args.exchange {
            let text = format!("'{}' does not exist", args.new_name.escape_ascii());
            return Err(Error::new(Code::NotFound, text));
        }
        return move_to(tx, source, &new_dir, &args.new_name).await;
    };
    let inode = inode_of(tx, &found).await?;
    access::require_sticky(&new_dir, &inode, caller)?;
    let target = Side { directory: new_dir, found, inode };
    if source.inode.id == target.inode.id {
        return Ok(Outcome::done());
    }
    if args.exchange {
        check_move(tx, change, &target, &source.directory).await?;
        return exchange(tx, source, target).await;
    }
    replace(tx, source, target).await
}

/// Checks that an inode may move to a directory: a directory not into itself, and only by who may
/// write it, since its `..` changes; none of what others count with it to another quota.
async fn check_move(tx: &mut Tx<'_, '_>, change: &Change, source: &Side, to: &Inode) -> Result<()> {
    if quota::is_bound(&source.inode, source.directory.quota, to.quota) {
        return Err(Error::new(Code::OtherQuota, "the directories count for different quotas"));
    }
    if !source.inode.is_directory() || source.directory.id == to.id {
        return Ok(());
    }
    require_outside(tx, source.inode.id, to).await?;
    access::require(&source.inode, &change.who.caller, WRITE)
}

/// Follows parents up to the root. Every record on the way is read with a conflict, so that of two
/// moves that would make a circle one runs again.
///
/// # Errors
/// `Invalid`; `NotFound` when a directory on the way was removed.
pub(crate) async fn require_outside(tx: &mut Tx<'_, '_>, moved: InodeId, to: &Inode) -> Result<()> {
    let (mut at, mut parent) = (to.id, to.parent);
    for _ in 0..DEPTH_MAX {
        if at == moved {
            return Err(Error::invalid("a directory cannot move into itself"));
        }
        if at == InodeId::ROOT {
            return Ok(());
        }
        let Some(above) = tx.find_inode(parent).await? else {
            return Err(Error::new(Code::NotFound, format!("directory {at} was removed")));
        };
        (at, parent) = (above.id, above.parent);
    }
    Err(Error::corrupt(format!("directory {} is not below the root", to.id)))
}

/// Puts what moved, with the time, its new directory and the quota of that.
pub(crate) async fn arrive(
    tx: &mut Tx<'_, '_>,
    inode: &mut Inode,
    directory: &Inode,
) -> Result<()> {
    inode.ctime = tx.now;
    inode.parent = directory.id;
    tx.put_inode(inode);
    tx.follow(inode, directory).await
}

/// Counts a directory that moved to another one.
fn move_links(tx: &mut Tx<'_, '_>, inode: &Inode, from: InodeId, to: InodeId) {
    if inode.is_directory() && from != to {
        tx.add_links(from, -1);
        tx.add_links(to, 1);
    }
}

async fn move_to(
    tx: &mut Tx<'_, '_>,
    mut source: Side,
    to: &Inode,
    name: &[u8],
) -> Result<Outcome> {
    let from = source.directory.id;
    tx.remove(from, &source.found).await?;
    tx.insert(to.id, dentry(name, source.inode.id, source.inode.kind())).await?;
    tx.touch(from);
    tx.touch(to.id);
    move_links(tx, &source.inode, from, to.id);
    arrive(tx, &mut source.inode, to).await?;
    moved(tx, &source.inode).await
}

async fn moved(tx: &mut Tx<'_, '_>, inode: &Inode) -> Result<Outcome> {
    if inode.is_directory() {
        return Ok(Outcome::done());
    }
    Ok(Outcome::from(tx.attr(inode).await?))
}

async fn replace(tx: &mut Tx<'_, '_>, mut source: Side, mut target: Side) -> Result<Outcome> {
    match (source.inode.is_directory(), target.inode.is_directory()) {
        (true, false) => {
            return Err(Error::new(Code::NotDirectory, "a directory over something else"));
        }
        (false, true) => return Err(Error::new(Code::IsDirectory, "a file over a directory")),
        (true, true) => require_empty(tx, &target.inode).await?,
        (false, false) => {}
    }
    let (from, to) = (source.directory.id, target.directory.id);
    tx.remove(from, &source.found).await?;
    tx.redirect(to, &target.found, &source.inode);
    tx.touch(from);
    tx.touch(to);
    let gone = match target.inode.is_directory() {
        true => {
            tx.add_links(to, -1);
            Some(drop_directory(tx, &mut target.inode, to, &target.found.entry.name).await?)
        }
        false => {
            tx.drop_name(&mut target.inode, to, &target.found.entry.name).await?;
            None
        }
    };
    move_links(tx, &source.inode, from, to);
    arrive(tx, &mut source.inode, &target.directory).await?;
    match gone {
        Some(gone) => Ok(gone),
        None => moved(tx, &source.inode).await,
    }
}

async fn exchange(tx: &mut Tx<'_, '_>, mut source: Side, mut target: Side) -> Result<Outcome> {
    let (from, to) = (source.directory.id, target.directory.id);
    tx.redirect(to, &target.found, &source.inode);
    tx.redirect(from, &source.found, &target.inode);
    tx.touch(from);
    tx.touch(to);
    move_links(tx, &source.inode, from, to);
    move_links(tx, &target.inode, to, from);
    arrive(tx, &mut source.inode, &target.directory).await?;
    arrive(tx, &mut target.inode, &source.directory).await?;
    Ok(Outcome::done())
}
