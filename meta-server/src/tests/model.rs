//! A POSIX tree, naively: the reference beside the store.

use kiln_types::{Account, Caller, Code, FileKind, InodeId, QuotaLimits, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
pub(crate) use trash::Trash;

mod nameless;
mod quota;
mod trash;
mod trees;
mod xattrs;

/// A time that lies somewhere between the start and the end of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Timestamp, pub(crate) Timestamp);

impl Span {
    pub(crate) fn exactly(time: Timestamp) -> Self {
        Self(time, time)
    }

    pub(crate) fn holds(self, time: Timestamp) -> bool {
        // Of changes at one moment each is later by a nanosecond.
        (self.0.0..=self.1.0 + 1000).contains(&time.0)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) kind: FileKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) atime: Span,
    pub(crate) mtime: Span,
    pub(crate) ctime: Span,
    pub(crate) names: BTreeMap<Vec<u8>, InodeId>,
    pub(crate) parent: InodeId,
    pub(crate) target: Vec<u8>,
    pub(crate) device: u32,
    pub(crate) bytes: BTreeMap<u64, u8>,
    pub(crate) length: u64,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The directory whose quota it counts for.
    pub(crate) quota: InodeId,
}

#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) nodes: BTreeMap<InodeId, Node>,
    /// Open files: those of an inode, by number.
    pub(crate) open: BTreeMap<u64, InodeId>,
    /// Files that were made without a name.
    nameless: BTreeSet<InodeId>,
    pub(crate) limits: BTreeMap<Account, QuotaLimits>,
    pub(crate) trash: Trash,
}

/// Who does something, and when.
pub(crate) struct By<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) now: Span,
}

type Outcome<T> = Result<T, Code>;

impl Model {
    pub(crate) fn new(now: Span) -> Self {
        let by = By { caller: &Caller::root(), now };
        let root = Node::new(FileKind::Directory, 0o755, 0, &by);
        let mut model = Self {
            nodes: BTreeMap::new(),
            open: BTreeMap::new(),
            nameless: BTreeSet::new(),
            limits: BTreeMap::new(),
            trash: Trash::default(),
        };
        model.nodes.insert(InodeId::ROOT, Node { parent: InodeId::ROOT, ..root });
        model
    }

    pub(crate) fn links(&self, id: InodeId) -> u32 {
        let node = &self.nodes[&id];
        let kind = |child: &InodeId| self.nodes[child].kind;
        if self.attached(id).is_err() {
            return 0;
        }
        if node.kind == FileKind::Directory {
            let dirs = node.names.values().filter(|child| kind(child) == FileKind::Directory);
            return 2 + dirs.count() as u32;
        }
        let all = self.nodes.values().flat_map(|node| node.names.values());
        all.filter(|child| **child == id).count() as u32
    }

    pub(crate) fn node(&self, id: InodeId) -> Outcome<&Node> {
        self.nodes.get(&id).ok_or(Code::StaleHandle)
    }

    fn edit(&mut self, id: InodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node")
    }

    fn may(&self, by: &By<'_>, id: InodeId, bits: u32) -> bool {
        let (node, caller) = (&self.nodes[&id], by.caller);
        let class = match () {
            () if caller.uid == 0 => return true,
            () if caller.uid == node.uid => node.mode >> 6,
            () if caller.gid == node.gid || caller.groups.contains(&node.gid) => node.mode >> 3,
            () => node.mode,
        };
        class & bits == bits
    }

    fn need(&self, by: &By<'_>, id: InodeId, bits: u32) -> Outcome<()> {
        if self.may(by, id, bits) { Ok(()) } else { Err(Code::PermissionDenied) }
    }

    fn need_owner(&self, by: &By<'_>, id: InodeId) -> Outcome<()> {
        match by.caller.uid == 0 || by.caller.uid == self.nodes[&id].uid {
            true => Ok(()),
            false => Err(Code::NotPermitted),
        }
    }

