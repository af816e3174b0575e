//! Changes of attributes.

use crate::filesystem::{CAPABILITY, Handle, Known, SetAttr};
use crate::tree::Tree;
use crate::tree::open_inode::OpenInode;
use kiln_types::{Attr, Caller, Code, Error, InodeId, Result};

/// Set-user-id and set-group-id.
const SET_IDS: u32 = 0o6000;

/// See [`crate::FileSystem::set_attr`].
pub(crate) async fn set(
    tree: &Tree,
    caller: &Caller,
    inode: InodeId,
    through: Option<Handle>,
    change: SetAttr,
) -> Result<Known> {
    let sent = tree.mark();
    let open = tree.nodes.open(inode);
    let mut answered = None;
    if let Some(length) = change.length {
        let attr = cut(tree, caller, inode, open.as_deref(), through, length).await?;
        tree.nodes.changed_here(&attr, true);
        answered = Some(attr);
    }
    let rest = SetAttr { length: None, ..change };
    if rest != SetAttr::default() || answered.is_none() {
        // What was written earlier would bring its own time later, and take set-id bits away.
        let undone = change.mtime.is_some() || change.mode.is_some_and(|mode| mode & SET_IDS != 0);
        let attr = match open.filter(|open| undone && open.content().unreported()) {
            Some(open) => open.set_attr(caller, rest).await?,
            None => tree.client.set_attr(caller, inode, rest).await?,
        };
        tree.nodes.changed_here(&attr, change.mtime.is_some());
        tree.fresh.lock().changed_here(Some(inode));
        answered = Some(attr);
    }
    let attr = match answered {
        Some(attr) => attr,
        None => tree.client.get_attr(caller, inode).await?,
    };
    Ok(tree.known(sent, attr))
}

/// Refuses what the metadata service does not keep, without asking it: `cp -a` and `ls -l` look for an access
/// control list and a label on every file, until they are told that there are none here.
pub(crate) fn offered(name: &[u8]) -> Result<()> {
    if name.starts_with(b"system.") {
        return Err(Error::new(Code::Unsupported, "there are no access control lists"));
    }
    if name == b"security.selinux" {
        return Err(Error::new(Code::Unsupported, "there are no labels of SELinux"));
    }
    Ok(())
}

/// See [`crate::FileSystem::get_xattr`]. That an open file has no capabilities is remembered until
/// something about it changes.
pub(crate) async fn extended(
    tree: &Tree,
    caller: &Caller,
    inode: InodeId,
    name: &[u8],
) -> Result<Vec<u8>> {
    offered(name)?;
    let open = tree.nodes.open(inode).filter(|_| name == CAPABILITY);
    let seen = open.as_ref().and_then(|open| open.no_capability());
    if seen.is_some_and(|sent| !tree.fresh.lock().keep_for(sent, inode).is_zero()) {
        return Err(Error::new(Code::NoAttribute, "no capabilities, as seen before"));
    }
    let sent = tree.mark();
    let value = tree.client.get_xattr(caller, inode, name).await;
    if let (Some(open), Err(error)) = (open, &value)
        && error.code() == Code::NoAttribute
    {
        open.saw_no_capability(sent);
    }
    value
}

/// Cuts or extends a file: through the session of an open file, or as the caller.
async fn cut(
    tree: &Tree,
    caller: &Caller,
    inode: InodeId,
    open: Option<&OpenInode>,
    through: Option<Handle>,
    length: u64,
) -> Result<Attr> {
    let by_name = async {
        let change = SetAttr { length: Some(length), ..Default::default() };
        tree.client.set_attr(caller, inode, change).await
    };
    let Some(open) = open else { return by_name.await };
    let writer = through.and_then(|handle| tree.handles.file(handle).ok());
    match writer.filter(|file| file.flags.write) {
        Some(_) => {
            let io = open.io();
            open.truncate(length, async move { io.set_length(length).await }).await
        }
        None => open.truncate(length, by_name).await,
    }
}
