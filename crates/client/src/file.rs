//! An open file: reads and writes spread over its chunks' chains.

use crate::chunks::{ChunkClient, Place};
use crate::meta::Meta;
use crate::session::Session;
use kiln_env::Env;
use kiln_memory::{Buffer, Bytes};
use kiln_rpc::convert::required;
use kiln_rpc::v1;
use kiln_types::{
    Attr, ChainId, ChunkId, Code, Error, Layout, Result, Timestamp, TreeId, TruncateEpoch,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// An open file. Any number of reads and writes may be under way; each write is durable on every serving
/// replica when it returns, and the file's length when [`File::sync`] or [`File::close`] does.
pub struct File {
    shared: Arc<Shared>,
}

/// What the pieces of one file's requests need.
pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) meta: Arc<Meta>,
    pub(crate) chunks: Arc<ChunkClient>,
    pub(crate) session: Session,
    pub(crate) pieces: Arc<Semaphore>,
    pub(crate) timeout: Duration,
    layout: Layout,
    stripe: Vec<ChainId>,
    written: Mutex<Written>,
}

/// What was written and not reported yet; it counts under its epoch only.
#[derive(Clone, Copy, Default)]
struct Written {
    end: u64,
    epoch: TruncateEpoch,
    mtime: Option<Timestamp>,
}

impl File {
    pub(crate) fn open(
        env: Env,
        meta: Arc<Meta>,
        chunks: Arc<ChunkClient>,
        session: Session,
        pieces: Arc<Semaphore>,
        timeout: Duration,
    ) -> Result<Self> {
        let layout = session
            .attr()
            .layout
            .ok_or_else(|| Error::corrupt(format!("file {} has no layout", session.inode())))?;
        let stripe = chunks.routing().stripe(&layout)?;
        let written = Mutex::default();
        let shared =
            Shared { env, meta, chunks, session, pieces, timeout, layout, stripe, written };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The attributes as the metadata service last said them.
    pub fn attr(&self) -> Attr {
        self.shared.session.attr()
    }

    /// The length as this file knows it: what the metadata service said, and what was written since.
    pub fn length(&self) -> u64 {
        let attr = self.attr();
        let written = *self.shared.written.lock();
        if written.epoch == attr.epoch { attr.length.max(written.end) } else { attr.length }
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
        if self.shared.piece(offset, buffer.len()) == buffer.len() {
            return self.shared.read_piece(offset, buffer).await;
        }
        let mut tasks = Vec::new();
        let (mut at, length) = (offset, buffer.len());
        while !buffer.is_empty() {
            let rest = buffer.split_off(self.shared.piece(at, buffer.len()));
            let piece = std::mem::replace(&mut buffer, rest);
            let (shared, piece_at, bytes) = (Arc::clone(&self.shared), at, piece.len());
            let task = async move { shared.read_piece(piece_at, piece).await };
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

    /// Writes `bytes` at `offset`; durable when it returns.
    ///
    /// # Errors
    /// The first piece's error; the others may or may not have been written.
    pub async fn write_at(&self, offset: u64, bytes: Bytes) -> Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        let end = end.ok_or_else(|| Error::new(Code::FileTooLarge, "write beyond 2^64"))?;
        // Before anything is sent: a write that fails may still have left bytes up to there.
        self.shared.note_written(end);
        if self.shared.piece(offset, bytes.len()) == bytes.len() {
            self.shared.write_piece(offset, bytes).await?;
            self.shared.note_written(end);
            return Ok(());
        }
        let mut tasks = Vec::new();
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let length = self.shared.piece(at, bytes.len() - done);
            let piece = bytes.slice(done..done + length);
            let shared = Arc::clone(&self.shared);
            let task = async move { shared.write_piece(at, piece).await };
            tasks.push(self.shared.env.spawn("write piece", task));
            done += length;
        }
        for task in tasks {
            task.join().await??;
        }
        // And again: the file may have been truncated meanwhile, and the bytes written under a new epoch.
        self.shared.note_written(end);
        Ok(())
    }

    /// Cuts or extends the file, after reporting what was written.
    ///
    /// # Errors
    /// The metadata service's.
    pub async fn set_length(&self, length: u64) -> Result<Attr> {
        let shared = &self.shared;
        self.sync().await?;
        let turn = shared.meta.turn(shared.session.caller());
        let request = v1::SetAttrRequest {
            origin: turn.origin(),
            inode: shared.session.inode().0,
            length: Some(length),
            session: shared.session.id().to_vec().into(),
            ..Default::default()
        };
        let reply = shared.meta.set_attr(request).await?;
        shared.take(required(Some(reply), "attr")?)
    }

    /// Makes the length that was written durable and visible to others.
    ///
    /// # Errors
    /// The metadata service's.
    pub async fn sync(&self) -> Result<Attr> {
        let shared = &self.shared;
        let turn = shared.meta.turn(shared.session.caller());
        let request = v1::SyncRequest {
            origin: turn.origin(),
            inode: shared.session.inode().0,
            session: shared.session.id().to_vec().into(),
            written: shared.written(),
        };
        shared.take(required(Some(shared.meta.sync(request).await?), "attr")?)
    }

    /// Does what [`Self::sync`] does, and ends the session.
    ///
    /// # Errors
    /// The metadata service's.
    pub async fn close(self) -> Result<Attr> {
        let shared = &self.shared;
        let turn = shared.meta.turn(shared.session.caller());
        let request = v1::CloseRequest {
            origin: turn.origin(),
            inode: shared.session.inode().0,
            session: shared.session.id().to_vec().into(),
            written: shared.written(),
        };
        shared.take(required(Some(shared.meta.close(request).await?), "attr")?)
    }
}

impl Shared {
    /// How many bytes from `at` on lie in one chunk, at most `length`.
    fn piece(&self, at: u64, length: usize) -> usize {
        let chunk_bytes = u64::from(self.layout.chunk_bytes);
        length.min((chunk_bytes - at % chunk_bytes) as usize)
    }

    fn place(&self, at: u64) -> (Place, u32) {
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
        let deadline = self.env.deadline_after(self.timeout);
        let _piece = self.env.until(deadline, "earlier reads", self.pieces.acquire()).await?;
        let (place, offset) = self.place(at);
        let read = self.chunks.read(&self.session, place, offset, buffer, deadline).await?;
        Ok(read.0)
    }

    async fn write_piece(&self, at: u64, bytes: Bytes) -> Result<()> {
        let deadline = self.env.deadline_after(self.timeout);
        let _piece = self.env.until(deadline, "earlier writes", self.pieces.acquire()).await?;
        let (place, offset) = self.place(at);
        self.chunks.write(&self.session, place, offset, bytes, deadline).await?;
        Ok(())
    }

    fn note_written(&self, end: u64) {
        let epoch = self.session.epoch();
        let mut written = self.written.lock();
        let before = if written.epoch == epoch { written.end } else { 0 };
        *written = Written { end: end.max(before), epoch, mtime: Some(self.env.wall()) };
    }

    fn written(&self) -> Option<v1::Written> {
        let Written { end, epoch, mtime } = *self.written.lock();
        Some(v1::Written { end, epoch: epoch.0, mtime_ns: mtime.map(|time| time.0) })
    }

    fn take(&self, attr: Attr) -> Result<Attr> {
        self.session.set_attr(attr.clone());
        Ok(attr)
    }
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
