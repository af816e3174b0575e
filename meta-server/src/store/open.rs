//! Open files: create, open, close, sync, renew.

use crate::SessionId;
use crate::access::{self, READ, SEARCH, WRITE};
use crate::name;
use crate::placement;
use crate::records::{Answer, Body, File, Handle, Inode};
use crate::store::cut::take_written;
use crate::store::lookup::{inode_of, reach, reach_directory, resolve};
use crate::store::prune::require_attached;
use crate::store::{Change, LENGTH_MAX, Outcome, Store, Who};
use crate::tx::{Tx, dentry};
use kiln_types::LayoutWish;
use kiln_types::{
    Attr, ByteRange, ClientId, Code, Error, FileKind, InodeId, MODE_PERMISSIONS, Result, Timestamp,
    TruncateEpoch,
};
use kiln_wire::Capability;
use std::time::Duration;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OpenArgs {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Cut to length 0.
    pub truncate: bool,
}

/// What is created.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CreateArgs {
    /// The directory.
    pub parent: InodeId,
    /// The name in it.
    pub name: Vec<u8>,
    /// Permission bits, after the umask.
    pub mode: u32,
    /// Fail when the name exists.
    pub exclusive: bool,
    /// How it is opened; with neither right it is only made.
    pub open: OpenArgs,
    /// Its layout, where it is not to be the directory's.
    pub wish: LayoutWish,
}

/// An opened file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its attributes.
    pub attr: Attr,
    /// Names the open file; `None` when it was not opened (created only, or a directory).
    pub session: Option<SessionId>,
    /// The encoded right to its chunks; empty without a session.
    pub capability: Vec<u8>,
    /// How long that holds, from when the request was sent.
    pub lifetime: Duration,
    /// How far it may be written before more is asked for; `None`: as far as files go.
    pub granted: Option<u64>,
}

/// What the holder of a capability says of it, and wants.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Renewal {
    /// How far the file is to be written; 0: as far as may be.
    pub end: u64,
    /// How far programs were told that they may write it.
    pub promised: u64,
    /// The capability under which that was.
    pub capability: Vec<u8>,
}

/// What a writer knows of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Written {
    /// One past the last byte written; 0: nothing.
    pub end: u64,
    /// The epoch under which it was written.
    pub epoch: TruncateEpoch,
    /// When, if not now.
    pub mtime: Option<Timestamp>,
    /// Bytes that were all written and acknowledged, under the same epoch.
    pub acknowledged: ByteRange,
    /// The writer has taken set-id bits away itself where a write was to.
    pub keeps_set_ids: bool,
}

impl Store {
    /// Creates a file and opens it; opens the one that is there unless `exclusive`.
    ///
    /// # Errors
    /// `Exists`, `IsDirectory`, `SymlinkLoop` when a symlink has the name, `PermissionDenied`,
    /// `Invalid` and `NameTooLong` for the name, `NotReady` without a chain table, or what kv and
    /// (for `truncate`) storage report.
    pub async fn create(&self, change: &Change, args: &CreateArgs) -> Result<Opened> {
        name::check(&args.name)?;
        let id = self.next_inode().await?;
        let session = SessionId(self.env.random_u128());
        let answer = self
            .change(change, "create", &|tx| Box::pin(create(self, tx, change, args, id, session)))
            .await?;
        self.opened(change.client, answer, args.open).await
    }

    /// Creates a file without a name and opens it; `args.name` and `args.exclusive` do not count. It lives as
    /// long as it is open, unless [`link`](Self::link) gives it a name.
    ///
    /// # Errors
    /// `PermissionDenied`, `NotReady` without a chain table, `Invalid` when it is not opened, or what kv reports.
    pub async fn create_nameless(&self, change: &Change, args: &CreateArgs) -> Result<Opened> {
        if !args.open.read && !args.open.write {
            return Err(Error::invalid("a file without a name has to be opened"));
        }
        let id = self.next_inode().await?;
        let session = SessionId(self.env.random_u128());
        let answer = self
            .change(change, "create", &|tx| {
                Box::pin(create_nameless(self, tx, change, args, id, session))
            })
            .await?;
        self.opened(change.client, answer, args.open).await
    }

