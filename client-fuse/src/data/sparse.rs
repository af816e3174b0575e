//! Holes: zeros that take no space.
//!
//! Bytes that wait to be written count as stored. A look for data or a hole takes those ranges in one
//! moment, and asks the backing after it: what has landed meanwhile is found in both.

use super::content::Content;
use super::dirty::Dirty;
use kiln_client::SeekTo;
use kiln_types::{Code, Error, Result};
use std::ops::Range;
use std::sync::Arc;

impl Content {
    /// Makes a range read as zeros, after everything that was written before, durably; `keep_length`: only
    /// what the file has of it. Nothing is written meanwhile.
    ///
    /// # Errors
    /// The backing's; what waits in memory is as it was then.
    pub(crate) async fn zero(self: &Arc<Self>, range: Range<u64>, keep_length: bool) -> Result<()> {
        if !keep_length {
            self.reserve(range.end).await?;
        }
        let _frozen = self.freeze().await;
        let (backing, length) = {
            let state = self.state.lock();
            (Arc::clone(&state.backing), state.length)
        };
        let end = if keep_length { range.end.min(length) } else { range.end };
        let range = range.start..end;
        if range.is_empty() {
            return Ok(());
        }
        let zeroed = backing.zero(range.clone()).await;
        self.change(|state, _| {
            // Some of it may be zeros now also when it failed.
            state.ahead.forget(&range);
            if zeroed.is_ok() {
                state.dirty.carve(range.clone());
                state.wrote(range.end);
            }
        });
        self.arrived.notify_waiters();
        zeroed
    }

    /// The first byte from `offset` on that is stored, or is not; the end of the file is a hole.
    ///
    /// # Errors
    /// `BeyondEnd` when `offset` is not in the file, or no data follows; else the backing's.
    pub(crate) async fn seek(&self, offset: u64, to: SeekTo) -> Result<u64> {
        let (backing, length, dirty) = {
            let state = self.state.lock();
            (Arc::clone(&state.backing), state.length, state.dirty.spans(offset))
        };
        let below = async |at: u64| match backing.seek(at, to).await {
            Err(error) if error.code() == Code::BeyondEnd => Ok(None),
            found => found.map(Some),
        };
        if offset >= length {
            return Err(beyond_end());
        }
        if to == SeekTo::Data {
            let waits = dirty.first().map(|span| span.start.max(offset));
            let stored = if waits == Some(offset) { None } else { below(offset).await? };
            let first = [waits, stored].into_iter().flatten().min();
            return first.filter(|at| *at < length).ok_or_else(beyond_end);
        }
        let mut at = offset;
        let mut spans = dirty.iter();
        loop {
            at = below(at).await?.unwrap_or(at);
            match spans.find(|span| span.end > at) {
                Some(span) if span.start <= at && span.end < length => at = span.end,
                Some(span) if span.start <= at => return Ok(length),
                _ => return Ok(at.min(length)),
            }
        }
    }
}

fn beyond_end() -> Error {
    Error::new(Code::BeyondEnd, "the file has nothing there")
}

impl Dirty {
    /// The ranges behind `from` that are dirty, in order and apart.
    fn spans(&self, from: u64) -> Vec<Range<u64>> {
        let mut spans: Vec<Range<u64>> = self.ranges().filter(|range| range.end > from).collect();
        spans.sort_unstable_by_key(|range| range.start);
        spans.dedup_by(|next, last| {
            let joined = next.start <= last.end;
            last.end = if joined { last.end.max(next.end) } else { last.end };
            joined
        });
        spans
    }
}
