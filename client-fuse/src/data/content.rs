//! The content of one open file: what its handles share. [`super::writing`] and [`super::reading`] move
//! the bytes.

use super::ahead::Ahead;
use super::dirty::{Dirty, Usage};
use super::errors::{ErrorMark, Errors};
use super::pool::Listed;
use super::{Backing, DataPool};
use kiln_types::Error;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::Notify;

/// The content of an inode that is open on this mount, shared by all its handles.
///
/// As long as anything in it is dirty it lives, whoever lets go of it.
pub(crate) struct Content {
    pub(super) pool: Arc<DataPool>,
    pub(super) state: Mutex<State>,
    /// Flights landed, or the content is thawed.
    pub(super) landed: Notify,
    /// Pieces that were read ahead have come.
    pub(super) arrived: Notify,
}

/// Everything about the content that changes.
pub(super) struct State {
    pub(super) backing: Arc<dyn Backing>,
    pub(super) length: u64,
    pub(super) dirty: Dirty,
    pub(super) ahead: Ahead,
    pub(super) errors: Errors,
    /// Whether the last write to the backing failed.
    pub(super) failing: bool,
    /// Where the file stands among the dirty ones.
    pub(super) listed: Option<Listed>,
    /// Readers so far, for their numbers.
    pub(super) readers: u64,
    /// Counts writes, and writes that became durable.
    written: u64,
    reported: u64,
}

/// How far a file was written when the metadata service was about to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report(u64);

impl State {
    /// Something was written up to `end`, or has become durable.
    pub(super) fn wrote(&mut self, end: u64) {
        self.written += 1;
        self.length = self.length.max(end);
    }
}

impl Content {
    /// The content of an inode of `length` bytes, cut into chunks of `chunk_bytes`.
    pub(crate) fn new(
        pool: Arc<DataPool>,
        chunk_bytes: u32,
        length: u64,
        backing: Arc<dyn Backing>,
    ) -> Arc<Self> {
        let state = State {
            backing,
            length,
            dirty: Dirty::new(chunk_bytes),
            ahead: Ahead::default(),
            errors: Errors::default(),
            failing: false,
            listed: None,
            readers: 0,
            written: 0,
            reported: 0,
        };
        let state = Mutex::new(state);
        Arc::new(Self { pool, state, landed: Notify::new(), arrived: Notify::new() })
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
    /// here, it can only lengthen the file: a report tells of what is durable, and bytes may have been
    /// written after it went.
    pub(crate) fn learn_length(&self, length: u64) {
        let mut state = self.state.lock();
        let beyond = length..u64::MAX;
        let told = state.written == state.reported && !state.dirty.touches(&beyond);
        if length < state.length && told {
            state.ahead.forget(&beyond);
            state.length = length;
        }
        state.length = state.length.max(length);
    }

    /// Whether anything was written, or became durable, that the metadata service was not told of, or
    /// is not durable yet: a report tells only of what is.
    pub(crate) fn unreported(&self) -> bool {
        let state = self.state.lock();
        state.written > state.reported || state.dirty.touches(&(0..u64::MAX))
    }

    /// The metadata service is about to be told; what is written from now on stays unreported.
    pub(crate) fn report(&self) -> Report {
        Report(self.state.lock().written)
    }

    /// The metadata service was told.
    pub(crate) fn reported(&self, what: Report) {
        let mut state = self.state.lock();
        state.reported = state.reported.max(what.0);
    }

    /// Another client changed the content: what was read ahead is dropped.
    pub(crate) fn invalidate(&self) {
        self.state.lock().ahead.forget(&(0..u64::MAX));
        self.arrived.notify_waiters();
    }

    /// The present end of the write-back errors.
    pub(crate) fn errors(&self) -> ErrorMark {
        self.state.lock().errors.mark()
    }

    /// A write-back error that struck since `mark`, which moves on: each is told once.
    pub(crate) fn error_since(&self, mark: &mut ErrorMark) -> Option<Error> {
        self.state.lock().errors.since(mark)
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        let usage = self.state.get_mut().dirty.usage();
        self.pool.account(usage, Usage::default());
    }
}