    /// Opens a file. A directory may be opened for reading; that makes no session.
    ///
    /// # Errors
    /// `PermissionDenied`, `IsDirectory`, `SymlinkLoop` for a symlink, `StaleHandle`, or what kv
    /// and (for `truncate`) storage report.
    pub async fn open_file(
        &self,
        change: &Change,
        inode: InodeId,
        args: OpenArgs,
    ) -> Result<Opened> {
        if let Some(opened) = self.open_to_read(change, inode, args).await? {
            return Ok(opened);
        }
        let session = SessionId(self.env.random_u128());
        let answer = self
            .change(change, "open", &|tx| {
                Box::pin(async move {
                    let inode = reach(tx, &change.who, inode).await?;
                    open(self, tx, change, inode, args, session, false).await
                })
            })
            .await?;
        self.opened(change.client, answer, args).await
    }

    /// Walks a path as [`resolve`](Self::resolve) does, following, and opens what is there.
    ///
    /// # Errors
    /// As those two.
    pub async fn open_path(
        &self,
        change: &Change,
        (start, path): (InodeId, &[u8]),
        args: OpenArgs,
    ) -> Result<Opened> {
        if self.opens_in_memory(change, args) {
            let inode = self.resolve(&change.who, start, path, true).await?.inode;
            if let Some(opened) = self.open_to_read(change, inode, args).await? {
                return Ok(opened);
            }
        }
        let session = SessionId(self.env.random_u128());
        let answer = self
            .change(change, "open of a path", &|tx| {
                Box::pin(async move {
                    let inode = resolve(tx, &change.who, start, path, true).await?;
                    open(self, tx, change, inode, args, session, false).await
                })
            })
            .await?;
        self.opened(change.client, answer, args).await
    }

    /// Takes in what a writer reports; durable and visible when it is answered.
    ///
    /// # Errors
    /// `StaleHandle` without the session, `BadHandle` when it is not open for writing,
    /// `FileTooLarge`, or what kv reports.
    pub async fn sync(
        &self,
        change: &Change,
        inode: InodeId,
        session: SessionId,
        written: &Written,
    ) -> Result<Attr> {
        let answer = self
            .change(change, "sync", &|tx| {
                Box::pin(report(tx, change, inode, session, written, false))
            })
            .await?;
        answer.into_attr()
    }

    /// Ends an open file, after taking in what its writer reports.
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    pub async fn close(
        &self,
        change: &Change,
        inode: InodeId,
        session: SessionId,
        written: &Written,
    ) -> Result<Attr> {
        if self.end_in_memory(change.client, session, inode).await {
            return self.get_attr(&change.who, inode).await;
        }
        let answer = self
            .change(change, "close", &|tx| {
                Box::pin(report(tx, change, inode, session, written, true))
            })
            .await?;
        answer.into_attr()
    }

    /// A new capability for an open file.
    ///
    /// # Errors
    /// `StaleHandle` without the session, `ClientEvicted`, `QuotaExceeded` when the file may not be written up to
    /// `wanted.end`, or what kv and storage report.
    pub async fn renew(
        &self,
        who: &Who,
        client: ClientId,
        inode: InodeId,
        session: SessionId,
        wanted: &Renewal,
    ) -> Result<Opened> {
        self.claim_unknown(who, client, inode, session, &wanted.capability).await?;
        for _ in 0..2 {
            let (handle, attr, is_cut, from) = self
                .transact("renewal", &|tx| {
                    Box::pin(async move {
                        tx.check_client(client, &who.credential).await?;
                        let inode = reach(tx, who, inode).await?;
                        let handle = tx.session(client, session, inode.id).await?;
                        let is_cut = inode.file()?.cut.is_some();
                        Ok((handle, tx.attr(&inode).await?, is_cut, tx.now))
                    })
                })
                .await?;
            if handle.write && is_cut {
                self.finish_cut(attr.inode).await?;
                continue;
            }
            let (read, write) = (handle.read, handle.write);
            let args = OpenArgs { read, write, truncate: false };
            let granted = match write {
                true => {
                    let promised = self.promised(client, &attr, wanted);
                    self.bound(attr.inode, wanted.end, promised).await?
                }
                false => None,
            };
            return Ok(self.grant(client, attr, Some(session), args, from, granted));
        }
        Err(Error::new(Code::Busy, "the file is truncated again and again"))
    }