    fn directory(&self, by: &By<'_>, id: InodeId, bits: u32) -> Outcome<()> {
        if self.node(id)?.kind != FileKind::Directory {
            return Err(Code::NotDirectory);
        }
        self.need(by, id, bits)
    }

    fn child(&self, parent: InodeId, name: &[u8]) -> Outcome<InodeId> {
        self.nodes[&parent].names.get(name).copied().ok_or(Code::NotFound)
    }

    fn sticky(&self, by: &By<'_>, parent: InodeId, child: InodeId) -> Outcome<()> {
        let is_sticky = self.nodes[&parent].mode & 0o1000 != 0;
        let owns = |id| self.need_owner(by, id).is_ok();
        if is_sticky && !owns(parent) && !owns(child) { Err(Code::NotPermitted) } else { Ok(()) }
    }

    /// Entries of a directory changed.
    fn changed(&mut self, by: &By<'_>, directory: InodeId) {
        let node = self.edit(directory);
        (node.mtime, node.ctime) = (by.now, by.now);
    }

    /// Drops what has neither a name nor a session.
    fn settle(&mut self, id: InodeId) {
        let is_open = self.open.values().any(|open| *open == id);
        if !is_open && !self.is_named(id) && self.attached(id).is_ok() {
            self.nodes.remove(&id);
        }
    }

    fn is_named(&self, id: InodeId) -> bool {
        self.nodes.values().any(|node| node.names.values().any(|child| *child == id))
    }

    pub(crate) fn lookup(&self, by: &By<'_>, parent: InodeId, name: &[u8]) -> Outcome<InodeId> {
        self.directory(by, parent, 1)?;
        match name {
            b"." => Ok(parent),
            b".." if self.attached(parent).is_err() => Err(Code::StaleHandle),
            b".." => Ok(self.nodes[&parent].parent),
            name => self.child(parent, name),
        }
    }

    pub(crate) fn resolve(
        &self,
        by: &By<'_>,
        start: InodeId,
        path: &[u8],
        follow: bool,
    ) -> Outcome<InodeId> {
        if !path.starts_with(b"/") {
            self.node(start)?;
        }
        self.walk(by, start, path, follow, &mut 0)
    }

    fn walk(
        &self,
        by: &By<'_>,
        start: InodeId,
        path: &[u8],
        follow: bool,
        links: &mut u32,
    ) -> Outcome<InodeId> {
        let mut at = if path.starts_with(b"/") { InodeId::ROOT } else { start };
        let names: Vec<_> = path.split(|b| *b == b'/').filter(|name| !name.is_empty()).collect();
        let must = path.ends_with(b"/");
        for (i, name) in names.iter().enumerate() {
            let next = self.lookup(by, at, name)?;
            let is_last = i + 1 == names.len();
            let node = &self.nodes[&next];
            at = if node.kind == FileKind::Symlink && (!is_last || follow || must) {
                *links += 1;
                if *links > 40 {
                    return Err(Code::SymlinkLoop);
                }
                self.walk(by, at, &node.target, true, links)?
            } else {
                next
            };
        }
        if must && self.nodes[&at].kind != FileKind::Directory {
            return Err(Code::NotDirectory);
        }
        Ok(at)
    }

    /// What is made gets `id`.
    pub(crate) fn make(
        &mut self,
        by: &By<'_>,
        parent: InodeId,
        name: &[u8],
        kind: FileKind,
        mode: u32,
        id: InodeId,
    ) -> Outcome<InodeId> {
        if kind == FileKind::BlockDevice && by.caller.uid != 0 {
            return Err(Code::NotPermitted);
        }
        self.directory(by, parent, 1)?;
        if self.child(parent, name).is_ok() {
            return Err(Code::Exists);
        }
        self.need(by, parent, 3)?;
        self.attached(parent)?;
        let node = self.fresh(by, parent, kind, mode);
        self.nodes.insert(id, node);
        self.edit(parent).names.insert(name.to_vec(), id);
        self.changed(by, parent);
        Ok(id)
    }

