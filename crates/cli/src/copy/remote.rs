//! The cluster's side of a copy.

use super::gather::Gather;
use super::tree::{Info, Kind, Node, Reader, Tree, Writer};
use crate::path::KilnPath;
use crate::remote::Remote;
use async_trait::async_trait;
use kiln_client::{CloseOne, File, NewFile, NewOne, OpenMode, Rename, SetAttr, SetTime};
use kiln_memory::{Buffer, Bytes};
use kiln_types::{Attr, Code, Context, Error, FileKind, InodeId, Result};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::{Arc, Mutex, PoisonError};

/// Temporary names that are not finished: directory and name.
type Begun = Mutex<BTreeSet<(InodeId, Vec<u8>)>>;

pub(crate) struct RemoteTree {
    remote: Arc<Remote>,
    begun: Arc<Begun>,
    /// New files, by their directories.
    making: Gather<InodeId, Result<File>>,
    ending: Arc<Gather<Ending, Result<Attr>>>,
}

/// A file that is whole: what it gets at its end.
struct Ending {
    file: Arc<File>,
    set: SetAttr,
    parent: InodeId,
    name: Vec<u8>,
}

fn info(attr: &Attr) -> Info {
    Info {
        kind: match attr.kind {
            FileKind::File => Kind::File,
            FileKind::Directory => Kind::Directory,
            FileKind::Symlink => Kind::Symlink,
            FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => {
                Kind::Other
            }
        },
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        length: attr.length,
        atime: attr.atime,
        mtime: attr.mtime,
    }
}

impl RemoteTree {
    pub(crate) fn new(remote: Arc<Remote>) -> Self {
        Self { remote, begun: Arc::default(), making: Gather::default(), ending: Arc::default() }
    }
}

/// A temporary name in `parent`, which is removed at the end unless it is taken off the list.
fn begin(remote: &Remote, list: &Begun, parent: InodeId) -> Vec<u8> {
    let name = format!(".kiln-cp-{:016x}", remote.env.random_u64()).into_bytes();
    begun(list).insert((parent, name.clone()));
    name
}

/// Makes files without names, one in each of the directories.
async fn make_all(remote: Arc<Remote>, parents: Vec<InodeId>) -> Vec<Result<File>> {
    let new = |parent: &InodeId| NewOne { parent: *parent, name: b"", mode: 0o600 };
    let new: Vec<_> = parents.iter().map(new).collect();
    let made = remote.client.create_many(&remote.caller, &new, OpenMode::EDIT, true);
    let mut made = made.await;
    for (one, new) in made.iter_mut().zip(new) {
        // A server of an earlier version makes them one by one.
        if one.as_ref().is_err_and(|error| error.code() == Code::Unsupported) {
            let NewOne { parent, name, mode } = new;
            let new = NewFile { parent, name, mode, exclusive: true, open: OpenMode::EDIT };
            *one = remote.client.create_nameless(&remote.caller, &new).await;
        }
    }
    made
}

/// Gives files their attributes, then their names, and closes them.
async fn end_all(remote: Arc<Remote>, endings: Vec<Ending>) -> Vec<Result<Attr>> {
    fn one(Ending { file, set, parent, name }: &Ending) -> CloseOne<'_> {
        CloseOne { file, set: *set, name: Some((*parent, name)) }
    }
    let all: Vec<_> = endings.iter().map(one).collect();
    remote.client.close_many(&remote.caller, &all).await
}

fn begun(begun: &Begun) -> std::sync::MutexGuard<'_, BTreeSet<(InodeId, Vec<u8>)>> {
    begun.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is set on an entry; owners are kept when root copies.
fn change(remote: &Remote, info: &Info) -> SetAttr {
    let owner = remote.caller.uid == 0;
    SetAttr {
        mode: (info.kind != Kind::Symlink).then_some(info.mode),
        uid: owner.then_some(info.uid),
        gid: owner.then_some(info.gid),
        length: None,
        atime: Some(SetTime::At(info.atime)),
        mtime: Some(SetTime::At(info.mtime)),
        layout: None,
    }
}

/// Sets attributes; the owner first, because it clears bits of the mode.
async fn set_info(remote: &Remote, inode: InodeId, info: &Info) -> Result<()> {
    let mut change = change(remote, info);
    let special = info.mode & 0o7000 != 0;
    if special && change.uid.is_some() {
        let owner = SetAttr { uid: change.uid, gid: change.gid, ..SetAttr::default() };
        remote.client.set_attr(&remote.caller, inode, owner).await?;
        (change.uid, change.gid) = (None, None);
    }
    remote.client.set_attr(&remote.caller, inode, change).await.map(drop)
}

#[async_trait]
impl Tree for RemoteTree {
    async fn look(&self, path: &[u8], follow: bool) -> Result<Node> {
        let shown = OsString::from_vec(path.to_vec());
        let kiln = KilnPath::parse(&shown).map_err(|failure| failure.error().clone())?;
        let attr = self.remote.look(&kiln, follow).await?;
        let name = kiln.split().map_or(Vec::new(), |(_, name)| name.to_vec());
        Ok(Node { path: path.to_vec(), name, inode: attr.inode, info: info(&attr) })
    }

    async fn list(&self, directory: &Node) -> Result<Vec<Node>> {
        let listed = self.remote.client.list_dir(&self.remote.caller, directory.inode).await;
        let entries = listed.context(directory.shown())?;
        let node = |entry: kiln_client::Entry| Node {
            path: directory.below(&entry.name),
            inode: entry.attr.inode,
            info: info(&entry.attr),
            name: entry.name,
        };
        Ok(entries.into_iter().map(node).collect())
    }

