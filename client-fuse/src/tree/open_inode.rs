//! An inode that is open on this mount: one content and one right to its chunks for all of its handles.

use crate::data::{Backing, Content, DataPool};
use crate::tree::append::Append;
use crate::tree::fresh::Mark;
use crate::tree::locks::Owners;
use async_trait::async_trait;
use kiln_client::{File, SeekTo};
use kiln_memory::{Buffer, Bytes};
use kiln_types::{Attr, Caller, Code, Error, InodeId, Result, Timestamp};
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The open state of one inode.
pub(crate) struct OpenInode {
    inode: InodeId,
    content: Arc<Content>,
    state: Mutex<State>,
    reporting: tokio::sync::Mutex<()>,
    pub(crate) locks: Owners,
    pub(crate) append: Append,
    changed_elsewhere: AtomicBool,
}

struct State {
    /// The session that carries all reads and writes: one that may write, if there is one. It lives as
    /// long as any handle, also when its own is closed.
    io: Arc<File>,
    handles: usize,
    wrote_at: Option<Timestamp>,
    /// When it was asked for capabilities and had none.
    no_capability: Option<Mark>,
}

struct Session(Arc<File>);

#[async_trait]
impl Backing for Session {
    async fn read(&self, offset: u64, buffer: Buffer) -> Result<Buffer> {
        self.0.read_raw(offset, buffer).await
    }

    async fn write(&self, offset: u64, bytes: Bytes) -> Result<()> {
        self.0.write_at(offset, bytes).await
    }

    async fn reserve(&self, end: u64) -> Result<()> {
        self.0.reserve(end).await
    }

    async fn zero(&self, range: Range<u64>) -> Result<()> {
        self.0.zero(range.start, range.end - range.start).await
    }

    async fn seek(&self, offset: u64, to: SeekTo) -> Result<u64> {
        self.0.seek(offset, to).await
    }
}

impl OpenInode {
    /// The state of what `file` opened, without handles yet.
    pub(crate) fn new(pool: &Arc<DataPool>, file: &Arc<File>) -> Arc<Self> {
        let attr = file.attr();
        let chunk_bytes = attr.layout.as_ref().map_or(1 << 20, |layout| layout.chunk_bytes);
        let backing = Arc::new(Session(Arc::clone(file)));
        let content = Content::new(Arc::clone(pool), chunk_bytes, attr.length, backing);
        let state = State { io: Arc::clone(file), handles: 0, wrote_at: None, no_capability: None };
        let (state, reporting) = (Mutex::new(state), tokio::sync::Mutex::default());
        let (locks, append) = (Owners::default(), Append::new());
        let (inode, changed_elsewhere) = (attr.inode, AtomicBool::default());
        Arc::new(Self { inode, content, state, reporting, locks, append, changed_elsewhere })
    }

    /// Somebody else changed the inode.
    pub(crate) fn note_change(&self) {
        self.changed_elsewhere.store(true, Ordering::Release);
    }

    /// Whether somebody has since this was last asked.
    pub(crate) fn take_change(&self) -> bool {
        self.changed_elsewhere.load(Ordering::Acquire)
            && self.changed_elsewhere.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn inode(&self) -> InodeId {
        self.inode
    }

    pub(crate) fn content(&self) -> &Arc<Content> {
        &self.content
    }

    /// When it was last seen to have no capabilities.
    pub(crate) fn no_capability(&self) -> Option<Mark> {
        self.state.lock().no_capability
    }

    /// Asked at `sent`, it has no capabilities.
    pub(crate) fn saw_no_capability(&self, sent: Mark) {
        self.state.lock().no_capability = Some(sent);
    }

    /// One more handle.
    pub(crate) fn join(&self) {
        self.state.lock().handles += 1;
    }

    /// One handle less; how many are left.
    pub(crate) fn leave(&self) -> usize {
        let mut state = self.state.lock();
        state.handles -= 1;
        state.handles
    }

    /// `file` is another session of this inode: what it knows counts, and it carries reads and writes
    /// if it may do more than the one that did.
    pub(crate) fn take_session(&self, file: &Arc<File>) {
        let mut state = self.state.lock();
        if file.mode().write && !state.io.mode().write {
            file.take_attr(state.io.attr());
            state.io = Arc::clone(file);
            self.content.set_backing(Arc::new(Session(Arc::clone(file))));
        }
    }

    /// The session that carries reads and writes.
    pub(crate) fn io(&self) -> Arc<File> {
        Arc::clone(&self.state.lock().io)
    }

    /// Notes that a program wrote at that time.
    pub(crate) fn wrote(&self, at: Timestamp) {
        self.state.lock().wrote_at = Some(at);
    }

    /// Takes attributes that a call answered, and gives those that programs here are to see.
    pub(crate) fn learn(&self, attr: Attr) -> Attr {
        let (io, wrote_at) = {
            let state = self.state.lock();
            (Arc::clone(&state.io), state.wrote_at)
        };
        io.take_attr(attr);
        let mut attr = io.attr();
        self.content.learn_length(attr.length);
        attr.length = self.content.length();
        if let Some(at) = wrote_at.filter(|_| self.content.unreported()) {
            attr.mtime = attr.mtime.max(at);
            attr.ctime = attr.ctime.max(at);
        }
        attr
    }

    /// Brings everything that was written to the cluster, and tells the metadata service of it: what it
    /// answers. `None` when there was nothing to tell.
    ///
    /// # Errors
    /// What the cluster says; also an error of data that was written in the background since the last
    /// time, which the content keeps for each handle beside.
    pub(crate) async fn push(&self) -> Result<Option<Attr>> {
        self.content.flush().await?;
        let _one = self.reporting.lock().await;
        if !self.content.unreported() {
            return Ok(None);
        }
        let told = self.content.report();
        let attr = self.io().sync().await?;
        self.content.reported(told);
        self.learn(attr.clone());
        Ok(Some(attr))
    }

    /// Changes attributes, after what was written: one call tells of both.
    pub(crate) async fn set_attr(
        &self,
        caller: &Caller,
        change: kiln_client::SetAttr,
    ) -> Result<Attr> {
        self.content.flush().await?;
        let _one = self.reporting.lock().await;
        let told = self.content.report();
        let attr = self.io().set_attr(caller, change).await?;
        self.content.reported(told);
        Ok(attr)
    }

    /// Makes the file reach to `end` at least, with a hole, and says so to the metadata service.
    pub(crate) async fn lengthen(&self, end: u64) -> Result<Attr> {
        let _one = self.reporting.lock().await;
        let told = self.content.report();
        let attr = self.io().lengthen(end).await?;
        self.content.reported(told);
        self.learn(attr.clone());
        Ok(attr)
    }

    /// Cuts or extends the content to `length`; `cut` is the metadata call: what it answers.
    pub(crate) async fn truncate<F>(&self, length: u64, cut: F) -> Result<Attr>
    where
        F: Future<Output = Result<Attr>> + Send,
    {
        let io = self.io();
        let reported = async {
            // The service cuts what it knows of: it has to know of everything.
            let _one = self.reporting.lock().await;
            if self.content.unreported() {
                let told = self.content.report();
                io.take_attr(io.sync().await?);
                self.content.reported(told);
            }
            let attr = cut.await?;
            io.take_attr(attr.clone());
            Ok(attr)
        };
        let attr = self.content.truncate(length, reported).await?;
        self.learn(attr.clone());
        Ok(attr)
    }
}

/// The error of a handle that may not do this.
pub(crate) fn bad_handle(what: &str) -> Error {
    Error::new(Code::BadHandle, format!("the file is not open for {what}"))
}
