//! An open file: reads and writes spread over its chunks' chains.

use crate::attributes::SetAttr;
use crate::chunks::{ChunkClient, Place};
use crate::client::{Options, deadline};
use crate::closing::Closing;
use crate::meta::Meta;
use crate::open::OpenMode;
use crate::reports::Reports;
use crate::session::Session;
use crate::written::{UnderWay, Written};
use kiln_env::Env;
use kiln_memory::{Buffer, Bytes};
use kiln_rpc::convert::required;
use kiln_rpc::v1;
use kiln_telemetry::{Phase, Trace, phase};
use kiln_types::{
    Attr, ByteRange, Caller, ChainId, ChunkId, Code, Error, InodeId, Layout, Result, TreeId,
    TruncateEpoch,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OnceCell, Semaphore};

/// An open file. Any number of reads and writes may be under way; each write is durable on every
/// serving replica when it returns, and the file's length when [`File::sync`] or [`File::close`]
/// does. Others see a file grow that is written for long: what was acknowledged is told every few
/// seconds.
pub struct File {
    pub(crate) shared: Arc<Shared>,
}

/// What the pieces of one file's requests need.
pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) meta: Arc<Meta>,
    pub(crate) chunks: Arc<ChunkClient>,
    pub(crate) session: Session,
    pub(crate) pieces: Arc<Semaphore>,
    closing: Arc<Closing>,
    reports: Arc<Reports>,
    pub(crate) timeout: Option<Duration>,
    layout: Layout,
    stripe: Vec<ChainId>,
    written: Mutex<Written>,
    /// One report at a time: a late one could take back times that were set since.
    pub(crate) reporting: Arc<tokio::sync::Mutex<()>>,
    /// The answer to the last one that nobody asked for.
    pub(crate) told: Mutex<Option<Attr>>,
    closed: OnceCell<()>,
}

