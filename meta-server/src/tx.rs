//! A kv transaction seen through the schema: typed reads and writes of records, no rules of POSIX.

use crate::SessionId;
use crate::keys::{Keys, cookie_of};
use crate::name::{NUMBERS, NameHash};
use crate::placement;
use crate::quota::{self, Ledger};
use crate::records::{
    self, Answer, Body, Client, Dentry, File, Garbage, Handle, Inode, REMOVED, Record, Reply, Slot,
};
use crate::store::capability_end;
use crate::store::garbage::Task;
use crate::store::lock::end_without_session;
use crate::store::prune::is_detached;
use crate::store::readers::Departure;
use crate::watch::Changes;
use kiln_kv::{KeyRange, RangeOptions, Transaction};
use kiln_telemetry::about;
use kiln_types::{
    Account, Attr, ChainTableId, ClientId, Code, Error, FileKind, InodeId, Layout, LayoutWish,
    Redundancy, RequestId, Result, Timestamp,
};
use std::sync::Arc;
use std::time::Duration;

/// A transaction on one tree.
///
/// Invariants: a blind update of a directory's times or links comes with a read of its record, so
/// that it conflicts with the directory's removal; an inode record exists as long as the inode has
/// a name or an open session, or is in the trash.
pub(crate) struct Tx<'a, 's> {
    pub(crate) kv: &'a mut (dyn Transaction + 's),
    pub(crate) keys: Keys,
    pub(crate) names: NameHash,
    /// The server's wall clock at the start of the attempt; later than the last change of each inode read.
    pub(crate) now: Timestamp,
    /// What watchers have to be told of it.
    pub(crate) changes: Changes,
    /// What it leaves to be collected once it is committed.
    pub(crate) garbage: Vec<Task>,
    /// How long a capability opens chunks.
    pub(crate) capability: Duration,
    /// The layout of new files where nothing else says so.
    pub(crate) new_file: LayoutWish,
    /// Whether the engine has room for what grows; `NoSpace` if not.
    pub(crate) room: Result<()>,
    /// What it changes of usages.
    pub(crate) ledger: Ledger,
    /// The user who removes, if what loses its last name goes to the trash.
    pub(crate) trash: Option<u32>,
    /// Who has files open for reading.
    pub(crate) departure: Arc<Departure>,
    /// Sessions that end with it.
    pub(crate) ended: Vec<(ClientId, SessionId)>,
}

/// A directory entry and where it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) entry: Dentry,
    pub(crate) cookie: u64,
    more: bool,
}

impl Tx<'_, '_> {
    pub(crate) async fn get<R: Record>(&mut self, key: &[u8]) -> Result<Option<R>> {
        let value = self.kv.get(key).await?;
        value.map(|value| R::decode(&value)).transpose()
    }

    pub(crate) fn put<R: Record>(&mut self, key: &[u8], record: &R) {
        self.kv.set(key, &record.encode());
    }

    pub(crate) async fn range(
        &mut self,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.kv.range(range, RangeOptions::limit(limit)).await
    }

    pub(crate) async fn number(&mut self, key: &[u8]) -> Result<u64> {
        records::number(self.kv.get(key).await?.as_deref())
    }

    /// The inode, if it exists.
    pub(crate) async fn find_inode(&mut self, id: InodeId) -> Result<Option<Inode>> {
        about(|about| {
            about.inode.get_or_insert(id);
        });
        let inode: Option<Inode> = self.get(&self.keys.inode(id)).await?;
        if let Some(inode) = &inode {
            records::check_id(id, inode)?;
            // Another server's clock may be ahead: a change is later than those before it.
            self.now = self.now.max(Timestamp(inode.ctime.0.saturating_add(1)));
            self.ledger.saw(inode);
        }
        Ok(inode)
    }

    /// The inode.
    ///
    /// # Errors
    /// `StaleHandle` when it is gone.
    pub(crate) async fn inode(&mut self, id: InodeId) -> Result<Inode> {
        let inode = self.find_inode(id).await?;
        inode.ok_or_else(|| Error::new(Code::StaleHandle, format!("inode {id} is gone")))
    }

    pub(crate) fn put_inode(&mut self, inode: &Inode) {
        self.changes.attr(inode.id);
        self.put_unseen(inode);
    }

    /// Puts an inode of which nothing changed that anybody sees.
    pub(crate) fn put_unseen(&mut self, inode: &Inode) {
        self.ledger.put(inode);
        self.put(&self.keys.inode(inode.id), inode);
    }