    /// What is made in a directory.
    fn fresh(&self, by: &By<'_>, parent: InodeId, kind: FileKind, mode: u32) -> Node {
        let mut node = Node { parent, ..Node::new(kind, mode, by.caller.gid, by) };
        let above = &self.nodes[&parent];
        node.quota = above.quota;
        if above.mode & 0o2000 != 0 {
            node.gid = above.gid;
            let in_group = by.caller.gid == node.gid || by.caller.groups.contains(&node.gid);
            if kind == FileKind::Directory {
                node.mode |= 0o2000;
            } else if mode & 0o2010 == 0o2010 && by.caller.uid != 0 && !in_group {
                node.mode &= !0o2000;
            }
        }
        node
    }

    pub(crate) fn create(
        &mut self,
        by: &By<'_>,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        how: (bool, bool, bool, bool),
        id: InodeId,
    ) -> Outcome<InodeId> {
        let (exclusive, read, write, truncate) = how;
        self.directory(by, parent, 1)?;
        match self.child(parent, name) {
            Ok(_) if exclusive => Err(Code::Exists),
            Ok(old) if self.nodes[&old].kind == FileKind::Directory => Err(Code::IsDirectory),
            Ok(old) => self.open(by, old, read, write, truncate).map(|()| old),
            Err(_) => self.make(by, parent, name, FileKind::File, mode, id),
        }
    }

    pub(crate) fn open(
        &mut self,
        by: &By<'_>,
        id: InodeId,
        read: bool,
        write: bool,
        truncate: bool,
    ) -> Outcome<()> {
        match self.node(id)?.kind {
            FileKind::Symlink => return Err(Code::SymlinkLoop),
            kind if kind.is_special() => return Err(Code::Invalid),
            FileKind::Directory if write || truncate => return Err(Code::IsDirectory),
            _ => {}
        }
        if read {
            self.need(by, id, 4)?;
        }
        if write || truncate {
            self.need(by, id, 2)?;
        }
        if truncate {
            self.set_length(by, id, 0);
        }
        Ok(())
    }

    pub(crate) fn set_length(&mut self, by: &By<'_>, id: InodeId, length: u64) {
        let node = self.edit(id);
        node.bytes.retain(|at, _| *at < length);
        node.length = length;
        node.written(by);
    }

    /// Takes in a writer's report.
    pub(crate) fn written(&mut self, by: &By<'_>, id: InodeId, end: u64) {
        let node = self.edit(id);
        node.length = node.length.max(end);
        node.written(by);
    }

    pub(crate) fn close(&mut self, number: u64) {
        let id = self.open.remove(&number).expect("an open file");
        self.settle(id);
    }

    pub(crate) fn unlink(&mut self, by: &By<'_>, parent: InodeId, name: &[u8]) -> Outcome<()> {
        self.directory(by, parent, 1)?;
        let id = self.child(parent, name)?;
        self.need(by, parent, 3)?;
        self.sticky(by, parent, id)?;
        if self.nodes[&id].kind == FileKind::Directory {
            return Err(Code::IsDirectory);
        }
        self.edit(parent).names.remove(name);
        self.changed(by, parent);
        self.lose(by, id, (parent, name));
        Ok(())
    }

    pub(crate) fn rmdir(&mut self, by: &By<'_>, parent: InodeId, name: &[u8]) -> Outcome<()> {
        self.directory(by, parent, 1)?;
        let id = self.child(parent, name)?;
        self.need(by, parent, 3)?;
        self.sticky(by, parent, id)?;
        let node = &self.nodes[&id];
        if node.kind != FileKind::Directory {
            return Err(Code::NotDirectory);
        }
        if !node.names.is_empty() {
            return Err(Code::NotEmpty);
        }
        self.edit(parent).names.remove(name);
        self.changed(by, parent);
        self.lose(by, id, (parent, name));
        Ok(())
    }

