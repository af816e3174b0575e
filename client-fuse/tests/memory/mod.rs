//! A file system in memory, for tests of the kernel adapter. Names decide what goes wrong: a read of
//! `slow` waits, of `panic` panics, of `lost` finds no cluster.

mod locks;

use async_trait::async_trait;
use kiln_client_fuse::{
    DirEntry, FileSystem, Handle, Interrupt, Known, Looked, NewFile, OpenFlags, Opened, SeekTo,
    SetAttr, SetTime, SetXattr, Space, WriteAt,
};
use kiln_env::Env;
use kiln_memory::Bytes;
use kiln_types::{
    Attr, Caller, Code, Error, FileKind, InodeId, Lock, LockFamily, LockOwner, LockRange, Result,
    Timestamp, TruncateEpoch,
};
use locks::Locks;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// How long a read of `slow` takes.
pub(crate) const SLOW: Duration = Duration::from_secs(3);

pub(crate) struct Memory {
    env: Env,
    /// How long the kernel may keep names and attributes.
    keep: Duration,
    state: Mutex<State>,
    pub(crate) locks: Locks,
    /// Whose flock(2) lock may be held through a handle.
    flocks: Mutex<HashMap<Handle, LockOwner>>,
}

struct State {
    next: u64,
    nodes: HashMap<InodeId, Node>,
    open: HashMap<Handle, (InodeId, OpenFlags)>,
    lookups: HashMap<InodeId, u64>,
}

struct Node {
    attr: Attr,
    bytes: Vec<u8>,
    entries: BTreeMap<Vec<u8>, InodeId>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn err<T>(code: Code) -> Result<T> {
    Err(code.into())
}

impl Memory {
    pub(crate) fn new(env: Env, keep: Duration) -> Self {
        let mut state =
            State { next: 1, nodes: HashMap::new(), open: HashMap::new(), lookups: HashMap::new() };
        state.add(&Caller::root(), FileKind::Directory, 0o755, env.wall());
        Self {
            env,
            keep,
            state: Mutex::new(state),
            locks: Locks::default(),
            flocks: Mutex::default(),
        }
    }

    /// Writes a file behind the kernel's back, as another client would.
    pub(crate) fn write_elsewhere(&self, name: &[u8], bytes: &[u8]) -> InodeId {
        let mut state = self.state.lock();
        let now = self.env.wall();
        let inode = match state.nodes[&InodeId::ROOT].entries.get(name) {
            Some(inode) => *inode,
            None => state.add(&Caller::root(), FileKind::File, 0o644, now),
        };
        state.node(InodeId::ROOT).unwrap().entries.insert(name.to_vec(), inode);
        let node = state.node(inode).unwrap();
        node.bytes = bytes.to_vec();
        node.attr.length = bytes.len() as u64;
        inode
    }

    /// Inodes that the kernel has looked up and not forgotten.
    pub(crate) fn remembered(&self) -> usize {
        self.state.lock().lookups.values().filter(|count| **count > 0).count()
    }

    fn known(&self, attr: Attr) -> Known {
        Known { attr, attr_for: self.keep, name_for: self.keep, generation: 0 }
    }

    /// Makes an inode with a name.
    fn make(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        kind: FileKind,
        mode: u32,
    ) -> Result<Known> {
        let mut state = self.state.lock();
        if state.node(parent)?.entries.contains_key(name) {
            return err(Code::Exists);
        }
        let inode = state.add(caller, kind, mode, self.env.wall());
        state.node(parent)?.entries.insert(name.to_vec(), inode);
        Ok(self.known(state.look_up(inode)))
    }

    fn named(&self, handle: Handle) -> Result<(InodeId, Vec<u8>)> {
        let mut state = self.state.lock();
        let inode = state.open.get(&handle).ok_or(Code::BadHandle)?.0;
        let root = state.node(InodeId::ROOT)?;
        let name = root.entries.iter().find(|(_, other)| **other == inode);
        Ok((inode, name.map(|(name, _)| name.clone()).unwrap_or_default()))
    }
}

impl State {
    fn add(&mut self, caller: &Caller, kind: FileKind, mode: u32, now: Timestamp) -> InodeId {
        let inode = InodeId(self.next);
        self.next += 1;
        let attr = Attr {
            inode,
            kind,
            mode,
            uid: caller.uid,
            gid: caller.gid,
            links: if kind == FileKind::Directory { 2 } else { 1 },
            length: 0,
            dense_end: 0,
            device: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            epoch: TruncateEpoch(0),
            floors: Vec::new(),
            layout: None,
        };
        let (entries, xattrs) = (BTreeMap::new(), BTreeMap::new());
        self.nodes.insert(inode, Node { attr, bytes: Vec::new(), entries, xattrs });
        inode
    }

