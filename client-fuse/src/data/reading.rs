//! Reads: what memory knows, the backing for the rest, and reading ahead.
//!
//! Why a read is right. In one moment, under the lock, it learns the length and takes what memory has of
//! the range: what waits to be written, what flies, and pieces that were read ahead. Only after that it
//! asks the backing for the rest, and puts what it took over the answer. So for each byte, at that moment:
//! - a byte whose write was answered and that is not in memory has landed: the backing, asked later, has
//!   it. A flight that lands in between does no harm, its bytes were taken before.
//! - a byte that memory has is the newest there is at that moment. It may hide one that another write
//!   brings to the backing in between, which is a write that the read has not to see.
//! - a cut drops what lies beyond it from memory only after the backing gives zeros there, and no flight
//!   is under way then or can start before. A read that begins after the cut finds neither.
//!
//! A piece that is read ahead begins where nothing is dirty. Whoever writes to it, cuts it or hears
//! of a change by others drops it, also while it is on its way; so a piece that is there is what the
//! backing has now, as far as this mount knows.

use super::Backing;
use super::content::{Content, State};
use super::overlay::Overlay;
use super::pool::Charge;
use super::sequence::{Sequence, Step};
use kiln_memory::{Buffer, Bytes};
use kiln_telemetry::{Phase, metrics, phase};
use kiln_types::Result;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::{Arc, Weak};

/// One reader of a file: what tells sequential reading from random reading. Each handle has its own.
#[derive(Default)]
pub(crate) struct Stream {
    state: Mutex<StreamState>,
}

#[derive(Default)]
struct StreamState {
    sequence: Sequence,
    /// The content that was read ahead of, and the number that it knows this reader by.
    reader: Option<(Weak<Content>, u64)>,
}

/// What a read takes at its moment.
struct Taken {
    range: Range<u64>,
    overlay: Overlay,
    backing: Arc<dyn Backing>,
}

impl Content {
    /// Reads; shorter than `length` at the end of the file only.
    ///
    /// # Errors
    /// The backing's.
    pub(crate) async fn read(
        self: &Arc<Self>,
        stream: &Stream,
        offset: u64,
        length: usize,
    ) -> Result<Bytes> {
        self.read_ahead(stream, offset, length);
        let Taken { range, overlay, backing } = loop {
            let arrived = self.arrived.notified();
            let taken = self.state.lock().take(offset, length);
            match taken {
                Some(taken) => break taken,
                None => phase(&self.pool.env, Phase::ReadAhead, arrived).await,
            }
        };
        if let Some(bytes) = overlay.whole(&range) {
            return Ok(bytes);
        }
        let mut buffer = self.pool.buffers.take((range.end - range.start) as usize);
        let missing = overlay.missing(&range);
        if missing == range && !range.is_empty() {
            buffer = backing.read(range.start, buffer).await?;
        } else if !missing.is_empty() {
            let part = self.pool.buffers.take((missing.end - missing.start) as usize);
            let part = backing.read(missing.start, part).await?;
            let at = (missing.start - range.start) as usize;
            buffer[at..at + part.len()].copy_from_slice(&part);
        }
        overlay.apply(range.start, &mut buffer);
        Ok(buffer.freeze())
    }

    /// Starts what should be read ahead of this read.
    fn read_ahead(self: &Arc<Self>, stream: &Stream, offset: u64, length: usize) {
        let options = &self.pool.options;
        if length == 0 || options.read_ahead_bytes == 0 {
            return;
        }
        let (file, piece) = {
            let state = self.state.lock();
            (state.length, state.dirty.piece_bytes())
        };
        let mut stream = stream.state.lock();
        let range = offset..offset.saturating_add(length as u64);
        match stream.sequence.read(range, file, piece, options.read_ahead_bytes) {
            Step::Stay => {}
            Step::Seek => stream.leave(),
            Step::Ahead(range) => {
                let reader = stream.number_at(self);
                let mut start = range.start;
                while start < range.end {
                    let end = range.end.min((start / piece + 1) * piece);
                    if !self.fetch(reader, start..end) {
                        break;
                    }
                    start = end;
                }
            }
        }
    }

    /// Starts to read a piece ahead, unless that is of no use there. `false` when there is no room.
    fn fetch(self: &Arc<Self>, reader: u64, range: Range<u64>) -> bool {
        let held = self.state.lock().ahead.bytes();
        let Some(charge) = self.pool.charge(self, held, range.end - range.start) else {
            return false;
        };
        let mut state = self.state.lock();
        let useful = range.end <= state.length && !state.dirty.touches(&range);
        if useful && state.ahead.begin(charge.number(), reader, &range) {
            let backing = Arc::clone(&state.backing);
            let arriving = Arc::clone(self).arrive(backing, range, charge);
            self.pool.env.spawn("read ahead", arriving).detach();
        }
        true
    }

    async fn arrive(self: Arc<Self>, backing: Arc<dyn Backing>, range: Range<u64>, charge: Charge) {
        let buffer = self.pool.buffers.take((range.end - range.start) as usize);
        // Whoever needs the piece reads it again, and hears of the error.
        let read = backing.read(range.start, buffer).await.map(Buffer::freeze).ok();
        self.state.lock().ahead.arrived(range.start, charge, read);
        self.arrived.notify_waiters();
    }

    /// A piece has to make way.
    pub(super) fn forget_piece(&self, number: u64) {
        self.state.lock().ahead.forget_piece(number);
        self.arrived.notify_waiters();
    }
}

impl State {
    /// What memory has of a range, cut to the file's length; `None` while some of it is on its way.
    fn take(&mut self, offset: u64, length: usize) -> Option<Taken> {
        let end = offset.saturating_add(length as u64).min(self.length);
        let range = offset.min(end)..end;
        let mut overlay = Overlay::default();
        if !self.ahead.overlay(&range, &mut overlay) {
            return None;
        }
        if !overlay.is_empty() {
            metrics::MOUNT_AHEAD_HITS.increment();
            self.ahead.consume(&range);
        }
        self.dirty.overlay(&range, &mut overlay);
        Some(Taken { range, overlay, backing: Arc::clone(&self.backing) })
    }
}

impl StreamState {
    fn number_at(&mut self, content: &Arc<Content>) -> u64 {
        if let Some((_, number)) = &self.reader {
            return *number;
        }
        let mut state = content.state.lock();
        state.readers += 1;
        self.reader = Some((Arc::downgrade(content), state.readers));
        state.readers
    }

    /// Drops what was read ahead for this reader.
    fn leave(&mut self) {
        let Some((content, number)) = self.reader.take() else { return };
        if let Some(content) = content.upgrade() {
            content.state.lock().ahead.forget_reader(number);
            content.arrived.notify_waiters();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.state.get_mut().leave();
    }
}