    pub(crate) async fn opened(
        &self,
        client: ClientId,
        answer: Answer,
        args: OpenArgs,
    ) -> Result<Opened> {
        let (session, from) = (answer.session, self.now());
        let attr = answer.into_attr()?;
        if args.truncate {
            self.finish_cut(attr.inode).await?;
        }
        let granted = match session {
            Some(_) if args.write => self.bound(attr.inode, 0, 0).await?,
            _ => None,
        };
        Ok(self.grant(client, attr, session, args, from, granted))
    }

    /// How far a client promised writes under a capability that it was given, and may have acknowledged them.
    fn promised(&self, client: ClientId, attr: &Attr, wanted: &Renewal) -> u64 {
        let held = self.was_given(client, attr.inode, &wanted.capability);
        let held = held.filter(|held| held.write && held.epoch == attr.epoch);
        held.map_or(0, |held| held.size_granted.min(wanted.promised))
    }

    /// The right to what a session was open for at `from`, however long the answer takes from then
    /// on: when the session ends, it is known how long a capability can still be out.
    pub(crate) fn grant(
        &self,
        client: ClientId,
        attr: Attr,
        session: Option<SessionId>,
        args: OpenArgs,
        from: Timestamp,
        granted: Option<u64>,
    ) -> Opened {
        let lifetime = self.settings.capability;
        let expires = from.0.saturating_add(lifetime.as_nanos() as i64);
        let capability = Capability {
            key: self.key.id(),
            client,
            tree: self.settings.tree,
            inode: attr.inode,
            epoch: attr.epoch,
            // A write of part of a block needs the rest of it.
            read: args.read || args.write,
            write: args.write,
            size_granted: granted.unwrap_or(LENGTH_MAX),
            expires: Timestamp(expires),
        };
        let capability = session.map_or_else(Vec::new, |_| capability.mint(&self.key));
        Opened { attr, session, capability, lifetime, granted }
    }
}

pub(crate) async fn create(
    store: &Store,
    tx: &mut Tx<'_, '_>,
    change: &Change,
    args: &CreateArgs,
    id: InodeId,
    session: SessionId,
) -> Result<Outcome> {
    let directory = reach_directory(tx, &change.who, args.parent, SEARCH).await?;
    if let Some(found) = tx.find(directory.id, &args.name).await? {
        if args.exclusive {
            let text = format!("'{}' exists", args.name.escape_ascii());
            return Err(Error::new(Code::Exists, text));
        }
        if found.entry.kind == FileKind::Directory {
            return Err(Error::new(Code::IsDirectory, "a directory has the name"));
        }
        let inode = inode_of(tx, &found).await?;
        return open(store, tx, change, inode, args.open, session, false).await;
    }
    access::require(&directory, &change.who.caller, WRITE)?;
    require_attached(&directory)?;
    let inode = new_file(store, tx, change, &directory, args, id)?;
    tx.insert(directory.id, dentry(&args.name, id, FileKind::File)).await?;
    tx.touch(directory.id);
    tx.make_inode(&inode)?;
    let open_new = OpenArgs { truncate: false, ..args.open };
    open(store, tx, change, inode, open_new, session, true).await
}

pub(crate) async fn create_nameless(
    store: &Store,
    tx: &mut Tx<'_, '_>,
    change: &Change,
    args: &CreateArgs,
    id: InodeId,
    session: SessionId,
) -> Result<Outcome> {
    let directory = reach_directory(tx, &change.who, args.parent, WRITE | SEARCH).await?;
    require_attached(&directory)?;
    let mut inode = new_file(store, tx, change, &directory, args, id)?;
    inode.links = 0;
    inode.file_mut()?.nameless = true;
    tx.make_inode(&inode)?;
    let open_new = OpenArgs { truncate: false, ..args.open };
    open(store, tx, change, inode, open_new, session, true).await
}

