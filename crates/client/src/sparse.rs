//! Holes: zeros that take no space, and where they are.

use crate::chunks::{ChunkClient, Grant, Place, reading};
use crate::client::deadline;
use crate::file::{File, Shared, check_end};
use kiln_chain::Intent;
use kiln_net::Call;
use kiln_telemetry::{Phase, Trace, phase};
use kiln_types::{Code, Deadline, Error, Result};
use kiln_wire::{Body, Change, Extents, Operation, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Chunks of a file that are asked at once where holes are, or zeroed at once.
const CHUNKS_AT_ONCE: usize = 32;

/// What [`File::seek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTo {
    /// Bytes that are stored (SEEK_DATA).
    Data,
    /// Bytes that are not, or the end of the file (SEEK_HOLE).
    Hole,
}

impl File {
    /// Writes zeros that take no space: that of whole 4 KiB blocks is given back. The file reaches to the
    /// end of the range at least. Durable when it returns.
    ///
    /// # Errors
    /// As [`File::write_at`].
    pub async fn zero(&self, offset: u64, length: u64) -> Result<()> {
        let end = check_end(offset, length)?;
        if !self.mode().write {
            return Err(Error::new(Code::BadHandle, "the file is not open for writing"));
        }
        if offset >= end {
            return Ok(());
        }
        self.reserve(end).await?;
        // Before and after, as for a write: who sees the new time does not see the old content.
        self.shared().note_written(end);
        let zero = |shared: Arc<Shared>, piece: Range<u64>| async move {
            shared
                .zero_piece(piece.start, (piece.end - piece.start) as u32)
                .await
                .map(|()| None::<()>)
        };
        let zeroed = self.shared().each_chunk(offset..end, zero).await;
        self.shared().note_written(end);
        zeroed.map(drop)
    }

    /// The first byte from `offset` on that is stored, or is not (the end of the file counts as not
    /// stored), at the grain of 4 KiB blocks.
    ///
    /// # Errors
    /// `BeyondEnd` when `offset` is not in the file, or no data follows; else as [`File::read_at`].
    pub async fn seek(&self, offset: u64, to: SeekTo) -> Result<u64> {
        let end = self.length();
        if offset >= end {
            return Err(beyond_end());
        }
        let look = move |shared: Arc<Shared>, piece: Range<u64>| async move {
            let data = shared.data_in(piece.clone()).await?;
            Ok(match to {
                SeekTo::Data => data.first().map(|range| range.start),
                SeekTo::Hole => Some(hole_behind(&data, piece.start)).filter(|at| *at < piece.end),
            })
        };
        match (self.shared().each_chunk(offset..end, look).await?, to) {
            (Some(at), _) => Ok(at),
            (None, SeekTo::Hole) => Ok(end),
            (None, SeekTo::Data) => Err(beyond_end()),
        }
    }
}

fn beyond_end() -> Error {
    Error::new(Code::BeyondEnd, "the file has nothing there")
}

/// The first byte from `at` on that is in none of the ranges, which are in order and apart.
fn hole_behind(data: &[Range<u64>], at: u64) -> u64 {
    data.iter().find(|range| range.contains(&at)).map_or(at, |range| range.end)
}

impl Shared {
    /// Does something with the chunks of a range, some at a time and in order, until there is an answer.
    async fn each_chunk<T: Send + 'static, F>(
        self: &Arc<Self>,
        range: Range<u64>,
        ask: impl Fn(Arc<Self>, Range<u64>) -> F,
    ) -> Result<Option<T>>
    where
        F: Future<Output = Result<Option<T>>> + Send + 'static,
    {
        let (mut at, mut width) = (range.start, 1);
        while at < range.end {
            let mut tasks = Vec::with_capacity(width);
            while tasks.len() < width && at < range.end {
                let bytes = usize::try_from(range.end - at).unwrap_or(usize::MAX);
                let piece = at..at + self.piece(at, bytes) as u64;
                at = piece.end;
                let (asked, trace) = (ask(Arc::clone(self), piece), Trace::current());
                let task = async move { trace.scope(asked).await };
                tasks.push(self.env.spawn("chunk of a range", task));
            }
            for task in tasks {
                if let Some(answer) = task.join().await?? {
                    return Ok(Some(answer));
                }
            }
            width = (width * 4).min(CHUNKS_AT_ONCE);
        }
        Ok(None)
    }

    /// Zeros a range of one chunk. A chunk that stores nothing there is left alone: without a descriptor
    /// where there was none.
    async fn zero_piece(&self, at: u64, length: u32) -> Result<()> {
        if self.data_in(at..at + u64::from(length)).await?.is_empty() {
            return Ok(());
        }
        let deadline = deadline(&self.env, self.timeout);
        let earlier = self.env.until(deadline, "earlier writes", self.pieces.acquire());
        let _piece = phase(&self.env, Phase::Queue, earlier).await?;
        let (place, offset) = self.place(at);
        let change = Change::Zero { offset, length };
        self.chunks.change(&self.session, place, change, None, deadline).await?;
        Ok(())
    }

    /// What is stored of a range of one chunk, in order and apart.
    async fn data_in(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let deadline = deadline(&self.env, self.timeout);
        let earlier = self.env.until(deadline, "earlier reads", self.pieces.acquire());
        let _piece = phase(&self.env, Phase::Queue, earlier).await?;
        let (place, offset) = self.place(range.start);
        let within = (offset, (range.end - range.start) as u32);
        let data = self.chunks.extents(&self.session, place, within, deadline).await?;
        let start = range.start - u64::from(offset);
        let of_file = |data: Range<u32>| start + u64::from(data.start)..start + u64::from(data.end);
        Ok(data.into_iter().map(of_file).collect())
    }
}

impl ChunkClient {
    /// The parts of a range (offset, length) of a chunk that are stored, in order and apart.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn extents(
        &self,
        grant: &dyn Grant,
        place: Place,
        range: (u32, u32),
        deadline: Deadline,
    ) -> Result<Vec<Range<u32>>> {
        let work = self.extents_until(grant, place, range, deadline);
        self.measure("chunk extents", place, 0, work).await
    }

    async fn extents_until(
        &self,
        grant: &dyn Grant,
        place: Place,
        (offset, length): (u32, u32),
        deadline: Deadline,
    ) -> Result<Vec<Range<u32>>> {
        let intent = Intent::Read { spread: self.reads.fetch_add(1, Ordering::Relaxed) };
        let mut attempts = self.attempts(intent, place.chain, deadline, Some(grant));
        loop {
            let attempt = attempts.next().await.map_err(|error| reading(error, &place))?;
            let ask = async {
                let granted = grant.current(place.index).await?;
                let read = Read {
                    name: attempt.name(&place),
                    offset,
                    length,
                    floor: granted.floor,
                    consistency: self.consistency,
                    capability: granted.capability.to_vec(),
                };
                let call = Call::new(Operation::Extents as u16, read.encode(), attempt.deadline);
                Extents::decode(&self.call(attempt.target, call).await?.body)
            };
            match ask.await {
                Ok(extents) => return Ok(extents.data),
                Err(error) if error.code() == Code::ChunkNotFound => return Ok(Vec::new()),
                Err(error) => {
                    attempts.failed(error).await.map_err(|error| reading(error, &place))?;
                }
            }
        }
    }
}
