//! Open files.

use crate::data::{ErrorMark, Stream};
use crate::filesystem::{Handle, Known, NewFile, OpenFlags, Opened, WriteAt};
use crate::tree::handles::OpenFile;
use crate::tree::names::made;
use crate::tree::open_inode::{OpenInode, bad_handle};
use crate::tree::{Tree, append, locks};
use kiln_client::{File, OpenMode};
use kiln_memory::Bytes;
use kiln_telemetry::about;
use kiln_types::{Caller, InodeId, Result};
use parking_lot::Mutex;
use std::sync::Arc;

fn mode(flags: OpenFlags) -> OpenMode {
    OpenMode { read: flags.read, write: flags.write, truncate: flags.truncate }
}

/// See [`crate::FileSystem::open`].
pub(crate) async fn open(
    tree: &Tree,
    caller: &Caller,
    inode: InodeId,
    flags: OpenFlags,
) -> Result<Opened> {
    let mut file = None;
    let opening = async {
        let opened = Arc::new(tree.client.open(caller, inode, mode(flags)).await?);
        let attr = opened.attr();
        file = Some(opened);
        Ok(attr)
    };
    match tree.nodes.open(inode) {
        Some(open) if flags.truncate => open.truncate(0, opening).await?,
        _ => opening.await?,
    };
    let file = file.ok_or_else(|| bad_handle("anything"))?;
    Ok(opened(tree, file, flags))
}

/// See [`crate::FileSystem::create`].
pub(crate) async fn create(
    tree: &Tree,
    caller: &Caller,
    new: NewFile<'_>,
) -> Result<(Known, Opened)> {
    let sent = tree.mark();
    let args = kiln_client::NewFile {
        parent: new.parent,
        name: new.name,
        mode: new.mode,
        exclusive: new.exclusive,
        open: mode(new.flags),
    };
    let edit = tree.edit(new.parent, Some(new.name));
    let file =
        Arc::new(edit.end(tree.client.create(caller, &args).await, |file| made(&file.attr()))?);
    let attr = file.attr();
    if let Some(open) = tree.nodes.open(attr.inode).filter(|_| new.flags.truncate) {
        // It was there after all, open here, and is empty now.
        let cut = attr.clone();
        open.truncate(0, async { Ok(cut) }).await?;
    }
    let opened = opened(tree, file, new.flags);
    Ok((tree.looked(sent, new.parent, attr), opened))
}

/// See [`crate::FileSystem::make_temporary`].
pub(crate) async fn create_nameless(
    tree: &Tree,
    caller: &Caller,
    parent: InodeId,
    mode: u32,
    flags: OpenFlags,
) -> Result<(Known, Opened)> {
    let sent = tree.mark();
    let open = self::mode(flags);
    let new = kiln_client::NewFile { parent, name: b"", mode, exclusive: true, open };
    let file = Arc::new(tree.client.create_nameless(caller, &new).await?);
    let attr = file.attr();
    let opened = opened(tree, file, flags);
    tree.nodes.looked_up(attr.inode);
    Ok((tree.known(sent, attr), opened))
}

/// A handle for what `file` opened.
fn opened(tree: &Tree, file: Arc<File>, flags: OpenFlags) -> Opened {
    let attr = tree.nodes.newest(file.attr());
    let open = tree.nodes.join_open(attr.inode, || OpenInode::new(&tree.pool, &file));
    open.take_session(&file);
    if let Some(told) = open.io().told() {
        tree.nodes.changed_here(&told, true);
    }
    // Before the open is answered the kernel has to forget what another client made untrue.
    let (keep_cache, same_attributes) = tree.nodes.opens_same(&attr);
    if !keep_cache {
        open.content().invalidate();
    }
    if !same_attributes {
        tree.kernel.drop_attributes(tree.shown(attr.inode));
    }
    open.learn(attr);
    let (fsync_told, close_told) = (open.content().errors(), open.content().errors());
    let handle = tree.handles.add_file(OpenFile {
        open,
        file,
        flags,
        stream: Stream::default(),
        fsync_told: Mutex::new(fsync_told),
        close_told: Mutex::new(close_told),
    });
    Opened { handle, keep_cache, direct: flags.direct || flags.append }
}

/// Notes what the request is about, for the log.
fn note(file: &OpenFile, bytes: usize) {
    about(|about| {
        (about.inode, about.bytes) = (Some(file.open.inode()), Some(bytes as u64));
    });
}

/// See [`crate::FileSystem::read`].
pub(crate) async fn read(tree: &Tree, handle: Handle, offset: u64, length: usize) -> Result<Bytes> {
    let file = tree.handles.file(handle)?;
    note(&file, length);
    // A page that is written in part is read first, also through a handle that only writes.
    file.open.content().read(&file.stream, offset, length).await
}

/// See [`crate::FileSystem::write`].
pub(crate) async fn write(tree: &Tree, handle: Handle, at: WriteAt, bytes: Bytes) -> Result<()> {
    let file = tree.handles.file(handle)?;
    if !file.flags.write {
        return Err(bad_handle("writing"));
    }
    note(&file, bytes.len());
    let content = file.open.content();
    file.open.wrote(tree.env.wall());
    if at.append && file.flags.append {
        let end = append::write(tree, &file.open, bytes).await?;
        if end != at.offset {
            // The kernel takes the bytes for written where it knew the end.
            let shown = tree.shown(file.open.inode());
            let _ = tree.kernel.drop_content(shown).await;
        }
    } else if file.flags.sync {
        content.write_through(at.offset, bytes).await?;
    } else {
        content.write(at.offset, bytes).await?;
    }
    match file.flags.sync {
        true => push(tree, &file, &file.fsync_told).await,
        false => Ok(()),
    }
}

/// Brings what was written to the cluster; an error of that is told once for each of `told`.
pub(crate) async fn push(tree: &Tree, file: &OpenFile, told: &Mutex<ErrorMark>) -> Result<()> {
    if !file.flags.write {
        return Ok(());
    }
    about(|about| about.inode = Some(file.open.inode()));
    let pushed = file.open.push().await;
    let kept = file.open.content().error_since(&mut told.lock());
    if let Ok(Some(attr)) = &pushed {
        tree.nodes.changed_here(attr, true);
    }
    match kept {
        Some(error) => Err(error),
        None => pushed.map(drop),
    }
}

/// See [`crate::FileSystem::release`].
pub(crate) async fn release(tree: &Tree, handle: Handle) {
    let Some(file) = tree.handles.remove_file(handle) else { return };
    let open = Arc::clone(&file.open);
    // Mapped pages may have been written after the last close.
    if let Err(error) = push(tree, &file, &file.close_told).await {
        tracing::error!(inode = %open.inode(), %error, "written data is lost");
    }
    locks::end_handle(&open, handle).await;
    let io = open.io();
    if tree.nodes.leave_open(open.inode(), &open) {
        // The right to append ends with the session.
        close(&io).await;
    }
    if !Arc::ptr_eq(&io, &file.file) {
        close(&file.file).await;
    }
}

async fn close(file: &File) {
    if let Err(error) = file.close().await {
        tracing::warn!(inode = %file.attr().inode, %error, "close");
    }
}
