//! The content of one open file.

use super::errors::{ErrorMark, Errors};
use super::{Backing, DataPool};
use kiln_memory::{Buffer, Bytes};
use kiln_types::{Code, Error, Result};
use parking_lot::Mutex;
use std::future::Future;
use std::sync::Arc;

/// The content of an inode that is open on this mount, shared by all its handles.
pub(crate) struct Content {
    _pool: Arc<DataPool>,
    state: Mutex<State>,
}

struct State {
    backing: Arc<dyn Backing>,
    length: u64,
    written: u64,
    reported: u64,
    errors: Errors,
}

/// One reader of a file: what tells sequential reading from random reading. Each handle has its own.
pub(crate) struct Stream {}

/// What was written when [`Content::unreported`] was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreported(u64);

impl Content {
    /// The content of an inode of `length` bytes, cut into chunks of `chunk_bytes`.
    pub(crate) fn new(
        pool: Arc<DataPool>,
        _chunk_bytes: u32,
        length: u64,
        backing: Arc<dyn Backing>,
    ) -> Arc<Self> {
        let errors = Errors::default();
        let state = State { backing, length, written: 0, reported: 0, errors };
        Arc::new(Self { _pool: pool, state: Mutex::new(state) })
    }

    /// A new reader.
    pub(crate) fn stream(self: &Arc<Self>) -> Stream {
        Stream {}
    }

    /// From now on reads and writes go through `backing`.
    pub(crate) fn set_backing(&self, backing: Arc<dyn Backing>) {
        self.state.lock().backing = backing;
    }

    /// The length as programs on this mount see it.
    pub(crate) fn length(&self) -> u64 {
        self.state.lock().length
    }

    /// The metadata service says how long the file is. While it does not know of all that was written
    /// here, it can only lengthen the file.
    pub(crate) fn learn_length(&self, length: u64) {
        let mut state = self.state.lock();
        let news = state.written == state.reported || length > state.length;
        if news {
            state.length = length;
        }
    }

    /// Whether anything was written that the metadata service was not told of; ask before
    /// [`Self::flush`], and give the answer to [`Self::reported`] once the service knows.
    pub(crate) fn unreported(&self) -> Option<Unreported> {
        let state = self.state.lock();
        (state.written > state.reported).then_some(Unreported(state.written))
    }

    /// The metadata service knows what was written until then.
    pub(crate) fn reported(&self, what: Unreported) {
        let mut state = self.state.lock();
        state.reported = state.reported.max(what.0);
    }

    /// Reads; shorter than `length` at the end of the file only.
    ///
    /// # Errors
    /// The backing's.
    pub(crate) async fn read(
        self: &Arc<Self>,
        _stream: &Stream,
        offset: u64,
        length: usize,
    ) -> Result<Bytes> {
        let (backing, there) = {
            let state = self.state.lock();
            (Arc::clone(&state.backing), state.length.saturating_sub(offset))
        };
        let length = length.min(usize::try_from(there).unwrap_or(usize::MAX));
        Ok(backing.read(offset, Buffer::zeroed(length)).await?.freeze())
    }

    /// Writes all of `bytes`. They are durable after a later [`Self::flush`].
    ///
    /// # Errors
    /// `DeadlineExceeded` when there is no room for longer than a writer may be stalled.
    pub(crate) async fn write(self: &Arc<Self>, offset: u64, bytes: Bytes) -> Result<()> {
        self.write_through(offset, bytes).await
    }

    /// Writes all of `bytes`; durable when it returns.
    ///
    /// # Errors
    /// The backing's.
    pub(crate) async fn write_through(self: &Arc<Self>, offset: u64, bytes: Bytes) -> Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        let end = end.ok_or_else(|| Error::new(Code::FileTooLarge, "write beyond 2^64"))?;
        let backing = Arc::clone(&self.state.lock().backing);
        backing.write(offset, bytes).await?;
        let mut state = self.state.lock();
        state.written += 1;
        state.length = state.length.max(end);
        Ok(())
    }

    /// Waits until everything that was written before is durable or has failed; then
    /// [`Self::error_since`] knows. The length is for the caller to report.
    pub(crate) async fn flush(self: &Arc<Self>) {}

    /// Cuts or lengthens the file by `cut`, the metadata service's part of it, which must leave
    /// the backing in the state that reads beyond the cut give zeros.
    ///
    /// # Errors
    /// What `cut` returns; nothing has changed here then.
    pub(crate) async fn truncate<T, F>(self: &Arc<Self>, length: u64, cut: F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let output = cut.await?;
        self.state.lock().length = length;
        Ok(output)
    }

    /// Another client changed the content: what was read ahead is dropped.
    pub(crate) fn invalidate(&self) {}

    /// The present end of the write-back errors.
    pub(crate) fn errors(&self) -> ErrorMark {
        self.state.lock().errors.mark()
    }

    /// A write-back error that struck since `mark`, which moves on: each is told once.
    pub(crate) fn error_since(&self, mark: &mut ErrorMark) -> Option<Error> {
        self.state.lock().errors.since(mark)
    }
}
