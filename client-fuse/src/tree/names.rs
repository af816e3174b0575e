//! Names: lookup, link, rename.

use crate::filesystem::{Known, Looked};
use crate::tree::Tree;
use kiln_client::Rename;
use kiln_types::{Caller, Code, Error, InodeId, Result};

/// See [`crate::FileSystem::lookup`].
pub(crate) async fn lookup(
    tree: &Tree,
    caller: &Caller,
    parent: InodeId,
    name: &[u8],
) -> Result<Looked> {
    let sent = tree.mark();
    match tree.client.lookup(caller, parent, name).await {
        Ok(attr) => Ok(Looked::Up(tree.looked(sent, parent, attr))),
        Err(error) if error.code() == Code::NotFound => {
            let keep_for = tree.fresh.lock().keep_for(sent, parent);
            Ok(Looked::Nothing(keep_for))
        }
        Err(error) => Err(error),
    }
}

/// See [`crate::FileSystem::link`].
pub(crate) async fn link(
    tree: &Tree,
    caller: &Caller,
    inode: InodeId,
    (parent, name): (InodeId, &[u8]),
) -> Result<Known> {
    let sent = tree.mark();
    let attr = tree.client.link(caller, inode, parent, name).await?;
    tree.nodes.changed_here(&attr, false);
    Ok(tree.looked(sent, parent, attr))
}

const NO_REPLACE: u32 = 1;
const EXCHANGE: u32 = 2;

/// See [`crate::FileSystem::rename`].
pub(crate) async fn rename(
    tree: &Tree,
    caller: &Caller,
    from: (InodeId, &[u8]),
    to: (InodeId, &[u8]),
    flags: u32,
) -> Result<()> {
    let how = match flags {
        0 => Rename::Replace,
        NO_REPLACE => Rename::NoReplace,
        EXCHANGE => Rename::Exchange,
        _ => return Err(Error::invalid(format!("rename flags {flags:#x}"))),
    };
    tree.client.rename(caller, from, to, how).await
}
