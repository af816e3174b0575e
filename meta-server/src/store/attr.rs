//! Changes of attributes: chmod, chown, utimens, truncate.

use crate::SessionId;
use crate::access::{self, WRITE};
use crate::records::{Body, Inode};
use crate::store::lookup::reach;
use crate::store::open::take_report;
use crate::store::{Change, Outcome, Store, Written};
use crate::tx::Tx;
use kiln_types::{Attr, Code, Error, InodeId, LayoutWish, MODE_PERMISSIONS, Result, Timestamp};

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The server's own.
    Now,
    /// This one.
    At(Timestamp),
}

/// What to set; `None` stays.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SetAttrArgs {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length of a file in bytes. The client has reported its own writes before.
    pub length: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the content.
    pub mtime: Option<SetTime>,
    /// What new files in a directory are to be like, and those in directories made below it from now on.
    pub layout: Option<LayoutWish>,
    /// The session through which the length is set: its rights count, not the mode bits.
    pub session: Option<SessionId>,
    /// What that session wrote before; taken in first.
    pub written: Written,
    /// As there, of the change of length.
    pub keeps_set_ids: bool,
}

impl Store {
    /// Sets attributes, all or none.
    ///
    /// # Errors
    /// `NotPermitted` when only the owner or root may, `PermissionDenied`, `BadHandle` when the
    /// session is not open for writing, `IsDirectory` and `Invalid` for lengths of what is no file,
    /// `FileTooLarge`, `StaleHandle`, or what kv and (for lengths) storage report.
    pub async fn set_attr(
        &self,
        change: &Change,
        inode: InodeId,
        args: &SetAttrArgs,
    ) -> Result<Attr> {
        let answer = self
            .change(change, "setattr", &|tx| Box::pin(set_attr(self, tx, change, inode, args)))
            .await?;
        let attr = answer.into_attr()?;
        if args.length.is_some() {
            self.finish_cut(attr.inode).await?;
        }
        Ok(attr)
    }
}

pub(crate) async fn set_attr(
    store: &Store,
    tx: &mut Tx<'_, '_>,
    change: &Change,
    inode: InodeId,
    args: &SetAttrArgs,
) -> Result<Outcome> {
    let mut inode = reach(tx, &change.who, inode).await?;
    let caller = &change.who.caller;
    check_owner_and_mode(&inode, change, args)?;
    check_times(&inode, change, args)?;
    if let Some(session) = args.session {
        let handle = tx.session(change.client, session, inode.id).await?;
        let later = take_report(tx, &mut inode, &handle, &change.who, &args.written)?;
        if let Some(later) = later {
            return Ok(later);
        }
    }
    if let Some(length) = args.length {
        check_length_right(tx, &inode, change, args).await?;
        let (who, mode) = (&change.who, inode.mode);
        if let Some(later) = store.set_length(tx, who, change.client, &mut inode, length).await? {
            return Ok(later);
        }
        if args.keeps_set_ids {
            inode.mode = mode;
        }
    }
    if let Some(wish) = args.layout {
        wish.validate()?;
        inode.directory_mut()?.wish = wish;
    }
    let (uid, gid) = (args.uid.unwrap_or(inode.uid), args.gid.unwrap_or(inode.gid));
    if args.uid.is_some() || args.gid.is_some() {
        inode.mode = access::mode_after_chown(&inode, caller);
    }
    if let Some(mode) = args.mode {
        inode.mode = access::mode_after_chmod(&inode, gid, mode & MODE_PERMISSIONS, caller);
    }
    (inode.uid, inode.gid) = (uid, gid);
    set_times(tx, &mut inode, args).await?;
    inode.ctime = tx.now;
    tx.put_inode(&inode);
    Ok(Outcome::from(tx.attr(&inode).await?))
}

fn check_owner_and_mode(inode: &Inode, change: &Change, args: &SetAttrArgs) -> Result<()> {
    let caller = &change.who.caller;
    if args.mode.is_some() || args.layout.is_some() {
        access::require_owner(inode, caller)?;
    }
    let gives_away = args.uid.is_some_and(|uid| uid != inode.uid);
    let joins = |gid: u32| gid != inode.gid && !caller.in_group(gid);
    if args.uid.is_some() || args.gid.is_some() {
        access::require_owner(inode, caller)?;
        if caller.uid != 0 && (gives_away || args.gid.is_some_and(joins)) {
            let text = "only root gives files away, or to a group that the owner is not in";
            return Err(Error::new(Code::NotPermitted, text));
        }
    }
    Ok(())
}

fn check_times(inode: &Inode, change: &Change, args: &SetAttrArgs) -> Result<()> {
    let caller = &change.who.caller;
    let is_explicit = |time: Option<SetTime>| matches!(time, Some(SetTime::At(_)));
    if is_explicit(args.atime) || is_explicit(args.mtime) {
        return access::require_owner(inode, caller);
    }
    // A writer's own change of the content brings its time along.
    let is_touch = args.length.is_none() && (args.atime.is_some() || args.mtime.is_some());
    if is_touch && !access::owns(inode, caller) {
        return access::require(inode, caller, WRITE);
    }
    Ok(())
}

async fn check_length_right(
    tx: &mut Tx<'_, '_>,
    inode: &Inode,
    change: &Change,
    args: &SetAttrArgs,
) -> Result<()> {
    inode.file()?;
    let Some(session) = args.session else {
        return access::require(inode, &change.who.caller, WRITE);
    };
    if tx.session(change.client, session, inode.id).await?.write {
        return Ok(());
    }
    Err(Error::new(Code::BadHandle, "the file is not open for writing"))
}

async fn set_times(tx: &mut Tx<'_, '_>, inode: &mut Inode, args: &SetAttrArgs) -> Result<()> {
    let now = tx.now;
    let value = |time| match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    };
    if let Some(time) = args.atime {
        inode.atime = value(time);
    }
    let Some(time) = args.mtime else { return Ok(()) };
    inode.mtime = value(time);
    if inode.is_directory() {
        let changed = tx.changed(inode.id).await?;
        let Body::Directory(directory) = &mut inode.body else { return Ok(()) };
        directory.mtime_set = now.max(changed);
    }
    Ok(())
}