    async fn read_link(&self, link: &Node) -> Result<Vec<u8>> {
        let target = self.remote.client.read_link(&self.remote.caller, link.inode).await;
        target.context(link.shown())
    }

    async fn open(&self, file: &Node) -> Result<Arc<dyn Reader>> {
        let (client, caller) = (&self.remote.client, &self.remote.caller);
        let opened = client.open(caller, file.inode, OpenMode::READ).await;
        Ok(Arc::new(opened.context(file.shown())?))
    }

    async fn make_dir(&self, parent: &Node, name: &[u8]) -> Result<Node> {
        let (client, caller) = (&self.remote.client, &self.remote.caller);
        let path = parent.below(name);
        let attr = match client.make_dir(caller, parent.inode, name, 0o700).await {
            Err(error) if error.code() == Code::Exists => {
                client.lookup(caller, parent.inode, name).await
            }
            made => made,
        };
        let shown = || OsString::from_vec(path.clone()).display().to_string();
        let mut attr = attr.context(shown())?;
        if attr.kind == FileKind::Symlink {
            attr = self.look(&path, true).await.map(|node| Attr {
                inode: node.inode,
                kind: FileKind::Directory,
                ..attr
            })?;
        }
        if attr.kind == FileKind::File {
            return Err(Error::new(
                Code::NotDirectory,
                format!("{}: it is not a directory", shown()),
            ));
        }
        Ok(Node { path, name: name.to_vec(), inode: attr.inode, info: info(&attr) })
    }

    async fn make_link(
        &self,
        parent: &Node,
        name: &[u8],
        target: &[u8],
        info: &Info,
    ) -> Result<()> {
        let (client, caller) = (&self.remote.client, &self.remote.caller);
        let temporary = begin(&self.remote, &self.begun, parent.inode);
        let attr = client.symlink(caller, parent.inode, &temporary, target).await?;
        set_info(&self.remote, attr.inode, info).await?;
        let from = (parent.inode, temporary.as_slice());
        client.rename(caller, from, (parent.inode, name), Rename::Replace).await?;
        begun(&self.begun).remove(&(parent.inode, temporary));
        Ok(())
    }

    async fn create(&self, parent: &Node, name: &[u8]) -> Result<Arc<dyn Writer>> {
        let remote = Arc::clone(&self.remote);
        let made = self.making.join(parent.inode, |parents| make_all(remote, parents));
        Ok(Arc::new(RemoteWriter {
            file: Arc::new(made.await??),
            remote: Arc::clone(&self.remote),
            begun: Arc::clone(&self.begun),
            ending: Arc::clone(&self.ending),
            parent: parent.inode,
            name: name.to_vec(),
        }))
    }

    async fn finish_dir(&self, directory: &Node, info: &Info) -> Result<()> {
        set_info(&self.remote, directory.inode, info).await
    }

    async fn clean_up(&self) {
        let left = std::mem::take(&mut *begun(&self.begun));
        for (parent, name) in left {
            // What cannot be removed now was told by what failed before.
            let (client, caller) = (&self.remote.client, &self.remote.caller);
            let _ = client.remove_past_trash(caller, parent, &name, false).await;
        }
    }
}

#[async_trait]
impl Reader for File {
    async fn read_at(&self, offset: u64, buffer: Buffer) -> Result<Buffer> {
        File::read_at(self, offset, buffer).await
    }

    async fn close(&self) {
        // Nothing was written: the session ends with the client at the latest.
        let _ = File::close(self).await;
    }
}

/// A file without a name: it goes with its session unless it is finished.
struct RemoteWriter {
    remote: Arc<Remote>,
    begun: Arc<Begun>,
    ending: Arc<Gather<Ending, Result<Attr>>>,
    file: Arc<File>,
    parent: InodeId,
    name: Vec<u8>,
}

#[async_trait]
impl Writer for RemoteWriter {
    async fn write_at(&self, offset: u64, bytes: Bytes) -> Result<()> {
        self.file.write_at(offset, bytes).await
    }

    async fn finish(&self, info: &Info) -> Result<()> {
        let remote = Arc::clone(&self.remote);
        let ending = Ending {
            file: Arc::clone(&self.file),
            set: change(&remote, info),
            parent: self.parent,
            name: self.name.clone(),
        };
        let ended = self.ending.join(ending, |endings| end_all(remote, endings)).await?;
        let alone = [Code::Exists, Code::Busy, Code::Unsupported];
        match ended {
            Err(error) if alone.contains(&error.code()) => self.finish_alone(info).await,
            ended => ended.map(drop),
        }
    }

    async fn abandon(&self) {
        let _ = self.file.close().await;
    }
}

impl RemoteWriter {
    /// Puts the file in the place of what has its name.
    async fn finish_alone(&self, info: &Info) -> Result<()> {
        let (client, caller) = (&self.remote.client, &self.remote.caller);
        let inode = self.file.sync().await?.inode;
        set_info(&self.remote, inode, info).await?;
        let temporary = begin(&self.remote, &self.begun, self.parent);
        client.link(caller, inode, self.parent, &temporary).await?;
        let (from, to) = ((self.parent, temporary.as_slice()), (self.parent, self.name.as_slice()));
        client.rename(caller, from, to, Rename::Replace).await?;
        begun(&self.begun).remove(&(self.parent, temporary));
        self.file.close().await.map(drop)
    }
}