    /// Puts a new inode.
    ///
    /// # Errors
    /// `NoSpace` when the engine has room for little else than removals.
    pub(crate) fn make_inode(&mut self, inode: &Inode) -> Result<()> {
        self.room.clone()?;
        self.put_unseen(inode);
        self.kv.add(&self.keys.inode_count(), 1);
        Ok(())
    }

    /// Takes away an inode that has neither a name nor a session, and leaves what it stored to the
    /// collector.
    pub(crate) fn drop_inode(&mut self, inode: &Inode) {
        let keys = self.keys;
        self.changes.attr(inode.id);
        self.ledger.drop(inode.id);
        if quota::has_own(inode) {
            self.clear_quota(Account::Directory(inode.id));
        }
        self.kv.clear(&keys.inode(inode.id));
        self.kv.clear_range(keys.xattr_names(inode.id));
        self.kv.clear_range(keys.xattrs(inode.id));
        self.kv.add(&keys.inode_count(), -1);
        match &inode.body {
            Body::File(file) => self.leave_file(inode.id, file),
            Body::Directory(_) => {
                self.kv.clear(&keys.links(inode.id));
                self.kv.clear(&keys.changed(inode.id));
            }
            Body::Symlink { .. } | Body::Special(_) => {}
        }
    }

    /// One garbage record for all chunks of a file in place of those of its truncations. A write
    /// that failed may have left some behind what the file's length tells.
    fn leave_file(&mut self, id: InodeId, file: &File) {
        self.kv.clear_range(self.keys.garbage_of(id));
        let writable_until = self.capability_end(file.writer_left);
        let garbage = Garbage { layout: file.layout, first: 0, end: u64::MAX, writable_until };
        self.leave_garbage(Task { inode: id, epoch: REMOVED, garbage });
    }

    /// Notes chunks that have to be removed.
    pub(crate) fn leave_garbage(&mut self, task: Task) {
        self.put(&self.keys.garbage(task.inode, task.epoch), &task.garbage);
        self.garbage.push(task);
    }

    /// When a capability that was given out at `from` has surely ended.
    pub(crate) fn capability_end(&self, from: Timestamp) -> Timestamp {
        capability_end(from, self.capability)
    }

    /// Everything that stat tells about an inode, as it was when the transaction began its changes.
    pub(crate) async fn attr(&mut self, inode: &Inode) -> Result<Attr> {
        let mut attr = Attr {
            inode: inode.id,
            kind: inode.kind(),
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            links: inode.links,
            length: 0,
            dense_end: 0,
            device: 0,
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
            btime: inode.btime,
            epoch: Default::default(),
            floors: Vec::new(),
            layout: None,
        };
        match &inode.body {
            Body::File(file) => {
                attr.length = file.length;
                attr.dense_end = file.dense_end;
                attr.epoch = file.epoch;
                attr.floors.clone_from(&file.floors);
                attr.layout = Some(file.layout);
            }
            Body::Symlink { target } => attr.length = target.len() as u64,
            Body::Special(special) => attr.device = special.device,
            Body::Directory(directory) => {
                if !is_detached(inode) {
                    let below = self.number(&self.keys.links(inode.id)).await?;
                    attr.links = u32::try_from(below.saturating_add(2)).unwrap_or(u32::MAX);
                }
                let changed = self.changed(inode.id).await?;
                attr.ctime = attr.ctime.max(changed);
                if changed > directory.mtime_set {
                    attr.mtime = changed;
                }
                attr.layout = layout_of(directory.wish, self.new_file);
            }
        }
        Ok(attr)
    }

    /// When a directory's entries changed last.
    pub(crate) async fn changed(&mut self, directory: InodeId) -> Result<Timestamp> {
        Ok(records::marked_time(self.number(&self.keys.changed(directory)).await?))
    }

    /// Notes that entries of a directory change now.
    pub(crate) fn touch(&mut self, directory: InodeId) {
        self.changes.attr(directory);
        self.kv.max(&self.keys.changed(directory), records::time_mark(self.now));
    }

    /// Counts subdirectories.
    pub(crate) fn add_links(&mut self, directory: InodeId, delta: i64) {
        self.kv.add(&self.keys.links(directory), delta);
    }

    async fn slot(&mut self, directory: InodeId, cookie: u64) -> Result<Option<Slot>> {
        self.get(&self.keys.slot(directory, cookie)).await
    }