fn new_file(
    store: &Store,
    tx: &Tx<'_, '_>,
    change: &Change,
    directory: &Inode,
    args: &CreateArgs,
    id: InodeId,
) -> Result<Inode> {
    let wish = placement::combine(args.wish, directory.directory()?.wish, store.settings.new_file);
    let layout = placement::place(store.tables.newest(), id, wish, store.env.random_u64())?;
    let caller = &change.who.caller;
    let mode = args.mode & MODE_PERMISSIONS;
    let (gid, mode) = access::group_and_mode(directory, caller, mode, false);
    Ok(Inode {
        id,
        mode,
        uid: caller.uid,
        gid,
        parent: directory.id,
        links: 1,
        atime: tx.now,
        mtime: tx.now,
        ctime: tx.now,
        btime: tx.now,
        body: Body::File(File {
            length: 0,
            epoch: TruncateEpoch(0),
            floors: Vec::new(),
            cut: None,
            layout,
            writer_left: Timestamp(0),
            dense_end: 0,
            nameless: false,
        }),
        quota: directory.quota,
        counted: true,
    })
}

/// Opens an inode; who has just made it may, whatever its mode.
async fn open(
    store: &Store,
    tx: &mut Tx<'_, '_>,
    change: &Change,
    mut inode: Inode,
    args: OpenArgs,
    session: SessionId,
    is_new: bool,
) -> Result<Outcome> {
    let changes = args.write || args.truncate;
    let is_file = match inode.kind() {
        FileKind::File => true,
        FileKind::Directory if changes => {
            return Err(Error::new(Code::IsDirectory, "a directory is not opened for writing"));
        }
        FileKind::Directory => false,
        FileKind::Symlink => {
            return Err(Error::new(Code::SymlinkLoop, "a symlink is not opened"));
        }
        // Whoever has the name opens what is behind it in its own kernel.
        FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => {
            return Err(Error::invalid("a fifo, a socket or a device is not opened here"));
        }
    };
    let want = if args.read { READ } else { 0 } | if changes { WRITE } else { 0 };
    if !is_new {
        access::require(&inode, &change.who.caller, want)?;
    }
    if args.write && is_file && inode.file()?.cut.is_some() {
        return Ok(Outcome::Cut(inode.id));
    }
    if args.truncate {
        let (who, client) = (&change.who, change.client);
        if let Some(later) = store.set_length(tx, who, client, &mut inode, 0).await? {
            return Ok(later);
        }
        tx.put_inode(&inode);
    }
    let session = (is_file && (args.read || args.write)).then_some(session);
    if let Some(id) = session {
        let handle = Handle { inode: inode.id, read: args.read, write: args.write };
        tx.put_session(change.client, id, &handle);
    }
    let attr = Some(tx.attr(&inode).await?);
    Ok(Outcome::Done(Answer { attr, session, parts: Vec::new() }))
}

/// Takes in what the writer of an open file reports. `Some`: not now.
pub(crate) fn take_report(
    tx: &mut Tx<'_, '_>,
    inode: &mut Inode,
    handle: &Handle,
    who: &Who,
    written: &Written,
) -> Result<Option<Outcome>> {
    if written.end == 0 && written.mtime.is_none() {
        return Ok(None);
    }
    if !handle.write {
        return Err(Error::new(Code::BadHandle, "the file is not open for writing"));
    }
    if let Some(later) = take_written(inode, who, written, tx.now)? {
        return Ok(Some(later));
    }
    tx.changes.content(inode.id);
    tx.put_inode(inode);
    // It was granted before it was written.
    tx.ledger.allow();
    Ok(None)
}

/// Takes in what a writer of an open file reports, and ends the session if it `closes`.
pub(crate) async fn report(
    tx: &mut Tx<'_, '_>,
    change: &Change,
    inode: InodeId,
    session: SessionId,
    written: &Written,
    closes: bool,
) -> Result<Outcome> {
    let mut inode = tx.inode(inode).await?;
    let handle = tx.session(change.client, session, inode.id).await?;
    if let Some(later) = take_report(tx, &mut inode, &handle, &change.who, written)? {
        return Ok(later);
    }
    let attr = tx.attr(&inode).await?;
    if closes {
        tx.end_session(change.client, session, &mut inode, handle.write).await?;
    }
    Ok(Outcome::from(attr))
}