    fn node(&mut self, inode: InodeId) -> Result<&mut Node> {
        self.nodes.get_mut(&inode).ok_or_else(|| Code::StaleHandle.into())
    }

    fn look_up(&mut self, inode: InodeId) -> Attr {
        *self.lookups.entry(inode).or_default() += 1;
        self.nodes[&inode].attr.clone()
    }

    fn open(&mut self, inode: InodeId, flags: OpenFlags) -> Result<Opened> {
        if flags.truncate {
            self.resize(inode, 0)?;
        }
        let handle = Handle(self.next);
        self.next += 1;
        self.open.insert(handle, (inode, flags));
        Ok(Opened { handle, keep_cache: true, direct: flags.direct })
    }

    fn resize(&mut self, inode: InodeId, length: usize) -> Result<()> {
        let node = self.node(inode)?;
        node.bytes.resize(length, 0);
        node.attr.length = length as u64;
        Ok(())
    }
}

#[async_trait]
impl FileSystem for Memory {
    async fn lookup(&self, _: &Caller, parent: InodeId, name: &[u8]) -> Result<Looked> {
        let mut state = self.state.lock();
        let found = state.node(parent)?.entries.get(name).copied();
        Ok(match found {
            Some(inode) => Looked::Up(self.known(state.look_up(inode))),
            None => Looked::Nothing(self.keep),
        })
    }

    fn looked_up(&self, inode: InodeId) {
        self.state.lock().look_up(inode);
    }

    fn forget(&self, inode: InodeId, count: u64) {
        let mut state = self.state.lock();
        let left = state.lookups.get_mut(&inode).expect("forgotten more often than looked up");
        *left = left.checked_sub(count).expect("forgotten more often than looked up");
    }

    async fn get_attr(&self, _: &Caller, inode: InodeId) -> Result<Known> {
        Ok(self.known(self.state.lock().node(inode)?.attr.clone()))
    }

    async fn set_attr(
        &self,
        _: &Caller,
        inode: InodeId,
        _: Option<Handle>,
        change: SetAttr,
    ) -> Result<Known> {
        let mut state = self.state.lock();
        if let Some(length) = change.length {
            state.resize(inode, length as usize)?;
        }
        let now = self.env.wall();
        let time = |time: SetTime| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        let attr = &mut state.node(inode)?.attr;
        attr.mode = change.mode.unwrap_or(attr.mode);
        attr.uid = change.uid.unwrap_or(attr.uid);
        attr.gid = change.gid.unwrap_or(attr.gid);
        attr.atime = change.atime.map_or(attr.atime, time);
        attr.mtime = change.mtime.map_or(attr.mtime, time);
        Ok(self.known(attr.clone()))
    }

    async fn read_link(&self, _: &Caller, inode: InodeId) -> Result<Vec<u8>> {
        Ok(self.state.lock().node(inode)?.bytes.clone())
    }

    async fn make_dir(&self, c: &Caller, parent: InodeId, name: &[u8], mode: u32) -> Result<Known> {
        self.make(c, parent, name, FileKind::Directory, mode)
    }