impl File {
    pub(crate) fn open(
        env: Env,
        meta: Arc<Meta>,
        chunks: Arc<ChunkClient>,
        session: Session,
        pieces: Arc<Semaphore>,
        (closing, reports): (Arc<Closing>, Arc<Reports>),
        options: &Options,
    ) -> Result<Self> {
        let layout = session
            .attr()
            .layout
            .ok_or_else(|| Error::corrupt(format!("file {} has no layout", session.inode())))?;
        let stripe = chunks.routing().stripe(&layout)?;
        let shared = Shared {
            env,
            meta,
            chunks,
            session,
            pieces,
            closing,
            reports,
            timeout: options.io_timeout,
            layout,
            stripe,
            written: Mutex::new(Written::new(options.keeps_set_ids)),
            reporting: Arc::default(),
            told: Mutex::default(),
            closed: OnceCell::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The inode.
    pub fn inode(&self) -> InodeId {
        self.shared.session.inode()
    }

    /// For what it was opened.
    pub fn mode(&self) -> OpenMode {
        self.shared.session.mode()
    }

    /// The attributes as the metadata service last said them.
    pub fn attr(&self) -> Attr {
        self.shared.session.attr()
    }

    /// What the metadata service answered when it was last told, while the file is being written, how far it
    /// reaches: that happens every few seconds.
    pub fn told(&self) -> Option<Attr> {
        self.shared.told.lock().clone()
    }

    /// Learns attributes that a call about the same inode answered, unless newer ones are known:
    /// never back to an older truncate epoch, nor to an older state of the same epoch.
    pub fn take_attr(&self, attr: Attr) {
        debug_assert_eq!(attr.inode, self.inode(), "another file's attributes");
        self.shared.session.take_attr(attr);
    }

    /// The length as this file knows it: what the metadata service said, and what was written
    /// since.
    pub fn length(&self) -> u64 {
        let (length, epoch) = self.shared.session.length();
        length.max(self.shared.written.lock().end(epoch))
    }

    /// Whether something was written that no answered [`Self::sync`] has reported: without, neither
    /// an fsync nor a close has anything to say to the metadata service.
    pub fn needs_sync(&self) -> bool {
        self.shared.written.lock().is_unreported()
    }

    /// Reads from `offset` on into `buffer`, which comes back cut to what the file has there.
    ///
    /// # Errors
    /// The first piece's error.
    pub async fn read_at(&self, offset: u64, mut buffer: Buffer) -> Result<Buffer> {
        let there = self.length().saturating_sub(offset);
        if there < buffer.len() as u64 {
            buffer.truncate(there as usize);
        }
        self.read_raw(offset, buffer).await
    }

    /// Fills `buffer` from `offset` on, whatever the file's length is: zeros where nothing is
    /// stored. The buffer may come back as other memory.
    ///
    /// # Errors
    /// The first piece's error.
    pub async fn read_raw(&self, offset: u64, mut buffer: Buffer) -> Result<Buffer> {
        check_end(offset, buffer.len() as u64)?;
        if self.shared.piece(offset, buffer.len()) == buffer.len() {
            return self.shared.read_piece(offset, buffer).await;
        }
        let (mut tasks, trace) = (Vec::new(), Trace::current());
        let (mut at, length) = (offset, buffer.len());
        while !buffer.is_empty() {
            let rest = buffer.split_off(self.shared.piece(at, buffer.len()));
            let piece = std::mem::replace(&mut buffer, rest);
            let (shared, piece_at, bytes) = (Arc::clone(&self.shared), at, piece.len());
            let trace = trace.clone();
            let task = async move { trace.scope(shared.read_piece(piece_at, piece)).await };
            tasks.push(self.shared.env.spawn("read piece", task));
            at += bytes as u64;
        }
        let mut whole: Option<Buffer> = None;
        for task in tasks {
            let piece = task.join().await??;
            whole = Some(match whole {
                None => piece,
                Some(whole) => join(whole, piece, length),
            });
        }
        let mut whole = whole.unwrap_or(buffer);
        whole.truncate(length.min(whole.len()));
        Ok(whole)
    }

    /// Makes sure that no quota will refuse writes up to `end`: they may be acknowledged before they are made.
    ///
    /// # Errors
    /// `QuotaExceeded`, or what the metadata service says.
    pub async fn reserve(&self, end: u64) -> Result<()> {
        let session = &self.shared.session;
        if session.promise(end) {
            return Ok(());
        }
        if self.needs_sync() {
            // What is reported counts, and is not asked for again.
            self.sync().await?;
        }
        session.grow(end).await
    }

    /// Writes `bytes` at `offset`; durable when it returns.
    ///
    /// # Errors
    /// The first piece's error; the others may or may not have been written. `BadHandle` when it is
    /// not open for writing, `FileTooLarge` beyond 2^63 - 1, `QuotaExceeded`.
    pub async fn write_at(&self, offset: u64, bytes: Bytes) -> Result<()> {
        let end = check_end(offset, bytes.len() as u64)?;
        if !self.mode().write {
            return Err(Error::new(Code::BadHandle, "the file is not open for writing"));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.reserve(end).await?;
        // Before anything is sent: a write that fails may still have left bytes up to there.
        let epoch = self.shared.note_written(end);
        let range = ByteRange { start: offset, end };
        let _under_way = self.shared.under_way(offset);
        if self.shared.piece(offset, bytes.len()) == bytes.len() {
            self.shared.write_piece(offset, bytes).await?;
            self.shared.note_acknowledged(range, epoch);
            return Ok(());
        }
        let (mut tasks, trace) = (Vec::new(), Trace::current());
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let length = self.shared.piece(at, bytes.len() - done);
            let piece = bytes.slice(done..done + length);
            let shared = Arc::clone(&self.shared);
            let trace = trace.clone();
            let task = async move { trace.scope(shared.write_piece(at, piece)).await };
            tasks.push(self.shared.env.spawn("write piece", task));
            done += length;
        }
        for task in tasks {
            task.join().await??;
        }
        self.shared.note_acknowledged(range, epoch);
        Ok(())
    }

    /// Cuts or extends the file, after reporting what was written.
    ///
    /// # Errors
    /// As [`Self::set_attr`].
    pub async fn set_length(&self, length: u64) -> Result<Attr> {
        let change = SetAttr { length: Some(length), ..SetAttr::default() };
        self.set_attr(self.shared.session.caller(), change).await
    }

    /// Makes the file reach to `end` at least, with a hole, durably; it never gets shorter.
    ///
    /// # Errors
    /// As [`Self::sync`]; `BadHandle` when it is not open for writing, `FileTooLarge` beyond 2^63 - 1,
    /// `QuotaExceeded`.
    pub async fn lengthen(&self, end: u64) -> Result<Attr> {
        check_end(end, 0)?;
        if !self.mode().write {
            return Err(Error::new(Code::BadHandle, "the file is not open for writing"));
        }
        self.reserve(end).await?;
        self.shared.note_written(end);
        self.sync().await
    }

    /// Changes attributes, after reporting what was written. For the length the file's own rights
    /// count, not `caller`'s.
    ///
    /// # Errors
    /// As [`crate::Client::set_attr`]; `BadHandle` for a length when it is not open for writing.
    pub async fn set_attr(&self, caller: &Caller, change: SetAttr) -> Result<Attr> {
        let shared = &self.shared;
        let _one = shared.reporting.lock().await;
        let turn = shared.meta.turn(caller);
        let (written, noted) = shared.report();
        let mut request = change.request(turn.origin(), self.inode(), shared.session.id());
        request.written = written;
        request.keeps_set_ids = shared.written.lock().keeps_set_ids();
        let reply = shared.meta.set_attr(request).await?;
        shared.note_reported(noted);
        shared.take(reply)
    }

    /// Makes the length that was written durable and visible to others.
    ///
    /// # Errors
    /// The metadata service's.
    pub async fn sync(&self) -> Result<Attr> {
        let shared = &self.shared;
        let _one = shared.reporting.lock().await;
        let turn = shared.meta.turn(shared.session.caller());
        let (written, noted) = shared.report();
        let request = v1::SyncRequest {
            origin: turn.origin(),
            inode: self.inode().0,
            session: shared.session.id().to_vec().into(),
            written,
        };
        let reply = shared.meta.sync(request).await?;
        shared.note_reported(noted);
        shared.take(reply)
    }

    /// Does what [`Self::sync`] does where that is needed, and ends the session; with nothing to
    /// report it returns at once, and the session ends soon, as when the file is dropped. Reads and
    /// writes that are under way should have ended; later ones fail. Any further call returns when
    /// the first one's work is done, and does it again if that failed.
    ///
    /// # Errors
    /// The metadata service's.
    pub async fn close(&self) -> Result<Attr> {
        self.shared.closed.get_or_try_init(|| self.close_once()).await?;
        Ok(self.attr())
    }

    async fn close_once(&self) -> Result<()> {
        let shared = &self.shared;
        let _one = shared.reporting.lock().await;
        if !self.needs_sync() {
            shared.closing.end(shared.session.id().to_vec());
            return Ok(());
        }
        let turn = shared.meta.turn(shared.session.caller());
        let (written, noted) = shared.report();
        let request = v1::CloseRequest {
            origin: turn.origin(),
            inode: self.inode().0,
            session: shared.session.id().to_vec().into(),
            written,
        };
        let reply = shared.meta.close(request).await?;
        shared.note_reported(noted);
        shared.take(reply).map(drop)
    }
}

impl Shared {
    /// How many bytes from `at` on lie in one chunk, at most `length`.
    pub(crate) fn piece(&self, at: u64, length: usize) -> usize {
        let chunk_bytes = u64::from(self.layout.chunk_bytes);
        length.min((chunk_bytes - at % chunk_bytes) as usize)
    }

    pub(crate) fn place(&self, at: u64) -> (Place, u32) {
        let index = self.layout.chunk_of(at);
        let chain = self.stripe[(index % self.stripe.len() as u64) as usize];
        let chunk = ChunkId::file(TreeId::MAIN, self.session.inode(), index);
        let chunk_bytes = self.layout.chunk_bytes;
        let offset = (at % u64::from(chunk_bytes)) as u32;
        (Place { chain, chunk, index, chunk_bytes }, offset)
    }

    async fn read_piece(&self, at: u64, buffer: Buffer) -> Result<Buffer> {
        if buffer.is_empty() {
            return Ok(buffer);
        }
        let deadline = deadline(&self.env, self.timeout);
        let earlier = self.env.until(deadline, "earlier reads", self.pieces.acquire());
        let _piece = phase(&self.env, Phase::Queue, earlier).await?;
        let (place, offset) = self.place(at);
        let read = self.chunks.read(&self.session, place, offset, buffer, deadline).await?;
        Ok(read.0)
    }

    async fn write_piece(&self, at: u64, bytes: Bytes) -> Result<()> {
        let deadline = deadline(&self.env, self.timeout);
        let earlier = self.env.until(deadline, "earlier writes", self.pieces.acquire());
        let _piece = phase(&self.env, Phase::Queue, earlier).await?;
        let (place, offset) = self.place(at);
        self.chunks.write(&self.session, place, offset, bytes, deadline).await?;
        Ok(())
    }

    /// Notes that something is written up to `end`, under the epoch that it returns or a later one.
    pub(crate) fn note_written(&self, end: u64) -> TruncateEpoch {
        let mut written = self.written.lock();
        let epoch = self.session.epoch();
        written.note(end, epoch, self.env.wall());
        epoch
    }

    /// Notes that a write from `start` on is under way, until the answer is dropped.
    fn under_way(&self, start: u64) -> impl Drop + Send {
        self.written.lock().begin(start);
        UnderWay { written: &self.written, start }
    }

    /// Notes that all of `range` was written, not before the file had epoch `began`. It may have been
    /// truncated meanwhile: then the bytes may count under the new epoch, or may be cut off.
    fn note_acknowledged(self: &Arc<Self>, range: ByteRange, began: TruncateEpoch) {
        let epoch = self.note_written(range.end);
        if epoch != began {
            return;
        }
        let dense_end = self.session.dense_end(epoch);
        self.written.lock().acknowledge(range, epoch, dense_end);
        self.reports.soon(self);
    }

    /// Whether it waits to be told of; answers whether it did before.
    pub(crate) fn set_waiting(&self, waits: bool) -> bool {
        self.written.lock().set_waiting(waits)
    }

    /// What can be told while writes go on: see [`Written::told`].
    pub(crate) fn told(&self) -> Option<(v1::FileReport, Option<u64>)> {
        let (written, noted) = self.written.lock().told()?;
        let session = self.session.id().to_vec().into();
        let (inode, written) = (self.session.inode().0, Some(written));
        Some((v1::FileReport { inode, session, written }, noted))
    }

    /// What there is to report, and how much has been noted up to now.
    pub(crate) fn report(&self) -> (Option<v1::Written>, u64) {
        let written = self.written.lock();
        (written.message(), written.noted())
    }

    /// What was noted then is answered, and the session has ended.
    pub(crate) fn note_closed(&self, noted: u64, attr: Attr) {
        self.note_reported(noted);
        self.session.take_attr(attr);
        // Set already: it was closed before, too.
        let _ = self.closed.set(());
    }

    pub(crate) fn note_reported(&self, noted: u64) {
        self.written.lock().note_reported(noted);
    }

    pub(crate) fn take(&self, reply: v1::Attr) -> Result<Attr> {
        let attr: Attr = required(Some(reply), "attr")?;
        self.session.take_attr(attr.clone());
        Ok(attr)
    }
}

impl Drop for Shared {
    /// A file that was not closed. If its writer has not reported everything, that is found out
    /// when the client has ended.
    fn drop(&mut self) {
        if !self.closed.initialized() && !self.written.get_mut().is_unreported() {
            self.closing.end(self.session.id().to_vec());
        }
    }
}

/// Where `length` bytes at `offset` end.
pub(crate) fn check_end(offset: u64, length: u64) -> Result<u64> {
    let end = offset.checked_add(length).filter(|end| i64::try_from(*end).is_ok());
    end.ok_or_else(|| Error::new(Code::FileTooLarge, "no file goes beyond 2^63 - 1"))
}

/// Joins two neighbours; copies them where a retry had to take other memory.
fn join(mut first: Buffer, second: Buffer, length: usize) -> Buffer {
    match first.join(second) {
        Ok(()) => first,
        Err(second) => {
            let mut whole = Buffer::zeroed(length.max(first.len() + second.len()));
            whole[..first.len()].copy_from_slice(&first);
            whole[first.len()..first.len() + second.len()].copy_from_slice(&second);
            whole.truncate(first.len() + second.len());
            whole
        }
    }
}