    fn put_slot(&mut self, directory: InodeId, cookie: u64, slot: &Slot) {
        self.put(&self.keys.slot(directory, cookie), slot);
    }

    /// The slots of a hash behind its first one.
    fn followers(&self, directory: InodeId, first: u64) -> KeyRange {
        let end = self.keys.slot(directory, first + NUMBERS);
        KeyRange::new(self.keys.slot(directory, first + 1), end)
    }

    /// The entry of a name.
    pub(crate) async fn find(&mut self, directory: InodeId, name: &[u8]) -> Result<Option<Found>> {
        let first = self.names.cookie(name);
        let Some(slot) = self.slot(directory, first).await? else { return Ok(None) };
        let is_it = |entry: &Dentry| entry.name == name;
        if let Some(entry) = slot.entry.filter(is_it) {
            return Ok(Some(Found { entry, cookie: first, more: slot.more }));
        }
        if !slot.more {
            return Ok(None);
        }
        let followers = self.followers(directory, first);
        for (key, value) in self.range(followers, NUMBERS as usize).await? {
            if let Some(entry) = Slot::decode(&value)?.entry.filter(is_it) {
                return Ok(Some(Found { entry, cookie: cookie_of(&key)?, more: false }));
            }
        }
        Ok(None)
    }

    /// Puts an entry whose name [`find`](Self::find) did not find.
    pub(crate) async fn insert(&mut self, directory: InodeId, entry: Dentry) -> Result<()> {
        self.changes.name(directory, &entry.name);
        let first = self.names.cookie(&entry.name);
        let (cookie, more) = match self.slot(directory, first).await? {
            None => (first, false),
            Some(Slot { entry: None, more }) => (first, more),
            Some(slot) => {
                let cookie = self.free_follower(directory, first).await?;
                if !slot.more {
                    self.put_slot(directory, first, &Slot { more: true, ..slot });
                }
                (cookie, false)
            }
        };
        self.put_slot(directory, cookie, &Slot { more, entry: Some(entry) });
        Ok(())
    }

    async fn free_follower(&mut self, directory: InodeId, first: u64) -> Result<u64> {
        let mut free = first + 1;
        for (key, _) in self.range(self.followers(directory, first), NUMBERS as usize).await? {
            if cookie_of(&key)? != free {
                break;
            }
            free += 1;
        }
        if free < first + NUMBERS {
            return Ok(free);
        }
        Err(Error::new(Code::NoSpace, format!("{NUMBERS} names with one hash in a directory")))
    }

    /// Gives an entry another inode; its cookie stays.
    pub(crate) fn redirect(&mut self, directory: InodeId, found: &Found, inode: &Inode) {
        self.changes.name(directory, &found.entry.name);
        let (name, id) = (found.entry.name.clone(), inode.id);
        let entry = Dentry { name, inode: id, kind: inode.kind() };
        let slot = Slot { more: found.more, entry: Some(entry) };
        self.put_slot(directory, found.cookie, &slot);
    }

    /// Takes an entry away.
    pub(crate) async fn remove(&mut self, directory: InodeId, found: &Found) -> Result<()> {
        self.changes.name(directory, &found.entry.name);
        let first = self.names.cookie(&found.entry.name);
        if found.cookie == first && !found.more {
            self.kv.clear(&self.keys.slot(directory, first));
            return Ok(());
        }
        if found.cookie != first {
            self.kv.clear(&self.keys.slot(directory, found.cookie));
            let is_hole = self.slot(directory, first).await?.is_some_and(|s| s.entry.is_none());
            if !is_hole {
                return Ok(());
            }
        }
        let followers = self.range(self.followers(directory, first), 1).await?;
        match followers.is_empty() {
            true => self.kv.clear(&self.keys.slot(directory, first)),
            false => self.put_slot(directory, first, &Slot { more: true, entry: None }),
        }
        Ok(())
    }

    /// Whether a directory has no entry.
    pub(crate) async fn is_empty(&mut self, directory: InodeId) -> Result<bool> {
        Ok(self.range(self.keys.slots(directory), 1).await?.is_empty())
    }