    async fn symlink(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<Known> {
        let mut known = self.make(caller, parent, name, FileKind::Symlink, 0o777)?;
        known.attr.length = target.len() as u64;
        let mut state = self.state.lock();
        let node = state.node(known.attr.inode)?;
        (node.bytes, node.attr) = (target.to_vec(), known.attr.clone());
        Ok(known)
    }

    async fn make_node(
        &self,
        caller: &Caller,
        (parent, name): (InodeId, &[u8]),
        mode: u32,
        (kind, device): (FileKind, u32),
    ) -> Result<Known> {
        let mut known = self.make(caller, parent, name, kind, mode)?;
        known.attr.device = device;
        self.state.lock().node(known.attr.inode)?.attr = known.attr.clone();
        Ok(known)
    }

    async fn link(
        &self,
        _: &Caller,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Known> {
        let mut state = self.state.lock();
        state.node(parent)?.entries.insert(name.to_vec(), inode);
        state.node(inode)?.attr.links += 1;
        Ok(self.known(state.look_up(inode)))
    }

    async fn unlink(&self, _: &Caller, parent: InodeId, name: &[u8]) -> Result<()> {
        let mut state = self.state.lock();
        let inode = state.node(parent)?.entries.remove(name).ok_or(Code::NotFound)?;
        state.node(inode)?.attr.links -= 1;
        Ok(())
    }

    async fn remove_dir(&self, caller: &Caller, parent: InodeId, name: &[u8]) -> Result<()> {
        let inode = self.state.lock().node(parent)?.entries.get(name).copied();
        let inode = inode.ok_or(Code::NotFound)?;
        if !self.state.lock().node(inode)?.entries.is_empty() {
            return err(Code::NotEmpty);
        }
        self.unlink(caller, parent, name).await
    }

    async fn rename(
        &self,
        _: &Caller,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        flags: u32,
    ) -> Result<()> {
        let mut state = self.state.lock();
        let taken = state.node(to.0)?.entries.get(to.1).copied();
        if flags & 1 != 0 && taken.is_some() {
            return err(Code::Exists);
        }
        let inode = state.node(from.0)?.entries.remove(from.1).ok_or(Code::NotFound)?;
        if let (true, Some(taken)) = (flags & 2 != 0, taken) {
            state.node(from.0)?.entries.insert(from.1.to_vec(), taken);
        }
        state.node(to.0)?.entries.insert(to.1.to_vec(), inode);
        Ok(())
    }

    async fn open(&self, _: &Caller, inode: InodeId, flags: OpenFlags) -> Result<Opened> {
        self.state.lock().open(inode, flags)
    }

    async fn create(&self, caller: &Caller, new: NewFile<'_>) -> Result<(Known, Opened)> {
        let known = self.make(caller, new.parent, new.name, FileKind::File, new.mode)?;
        let opened = self.state.lock().open(known.attr.inode, new.flags)?;
        Ok((known, opened))
    }

    async fn make_file(
        &self,
        c: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<Known> {
        self.make(c, parent, name, FileKind::File, mode)
    }

    async fn read(&self, handle: Handle, offset: u64, length: usize) -> Result<Bytes> {
        let (inode, name) = self.named(handle)?;
        match &name[..] {
            b"slow" => self.env.sleep(SLOW).await,
            b"panic" => panic!("as the name says"),
            b"lost" => return err(Code::DeadlineExceeded),
            _ => {}
        }
        let mut state = self.state.lock();
        let bytes = &state.node(inode)?.bytes;
        let from = bytes.len().min(offset as usize);
        Ok(Bytes::copy_of(&bytes[from..bytes.len().min(from + length)]))
    }

    async fn write(&self, handle: Handle, at: WriteAt, new: Bytes) -> Result<()> {
        let (inode, _) = self.named(handle)?;
        let mut state = self.state.lock();
        let (from, to) = (at.offset as usize, at.offset as usize + new.len());
        let length = state.node(inode)?.bytes.len();
        state.resize(inode, length.max(to))?;
        state.node(inode)?.bytes[from..to].copy_from_slice(&new);
        Ok(())
    }

    async fn flush(&self, handle: Handle, owner: LockOwner) -> Result<()> {
        let (inode, name) = self.named(handle)?;
        self.locks.unlock(inode, owner, LockFamily::Posix, LockRange::ALL);
        match &name[..] {
            b"full" => err(Code::NoSpace),
            _ => Ok(()),
        }
    }

    async fn fsync(&self, _: Handle) -> Result<()> {
        Ok(())
    }

    async fn release(&self, handle: Handle) {
        let opened = self.state.lock().open.remove(&handle);
        let owner = self.flocks.lock().remove(&handle);
        if let (Some((inode, _)), Some(owner)) = (opened, owner) {
            self.locks.unlock(inode, owner, LockFamily::Flock, LockRange::ALL);
        }
    }

    async fn fallocate(&self, handle: Handle, mode: u32, offset: u64, length: u64) -> Result<()> {
        let (inode, _) = self.named(handle)?;
        if mode != 0 {
            return err(Code::Unsupported);
        }
        let mut state = self.state.lock();
        let length = state.node(inode)?.bytes.len().max((offset + length) as usize);
        state.resize(inode, length)
    }

    /// Zeros are holes.
    async fn seek(&self, handle: Handle, offset: u64, to: SeekTo) -> Result<u64> {
        let (inode, _) = self.named(handle)?;
        let mut state = self.state.lock();
        let rest = state.node(inode)?.bytes.get(offset as usize..).ok_or(Code::NotFound)?;
        let found = rest.iter().position(|byte| (*byte != 0) == (to == SeekTo::Data));
        Ok(offset + found.unwrap_or(rest.len()) as u64)
    }

    async fn copy_range(&self, from: (Handle, u64), to: (Handle, u64), length: u64) -> Result<u64> {
        let bytes = self.read(from.0, from.1, length as usize).await?;
        let copied = bytes.len() as u64;
        let at = WriteAt { offset: to.1, append: false };
        self.write(to.0, at, bytes).await?;
        Ok(copied)
    }

    async fn make_temporary(
        &self,
        caller: &Caller,
        _: InodeId,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Known, Opened)> {
        let mut state = self.state.lock();
        let inode = state.add(caller, FileKind::File, mode, self.env.wall());
        state.node(inode)?.attr.links = 0;
        let opened = state.open(inode, flags)?;
        Ok((self.known(state.look_up(inode)), opened))
    }

    async fn get_lock(&self, handle: Handle, owner: LockOwner, lock: Lock) -> Result<Option<Lock>> {
        Ok(self.locks.in_the_way(self.named(handle)?.0, owner, lock))
    }

    async fn set_lock(
        &self,
        handle: Handle,
        owner: LockOwner,
        lock: Lock,
        wait: Option<Interrupt>,
    ) -> Result<()> {
        if lock.family == LockFamily::Flock {
            self.flocks.lock().insert(handle, owner);
        }
        self.locks.lock(self.named(handle)?.0, owner, lock, wait).await
    }

    async fn unlock(
        &self,
        handle: Handle,
        owner: LockOwner,
        family: LockFamily,
        range: LockRange,
    ) -> Result<()> {
        self.locks.unlock(self.named(handle)?.0, owner, family, range);
        Ok(())
    }

    async fn open_dir(&self, _: &Caller, inode: InodeId) -> Result<Handle> {
        let flags = OpenFlags { read: true, ..OpenFlags::default() };
        Ok(self.state.lock().open(inode, flags)?.handle)
    }

    async fn read_dir(&self, handle: Handle, after: u64, limit: usize) -> Result<Vec<DirEntry>> {
        let (inode, _) = self.named(handle)?;
        let mut state = self.state.lock();
        let mut names = vec![(b".".to_vec(), inode), (b"..".to_vec(), InodeId::ROOT)];
        names.extend(state.node(inode)?.entries.iter().map(|(name, to)| (name.clone(), *to)));
        let rest = names.into_iter().enumerate().skip(after as usize).take(limit);
        Ok(rest
            .map(|(at, (name, inode))| {
                let known = self.known(state.nodes[&inode].attr.clone());
                let bare = name == b"." || name == b"..";
                DirEntry { name, cookie: at as u64 + 1, known, bare }
            })
            .collect())
    }

    fn release_dir(&self, handle: Handle) {
        self.state.lock().open.remove(&handle);
    }

    async fn stat_fs(&self, _: &Caller, _: InodeId) -> Result<Space> {
        let inodes = self.state.lock().nodes.len() as u64;
        Ok(Space { total_bytes: 1 << 40, free_bytes: 1 << 39, inodes, free_inodes: None })
    }

    async fn get_xattr(&self, _: &Caller, inode: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        let mut state = self.state.lock();
        state.node(inode)?.xattrs.get(name).cloned().ok_or_else(|| Code::NoAttribute.into())
    }

    async fn set_xattr(
        &self,
        _: &Caller,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        how: SetXattr,
    ) -> Result<()> {
        let mut state = self.state.lock();
        let xattrs = &mut state.node(inode)?.xattrs;
        match (how, xattrs.contains_key(name)) {
            (SetXattr::Create, true) => return err(Code::Exists),
            (SetXattr::Replace, false) => return err(Code::NoAttribute),
            _ => xattrs.insert(name.to_vec(), value.to_vec()),
        };
        Ok(())
    }

    async fn list_xattrs(&self, _: &Caller, inode: InodeId) -> Result<Vec<Vec<u8>>> {
        Ok(self.state.lock().node(inode)?.xattrs.keys().cloned().collect())
    }

    fn changed_elsewhere(&self, _: Handle) -> bool {
        false
    }

    async fn remove_xattr(&self, _: &Caller, inode: InodeId, name: &[u8]) -> Result<()> {
        let removed = self.state.lock().node(inode)?.xattrs.remove(name);
        removed.map(drop).ok_or_else(|| Error::from(Code::NoAttribute))
    }

    async fn shut_down(&self) {}
}
