//! The file system of a mount, without a kernel: what each operation means over the client.

mod append;
mod attributes;
mod changes;
mod directory;
mod files;
mod fresh;
mod handles;
mod locks;
mod names;
mod nodes;
mod open_inode;
mod sparse;

use crate::data::{DataOptions, DataPool};
use crate::filesystem::{
    CAPABILITY, DirEntry, FileSystem, Handle, Interrupt, KernelCache, Known, Looked, NewFile,
    OpenFlags, Opened, SeekTo, SetAttr, SetXattr, Space, WriteAt,
};
use async_trait::async_trait;
use fresh::{Freshness, Mark, Names};
use handles::Handles;
use kiln_client::Client;
use kiln_env::{Env, Task};
use kiln_memory::Bytes;
use kiln_types::{
    Attr, Caller, Code, Context, Error, FileKind, InodeId, Lock, LockFamily, LockOwner, LockRange,
    Result,
};
use nodes::Nodes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// How a file system is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsOptions {
    /// The directory of the cluster that is the mount's root.
    pub subtree: Vec<u8>,
    /// Whether every change is refused.
    pub read_only: bool,
    /// How long the kernel may keep names and attributes while it would learn of changes.
    pub cache_for: Duration,
    /// How long a program waits for a cluster that does not answer; `None`: for ever.
    pub io_timeout: Option<Duration>,
    /// Bytes that are read ahead for one sequential reader; 0: none.
    pub read_ahead: u64,
    /// Bytes of written data that may wait in memory, over all files.
    pub write_back: u64,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self {
            subtree: b"/".to_vec(),
            read_only: false,
            cache_for: Duration::from_secs(60),
            io_timeout: Some(Duration::from_secs(120)),
            read_ahead: 8 << 20,
            write_back: 64 << 20,
        }
    }
}

/// A mounted file system.
pub(crate) struct Tree {
    env: Env,
    client: Arc<Client>,
    kernel: Arc<dyn KernelCache>,
    read_only: bool,
    io_timeout: Option<Duration>,
    root: InodeId,
    nodes: Nodes,
    handles: Handles,
    fresh: Mutex<Freshness>,
    pool: Arc<DataPool>,
    changes: Mutex<Option<Task<()>>>,
}

/// The file system that `client` reaches, for a mount whose kernel caches are `kernel`.
///
/// # Errors
/// `NotFound` and `NotDirectory` for the subtree, or what the cluster says.
pub async fn file_system(
    env: Env,
    client: Arc<Client>,
    kernel: Arc<dyn KernelCache>,
    options: FsOptions,
) -> Result<Arc<dyn FileSystem>> {
    let shown = || options.subtree.escape_ascii().to_string();
    let root = client.resolve(&this_user(), &options.subtree, true).await;
    let root = root.context(format_args!("the directory {} of the cluster", shown()))?;
    if root.kind != FileKind::Directory {
        return Err(Error::new(Code::NotDirectory, format!("{} is no directory", shown())));
    }
    let data = DataOptions::new(options.write_back, options.read_ahead, options.io_timeout);
    let tree = Arc::new(Tree {
        pool: DataPool::new(env.clone(), data),
        fresh: Mutex::new(Freshness::new(options.cache_for)),
        root: root.inode,
        read_only: options.read_only,
        io_timeout: options.io_timeout,
        nodes: Nodes::default(),
        handles: Handles::default(),
        changes: Mutex::new(None),
        env,
        client,
        kernel,
    });
    *tree.changes.lock() = Some(tree.env.spawn("changes", changes::follow(Arc::clone(&tree))));
    Ok(tree)
}

fn this_user() -> Caller {
    let groups = rustix::process::getgroups().unwrap_or_default();
    Caller {
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        groups: groups.into_iter().map(rustix::process::Gid::as_raw).collect(),
    }
}

impl Tree {
    /// The cluster's number of an inode of the mount.
    fn inode(&self, inode: InodeId) -> InodeId {
        if inode == InodeId::ROOT { self.root } else { inode }
    }

    /// The mount's number of an inode of the cluster.
    fn shown(&self, inode: InodeId) -> InodeId {
        if inode == self.root { InodeId::ROOT } else { inode }
    }

    fn mark(&self) -> Mark {
        self.fresh.lock().mark()
    }