    /// Entries behind a cookie, at most `limit`, and whether there are no more. Causes no conflict.
    pub(crate) async fn entries(
        &mut self,
        directory: InodeId,
        after: u64,
        limit: usize,
    ) -> Result<(Vec<(u64, Dentry)>, bool)> {
        let mut range = self.keys.slots(directory).after(&self.keys.slot(directory, after));
        let mut entries = Vec::new();
        loop {
            let wanted = limit - entries.len();
            let options = RangeOptions::limit(wanted).snapshot();
            let page = self.kv.range(range.clone(), options).await?;
            for (key, value) in &page {
                if let Some(entry) = Slot::decode(value)?.entry {
                    entries.push((cookie_of(key)?, entry));
                }
            }
            match page.last() {
                Some((key, _)) if page.len() == wanted && entries.len() < limit => {
                    range = range.after(key);
                }
                _ => return Ok((entries, page.len() < wanted)),
            }
        }
    }

    /// Notes an open file.
    pub(crate) fn put_session(&mut self, client: ClientId, id: SessionId, handle: &Handle) {
        let by_inode = self.keys.session(handle.inode, handle.write, client, id);
        self.put(&by_inode, handle);
        self.put(&self.keys.handle(client, id), handle);
    }

    /// The open file `id` of `client`.
    pub(crate) async fn find_session(
        &mut self,
        client: ClientId,
        id: SessionId,
    ) -> Result<Option<Handle>> {
        self.get(&self.keys.handle(client, id)).await
    }

    /// The open file `id` of `client`, which has to be of `inode`.
    ///
    /// # Errors
    /// `StaleHandle` when there is none.
    pub(crate) async fn session(
        &mut self,
        client: ClientId,
        id: SessionId,
        inode: InodeId,
    ) -> Result<Handle> {
        if self.departure.inode(client, id) == Some(inode) {
            return Ok(Handle::to_read(inode));
        }
        let handle = self.find_session(client, id).await?;
        handle.filter(|handle| handle.inode == inode).ok_or_else(|| {
            Error::new(Code::StaleHandle, format!("inode {inode} is not open as session {id}"))
                .with_hint("open the file again")
        })
    }

    /// Forgets an open file; with the client's last one of the inode its locks, and the inode if that was its
    /// last hold.
    pub(crate) async fn end_session(
        &mut self,
        client: ClientId,
        id: SessionId,
        inode: &mut Inode,
        write: bool,
    ) -> Result<()> {
        self.ended.push((client, id));
        self.kv.clear(&self.keys.session(inode.id, write, client, id));
        self.kv.clear(&self.keys.handle(client, id));
        end_without_session(self, client, inode.id).await?;
        if write {
            inode.file_mut()?.writer_left = self.now;
        }
        if !inode.is_kept() && !self.is_open(inode.id).await? {
            self.drop_inode(inode);
        } else if write {
            self.put_unseen(inode);
        }
        Ok(())
    }

    /// Stores what is open for reading in memory, to `client` or anybody. Whether there is anything.
    pub(crate) fn store_readers(&mut self, inode: InodeId, client: Option<ClientId>) -> bool {
        let readers = self.departure.of(inode, client, &self.ended);
        for (client, session) in &readers {
            self.put_session(*client, *session, &Handle::to_read(inode));
        }
        !readers.is_empty()
    }