    pub(crate) fn link(
        &mut self,
        by: &By<'_>,
        id: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Outcome<InodeId> {
        self.node(id)?;
        self.directory(by, parent, 1)?;
        if self.child(parent, name).is_ok() {
            return Err(Code::Exists);
        }
        self.need(by, parent, 3)?;
        self.attached(parent)?;
        if self.nodes[&id].kind == FileKind::Directory {
            return Err(Code::NotPermitted);
        }
        let first = self.links(id) == 0;
        if first && !self.nameless.remove(&id) {
            return Err(Code::NotFound);
        }
        let quota = self.nodes[&parent].quota;
        if !first && self.nodes[&id].quota != quota {
            return Err(Code::OtherQuota);
        }
        self.edit(id).quota = quota;
        self.edit(parent).names.insert(name.to_vec(), id);
        self.changed(by, parent);
        self.edit(id).ctime = by.now;
        Ok(id)
    }

    /// Everything that hangs on a directory, and itself.
    fn below(&self, id: InodeId) -> BTreeSet<InodeId> {
        let mut all = BTreeSet::from([id]);
        let children: Vec<_> = self.nodes[&id].names.values().copied().collect();
        for child in children {
            all.extend(self.below(child));
        }
        all
    }

    fn may_move(&self, by: &By<'_>, id: InodeId, from: InodeId, to: InodeId) -> Outcome<()> {
        self.within_quota(id, from, to)?;
        if self.nodes[&id].kind != FileKind::Directory || from == to {
            return Ok(());
        }
        if self.below(id).contains(&to) {
            return Err(Code::Invalid);
        }
        self.rooted(to)?;
        self.need(by, id, 2)
    }

    pub(crate) fn rename(
        &mut self,
        by: &By<'_>,
        (from, name): (InodeId, &[u8]),
        (to, new_name): (InodeId, &[u8]),
        no_replace: bool,
        exchange: bool,
    ) -> Outcome<()> {
        if no_replace && exchange {
            return Err(Code::Invalid);
        }
        self.directory(by, from, 1)?;
        self.directory(by, to, 1)?;
        let id = self.child(from, name)?;
        let target = self.child(to, new_name).ok();
        if no_replace && target.is_some() {
            return Err(Code::Exists);
        }
        self.need(by, from, 3)?;
        self.need(by, to, 3)?;
        self.attached(to)?;
        self.sticky(by, from, id)?;
        self.may_move(by, id, from, to)?;
        if exchange && target.is_none() {
            return Err(Code::NotFound);
        }
        if let Some(target) = target {
            self.sticky(by, to, target)?;
            if target == id {
                return Ok(());
            }
            if exchange {
                self.may_move(by, target, to, from)?;
            } else {
                let is_dir = |id: InodeId| self.nodes[&id].kind == FileKind::Directory;
                match (is_dir(id), is_dir(target)) {
                    (true, false) => return Err(Code::NotDirectory),
                    (false, true) => return Err(Code::IsDirectory),
                    (true, true) if !self.nodes[&target].names.is_empty() => {
                        return Err(Code::NotEmpty);
                    }
                    _ => {}
                }
            }
        }
        self.edit(from).names.remove(name);
        self.edit(to).names.insert(new_name.to_vec(), id);
        self.arrive(by, id, to);
        if let Some(target) = target {
            if exchange {
                self.edit(from).names.insert(name.to_vec(), target);
                self.arrive(by, target, from);
            } else {
                self.lose(by, target, (to, new_name));
            }
        }
        self.changed(by, from);
        self.changed(by, to);
        Ok(())
    }

    fn arrive(&mut self, by: &By<'_>, id: InodeId, parent: InodeId) {
        self.follow(id, parent);
        let node = self.edit(id);
        (node.parent, node.ctime) = (parent, by.now);
    }

    pub(crate) fn chmod(&mut self, by: &By<'_>, id: InodeId, mode: u32) -> Outcome<()> {
        self.node(id)?;
        self.need_owner(by, id)?;
        let node = self.edit(id);
        let in_group = by.caller.gid == node.gid || by.caller.groups.contains(&node.gid);
        node.mode = if in_group || by.caller.uid == 0 { mode } else { mode & !0o2000 };
        node.ctime = by.now;
        Ok(())
    }

    pub(crate) fn chown(
        &mut self,
        by: &By<'_>,
        id: InodeId,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Outcome<()> {
        let old = self.node(id)?;
        self.need_owner(by, id)?;
        let may_join = |gid: u32| by.caller.gid == gid || by.caller.groups.contains(&gid);
        let gives = uid.is_some_and(|uid| uid != old.uid);
        let joins = gid.is_some_and(|gid| gid != old.gid && !may_join(gid));
        if by.caller.uid != 0 && (gives || joins) {
            return Err(Code::NotPermitted);
        }
        let node = self.edit(id);
        if node.kind != FileKind::Directory {
            node.drop_set_ids(by);
        }
        (node.uid, node.gid) = (uid.unwrap_or(node.uid), gid.unwrap_or(node.gid));
        node.ctime = by.now;
        Ok(())
    }

    /// `None`: now.
    pub(crate) fn utimens(
        &mut self,
        by: &By<'_>,
        id: InodeId,
        atime: Option<Timestamp>,
        mtime: Option<Timestamp>,
    ) -> Outcome<()> {
        self.node(id)?;
        if self.need_owner(by, id).is_err() {
            if atime.is_some() || mtime.is_some() {
                return Err(Code::NotPermitted);
            }
            self.need(by, id, 2)?;
        }
        let node = self.edit(id);
        node.atime = atime.map_or(by.now, Span::exactly);
        node.mtime = mtime.map_or(by.now, Span::exactly);
        node.ctime = by.now;
        Ok(())
    }

    /// `holds`: through an open file with the right to write.
    pub(crate) fn truncate(
        &mut self,
        by: &By<'_>,
        id: InodeId,
        length: u64,
        holds: Option<bool>,
    ) -> Outcome<()> {
        match self.node(id)?.kind {
            FileKind::Directory => return Err(Code::IsDirectory),
            FileKind::File => {}
            _ => return Err(Code::Invalid),
        }
        match holds {
            None => self.need(by, id, 2)?,
            Some(true) => {}
            Some(false) => return Err(Code::BadHandle),
        }
        self.set_length(by, id, length);
        Ok(())
    }

    pub(crate) fn list(&self, by: &By<'_>, id: InodeId) -> Outcome<BTreeMap<Vec<u8>, InodeId>> {
        self.directory(by, id, 4)?;
        Ok(self.nodes[&id].names.clone())
    }
}

impl Node {
    fn new(kind: FileKind, mode: u32, gid: u32, by: &By<'_>) -> Self {
        Self {
            kind,
            mode,
            uid: by.caller.uid,
            gid,
            atime: by.now,
            mtime: by.now,
            ctime: by.now,
            names: BTreeMap::new(),
            parent: InodeId(0),
            target: Vec::new(),
            device: 0,
            bytes: BTreeMap::new(),
            length: 0,
            xattrs: BTreeMap::new(),
            quota: InodeId(0),
        }
    }

    /// The content changed.
    fn written(&mut self, by: &By<'_>) {
        (self.mtime, self.ctime) = (by.now, by.now);
        if by.caller.uid != 0 {
            self.drop_set_ids(by);
        }
    }

    fn drop_set_ids(&mut self, by: &By<'_>) {
        let caller = by.caller;
        let member = caller.gid == self.gid || caller.groups.contains(&self.gid);
        self.mode &= !0o4000;
        if self.mode & 0o010 != 0 || (caller.uid != 0 && !member) {
            self.mode &= !0o2000;
        }
    }
}
