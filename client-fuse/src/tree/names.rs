//! Names: lookup, and what is made, moved and removed.

use crate::filesystem::{Known, Looked};
use crate::tree::Tree;
use crate::tree::fresh::{Ended, Mark};
use kiln_client::Rename;
use kiln_types::{Action, Attr, Caller, Code, Error, FileKind, InodeId, Result};

/// See [`crate::FileSystem::lookup`].
pub(crate) async fn lookup(
    tree: &Tree,
    caller: &Caller,
    parent: InodeId,
    name: &[u8],
) -> Result<Looked> {
    let sent = tree.mark();
    {
        let fresh = tree.fresh.lock();
        if fresh.lacks(parent, name) {
            return Ok(Looked::Nothing(fresh.keep_for(sent, parent)));
        }
    }
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
    let edit = tree.edit(parent, Some(name));
    let linked = tree.client.link(caller, inode, parent, name).await;
    let attr = edit.end(linked, |attr| Ended::Made(attr.ctime))?;
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
    let edits = [tree.edit(from.0, None), tree.edit(to.0, Some(to.1))];
    let mut answer = tree.client.rename(caller, from, to, how).await;
    let moved_or_gone = |attr: &Attr| match attr.kind {
        FileKind::Directory => Ended::Changed,
        _ => Ended::Made(attr.ctime),
    };
    for edit in edits {
        answer = edit.end(answer, |moved| moved.as_ref().map_or(Ended::Changed, moved_or_gone));
    }
    let moved = answer?;
    let mut fresh = tree.fresh.lock();
    if moved.as_ref().is_none_or(|attr| attr.kind == FileKind::Directory) {
        // Perhaps a directory moved: its time is another.
        fresh.changed_here(None);
    }
    drop(fresh);
    if let Some(gone) = moved.filter(|attr| attr.kind == FileKind::Directory) {
        tree.removed(&gone);
    }
    Ok(())
}

/// See [`crate::FileSystem::unlink`] and [`crate::FileSystem::remove_dir`].
pub(crate) async fn remove(
    tree: &Tree,
    caller: &Caller,
    (parent, name): (InodeId, &[u8]),
    directory: bool,
) -> Result<()> {
    let edit = tree.edit(parent, None);
    let removed = tree.client.remove(caller, parent, name, directory).await;
    let how = |attr: &Attr| match attr.kind {
        FileKind::Directory => Ended::Directory(attr.ctime, false),
        _ => Ended::Made(attr.ctime),
    };
    let gone = edit.end(removed, |gone| gone.as_ref().map_or(Ended::Changed, how))?;
    if let Some(attr) = gone.filter(|_| directory) {
        tree.removed(&attr);
    }
    Ok(())
}

/// Makes a name by `call`, which answers with what has it then.
pub(crate) async fn make(
    tree: &Tree,
    (parent, name): (InodeId, &[u8]),
    call: impl Future<Output = Result<Attr>>,
) -> Result<Attr> {
    let edit = tree.edit(parent, Some(name));
    edit.end(call.await, made)
}

/// What making this changed in its directory: a new inode is as old as the change.
pub(crate) fn made(attr: &Attr) -> Ended {
    match attr.kind {
        FileKind::Directory => Ended::Directory(attr.btime, true),
        _ => Ended::Made(attr.btime),
    }
}

/// A change in a directory that this mount makes.
pub(crate) struct Edit<'a> {
    tree: &'a Tree,
    parent: InodeId,
    begun: Mark,
    has_ended: bool,
}

impl Tree {
    /// A change in `parent` begins, after which it may have `name`.
    pub(crate) fn edit(&self, parent: InodeId, name: Option<&[u8]>) -> Edit<'_> {
        let begun = self.fresh.lock().begin(parent, name);
        Edit { tree: self, parent, begun, has_ended: false }
    }
}

impl Edit<'_> {
    /// It is answered.
    pub(crate) fn end<T>(mut self, answer: Result<T>, how: impl Fn(&T) -> Ended) -> Result<T> {
        let ended = match &answer {
            Ok(value) => how(value),
            Err(error) if error.action() == Action::GiveUp => Ended::Not,
            Err(_) => Ended::Open,
        };
        self.has_ended = true;
        self.tree.fresh.lock().end(self.parent, self.begun, ended);
        answer
    }
}

impl Drop for Edit<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.tree.fresh.lock().end(self.parent, self.begun, Ended::Open);
        }
    }
}