    fn changes(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::new(Code::ReadOnly, "the mount is read-only"));
        }
        Ok(())
    }

    /// Attributes that a call sent at `sent` answered, as programs here are to see them.
    fn known(&self, sent: Mark, attr: Attr) -> Known {
        let inode = attr.inode;
        let attr = self.nodes.newest(attr);
        let mut attr = match self.nodes.open(inode) {
            Some(open) => open.learn(attr),
            None => attr,
        };
        self.nodes.gave(inode, &attr);
        let mut fresh = self.fresh.lock();
        fresh.learn(sent, self.env.now(), &attr);
        let attr_for = fresh.keep_for(sent, inode);
        attr.inode = self.shown(inode);
        let generation = self.nodes.generation(inode);
        Known { attr, attr_for, name_for: Duration::ZERO, generation }
    }

    /// This mount removed a directory, with these attributes.
    fn removed(&self, attr: &Attr) {
        self.nodes.removed(attr.inode);
        self.fresh.lock().removed(attr);
    }

    /// The same for what a name in `parent` led to.
    fn named(&self, sent: Mark, parent: InodeId, attr: Attr) -> Known {
        let name_for = self.fresh.lock().keep_for(sent, parent);
        Known { name_for, ..self.known(sent, attr) }
    }

    /// The same for a name that the kernel takes in as a lookup.
    fn looked(&self, sent: Mark, parent: InodeId, attr: Attr) -> Known {
        self.nodes.looked_up(attr.inode);
        self.named(sent, parent, attr)
    }
}

#[async_trait]
impl FileSystem for Tree {
    async fn lookup(&self, caller: &Caller, parent: InodeId, name: &[u8]) -> Result<Looked> {
        names::lookup(self, caller, self.inode(parent), name).await
    }

    fn looked_up(&self, inode: InodeId) {
        self.nodes.looked_up(self.inode(inode));
    }

    fn forget(&self, inode: InodeId, count: u64) {
        let inode = self.inode(inode);
        if self.nodes.forget(inode, count) {
            self.fresh.lock().forget(inode);
        }
    }

    async fn get_attr(&self, caller: &Caller, inode: InodeId) -> Result<Known> {
        let (sent, inode) = (self.mark(), self.inode(inode));
        let known = self.fresh.lock().directory(inode, self.env.now());
        if let Some((sent, attr)) = known {
            return Ok(self.known(sent, attr));
        }
        Ok(self.known(sent, self.client.get_attr(caller, inode).await?))
    }

    async fn set_attr(
        &self,
        caller: &Caller,
        inode: InodeId,
        through: Option<Handle>,
        change: SetAttr,
    ) -> Result<Known> {
        self.changes()?;
        attributes::set(self, caller, self.inode(inode), through, change).await
    }

    async fn read_link(&self, caller: &Caller, inode: InodeId) -> Result<Vec<u8>> {
        self.client.read_link(caller, self.inode(inode)).await
    }