    /// Whether a client has the inode open. What it has open in memory is stored then.
    pub(crate) async fn has_open(&mut self, client: ClientId, inode: InodeId) -> Result<bool> {
        if self.store_readers(inode, Some(client)) {
            return Ok(true);
        }
        for write in [true, false] {
            let own = self.keys.sessions_of(inode, write, client);
            if !self.range(own, 1).await?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether anyone has the inode open, which nothing but that keeps any more. What is open in memory is stored
    /// then; who knows of nothing yet holds it by a stand-in.
    pub(crate) async fn is_open(&mut self, inode: InodeId) -> Result<bool> {
        if self.store_readers(inode, None) {
            return Ok(true);
        }
        if let Some(client) = self.departure.stand_in() {
            let active = Client::Active { credential: String::new(), watches: false };
            self.put(&self.keys.client(client), &active);
            self.put_session(client, SessionId(inode.0.into()), &Handle::to_read(inode));
            return Ok(true);
        }
        Ok(!self.range(self.keys.sessions(inode), 1).await?.is_empty())
    }

    /// Whether a client other than `client` has the inode open for writing.
    pub(crate) async fn has_other_writer(
        &mut self,
        inode: InodeId,
        client: ClientId,
    ) -> Result<bool> {
        let (all, own) = (self.keys.writers(inode), self.keys.sessions_of(inode, true, client));
        let before = KeyRange::new(all.start, own.start);
        let behind = KeyRange::new(own.end, all.end);
        Ok(!self.range(before, 1).await?.is_empty() || !self.range(behind, 1).await?.is_empty())
    }

    /// Takes away one name of something that is not a directory, and the inode with its last hold, unless it goes
    /// to the trash.
    pub(crate) async fn drop_name(
        &mut self,
        inode: &mut Inode,
        directory: InodeId,
        name: &[u8],
    ) -> Result<()> {
        inode.links = inode.links.saturating_sub(1);
        inode.ctime = self.now;
        if inode.links == 0 && self.discard(inode, directory, name) {
            return Ok(());
        }
        if inode.links > 0 && inode.parent == directory {
            inode.parent = InodeId(0);
        }
        if inode.links == 0 && !self.is_open(inode.id).await? {
            self.drop_inode(inode);
        } else {
            self.put_inode(inode);
        }
        Ok(())
    }

    /// Lets a client change something: notes it when it is new.
    ///
    /// # Errors
    /// `ClientEvicted` when it was retired, `NotAuthorized` when it is another credential's.
    pub(crate) async fn admit(&mut self, client: ClientId, credential: &str) -> Result<()> {
        if !self.check_client(client, credential).await? {
            let active = Client::Active { credential: credential.into(), watches: false };
            self.put(&self.keys.client(client), &active);
        }
        Ok(())
    }

    /// The same for a client that begins to watch.
    pub(crate) async fn admit_watcher(&mut self, client: ClientId, credential: &str) -> Result<()> {
        self.check_client(client, credential).await?;
        let active = Client::Active { credential: credential.into(), watches: true };
        let key = self.keys.client(client);
        if self.get(&key).await?.as_ref() != Some(&active) {
            self.put(&key, &active);
        }
        Ok(())
    }

    /// Whether a client is known; see [`admit`](Self::admit).
    pub(crate) async fn check_client(&mut self, client: ClientId, name: &str) -> Result<bool> {
        match self.get(&self.keys.client(client)).await? {
            None => Ok(false),
            Some(Client::Active { credential, .. }) if credential == name => Ok(true),
            Some(Client::Active { .. }) => {
                let text = format!("client {client} uses another credential than '{name}'");
                Err(Error::new(Code::NotAuthorized, text))
            }
            Some(Client::Retired { .. }) => {
                let text = format!("client {client} was retired");
                Err(Error::new(Code::ClientEvicted, text)
                    .with_hint("it was silent for longer than its lease, or ended; start it anew"))
            }
        }
    }

    /// The answer that a request got before, if it was applied.
    ///
    /// # Errors
    /// `DuplicateRequest` when its slot has moved on since.
    pub(crate) async fn replay(
        &mut self,
        client: ClientId,
        request: RequestId,
    ) -> Result<Option<Answer>> {
        let key = self.keys.reply(client, request.slot());
        let Some(last) = self.get::<Reply>(&key).await? else { return Ok(None) };
        if last.request == request {
            return Ok(Some(last.answer));
        }
        if last.request.sequence() > request.sequence() {
            let text = format!("request {request} comes after {} in its slot", last.request);
            return Err(Error::new(Code::DuplicateRequest, text));
        }
        Ok(None)
    }

    /// Keeps the answer of a request, in the transaction that applies it.
    pub(crate) fn record(&mut self, client: ClientId, request: RequestId, answer: &Answer) {
        let key = self.keys.reply(client, request.slot());
        self.put(&key, &Reply { request, answer: answer.clone() });
    }
}

/// The layout of new files in a directory, where it says anything of its own; no chains of it are fixed.
fn layout_of(wish: LayoutWish, elsewhere: LayoutWish) -> Option<Layout> {
    let whole = placement::combine(LayoutWish::default(), wish, elsewhere);
    let layout = Layout {
        table: ChainTableId(0),
        table_version: 0,
        chunk_bytes: whole.chunk_bytes,
        stripe: whole.stripe,
        base: 0,
        seed: 0,
        redundancy: Redundancy::Replicated,
    };
    (wish != LayoutWish::default()).then_some(layout)
}

/// A new directory entry for an inode.
pub(crate) fn dentry(name: &[u8], inode: InodeId, kind: FileKind) -> Dentry {
    Dentry { name: name.to_vec(), inode, kind }
}