    async fn make_dir(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<Known> {
        self.changes()?;
        let (sent, parent) = (self.mark(), self.inode(parent));
        let call = self.client.make_dir(caller, parent, name, mode);
        let attr = names::make(self, (parent, name), call).await?;
        self.fresh.lock().all_names(sent, attr.inode, Names::default());
        Ok(self.looked(sent, parent, attr))
    }

    async fn symlink(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<Known> {
        self.changes()?;
        let (sent, parent) = (self.mark(), self.inode(parent));
        let call = self.client.symlink(caller, parent, name, target);
        let attr = names::make(self, (parent, name), call).await?;
        Ok(self.looked(sent, parent, attr))
    }

    async fn make_node(
        &self,
        caller: &Caller,
        (parent, name): (InodeId, &[u8]),
        mode: u32,
        node: (FileKind, u32),
    ) -> Result<Known> {
        self.changes()?;
        let (sent, parent) = (self.mark(), self.inode(parent));
        let call = self.client.make_node(caller, (parent, name), mode, node);
        let attr = names::make(self, (parent, name), call).await?;
        Ok(self.looked(sent, parent, attr))
    }

    async fn link(
        &self,
        caller: &Caller,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Known> {
        self.changes()?;
        names::link(self, caller, self.inode(inode), (self.inode(parent), name)).await
    }

    async fn unlink(&self, caller: &Caller, parent: InodeId, name: &[u8]) -> Result<()> {
        self.changes()?;
        names::remove(self, caller, (self.inode(parent), name), false).await
    }

    async fn remove_dir(&self, caller: &Caller, parent: InodeId, name: &[u8]) -> Result<()> {
        self.changes()?;
        names::remove(self, caller, (self.inode(parent), name), true).await
    }

    async fn rename(
        &self,
        caller: &Caller,
        (parent, name): (InodeId, &[u8]),
        (new_parent, new_name): (InodeId, &[u8]),
        flags: u32,
    ) -> Result<()> {
        self.changes()?;
        let from = (self.inode(parent), name);
        names::rename(self, caller, from, (self.inode(new_parent), new_name), flags).await
    }

    async fn open(&self, caller: &Caller, inode: InodeId, flags: OpenFlags) -> Result<Opened> {
        if flags.write || flags.truncate {
            self.changes()?;
        }
        files::open(self, caller, self.inode(inode), flags).await
    }

    async fn create(&self, caller: &Caller, new: NewFile<'_>) -> Result<(Known, Opened)> {
        self.changes()?;
        files::create(self, caller, NewFile { parent: self.inode(new.parent), ..new }).await
    }

    async fn make_temporary(
        &self,
        caller: &Caller,
        parent: InodeId,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Known, Opened)> {
        self.changes()?;
        files::create_nameless(self, caller, self.inode(parent), mode, flags).await
    }

    async fn make_file(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<Known> {
        self.changes()?;
        let (sent, parent) = (self.mark(), self.inode(parent));
        let call = self.client.make_file(caller, parent, name, mode);
        let attr = names::make(self, (parent, name), call).await?;
        Ok(self.looked(sent, parent, attr))
    }

    async fn read(&self, handle: Handle, offset: u64, length: usize) -> Result<Bytes> {
        files::read(self, handle, offset, length).await
    }

    async fn write(&self, handle: Handle, at: WriteAt, bytes: Bytes) -> Result<()> {
        files::write(self, handle, at, bytes).await
    }

    async fn fallocate(&self, handle: Handle, mode: u32, offset: u64, length: u64) -> Result<()> {
        sparse::fallocate(self, handle, mode, offset, length).await
    }

    async fn seek(&self, handle: Handle, offset: u64, to: SeekTo) -> Result<u64> {
        self.handles.file(handle)?.open.content().seek(offset, to).await
    }

    async fn copy_range(&self, from: (Handle, u64), to: (Handle, u64), length: u64) -> Result<u64> {
        sparse::copy_range(self, from, to, length).await
    }

    async fn flush(&self, handle: Handle, owner: LockOwner) -> Result<()> {
        let file = self.handles.file(handle)?;
        let pushed = files::push(self, &file, &file.close_told).await;
        pushed.and(locks::end_owner(self, &file.open, owner).await)
    }

    async fn fsync(&self, handle: Handle) -> Result<()> {
        let file = self.handles.file(handle)?;
        files::push(self, &file, &file.fsync_told).await
    }

    async fn release(&self, handle: Handle) {
        files::release(self, handle).await;
    }

    async fn get_lock(&self, handle: Handle, owner: LockOwner, lock: Lock) -> Result<Option<Lock>> {
        locks::get(self, handle, owner, lock).await
    }

    async fn set_lock(
        &self,
        handle: Handle,
        owner: LockOwner,
        lock: Lock,
        wait: Option<Interrupt>,
    ) -> Result<()> {
        locks::set(self, handle, owner, lock, wait).await
    }

    async fn unlock(
        &self,
        handle: Handle,
        owner: LockOwner,
        family: LockFamily,
        range: LockRange,
    ) -> Result<()> {
        let file = self.handles.file(handle)?;
        locks::unlock(self, &file.open, owner, family, range).await
    }

    async fn open_dir(&self, caller: &Caller, inode: InodeId) -> Result<Handle> {
        let directory = directory::OpenDirectory::new(caller.clone(), self.inode(inode));
        Ok(self.handles.add_directory(directory))
    }

    async fn read_dir(&self, handle: Handle, after: u64, limit: usize) -> Result<Vec<DirEntry>> {
        directory::read(self, handle, after, limit).await
    }

    fn release_dir(&self, handle: Handle) {
        self.handles.remove_directory(handle);
    }

    async fn stat_fs(&self, caller: &Caller, inode: InodeId) -> Result<Space> {
        self.client.stat_fs_at(caller, self.inode(inode)).await
    }

    async fn get_xattr(&self, caller: &Caller, inode: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        attributes::extended(self, caller, self.inode(inode), name).await
    }

    async fn set_xattr(
        &self,
        caller: &Caller,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        how: SetXattr,
    ) -> Result<()> {
        self.changes()?;
        attributes::offered(name)?;
        let inode = self.inode(inode);
        let set = self.client.set_xattr(caller, inode, name, value, how).await;
        let mut fresh = self.fresh.lock();
        if name == CAPABILITY {
            fresh.change(inode);
        }
        fresh.changed_here(Some(inode));
        set
    }

    async fn list_xattrs(&self, caller: &Caller, inode: InodeId) -> Result<Vec<Vec<u8>>> {
        self.client.list_xattrs(caller, self.inode(inode)).await
    }

    fn changed_elsewhere(&self, handle: Handle) -> bool {
        self.handles.file(handle).is_ok_and(|file| file.open.take_change())
    }

    async fn remove_xattr(&self, caller: &Caller, inode: InodeId, name: &[u8]) -> Result<()> {
        self.changes()?;
        let inode = self.inode(inode);
        let removed = self.client.remove_xattr(caller, inode, name).await;
        self.fresh.lock().changed_here(Some(inode));
        removed
    }

    async fn shut_down(&self) {
        self.changes.lock().take();
        for open in self.nodes.all_open() {
            if let Err(error) = open.push().await {
                tracing::error!(inode = %open.inode(), %error, "written data is lost");
            }
        }
        self.client.goodbye().await;
    }
}
