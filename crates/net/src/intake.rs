//! Reads frames from a stream: headers and bodies through a small buffer, payloads straight into
//! the memory that they are for.

use crate::peer::Peer;
use crate::stream::{Reader, hung_up, lost};
use kiln_telemetry::metrics;
use kiln_types::{Error, Result};
use kiln_wire::{FRAME_HEADER_BYTES, FrameHeader};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::AsyncReadExt;

/// Enough for a header, a body and a block of 4 KiB: small requests cost one system call.
const BUFFER_BYTES: usize = 8 << 10;
/// What is read past before it is known where it belongs is at most this; more goes where it
/// belongs.
const DIRECT_BYTES: usize = BUFFER_BYTES / 2;

pub(crate) struct Intake {
    reader: Reader,
    peer: Arc<Peer>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    read: Arc<AtomicU64>,
}

impl Intake {
    pub(crate) fn new(reader: Reader, peer: Arc<Peer>) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self { reader, peer, buffer, start: 0, end: 0, read: Arc::default() }
    }

    /// Counts the bytes that arrived, for whoever watches whether the peer is alive.
    pub(crate) fn bytes_read(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.read)
    }

    /// The next header; `None` when the stream ends before one begins.
    pub(crate) async fn header(&mut self) -> Result<Option<FrameHeader>> {
        while self.end - self.start < FRAME_HEADER_BYTES {
            if !self.fill().await? {
                return if self.start == self.end { Ok(None) } else { Err(hung_up(&self.peer)) };
            }
        }
        let bytes = self.buffer[self.start..self.end]
            .first_chunk()
            .expect("invariant: a whole header is buffered");
        let header =
            FrameHeader::decode(bytes).map_err(|error| self.violation(&error.to_string()))?;
        self.start += FRAME_HEADER_BYTES;
        Ok(Some(header))
    }

    /// The body after `header`.
    pub(crate) async fn body(&mut self, header: &FrameHeader) -> Result<Vec<u8>> {
        let mut body = vec![0; header.body_bytes as usize];
        self.read_into(&mut body).await?;
        header.check_body(&body).map_err(|error| self.violation(&error.to_string()))?;
        Ok(body)
    }

    /// Fills `target` with what comes next.
    pub(crate) async fn read_into(&mut self, target: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < target.len() {
            let rest = &mut target[filled..];
            if self.start < self.end {
                let count = rest.len().min(self.end - self.start);
                rest[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
                (self.start, filled) = (self.start + count, filled + count);
            } else if rest.len() >= DIRECT_BYTES {
                let count = self.reader.read(rest).await.map_err(|e| lost(&self.peer, &e))?;
                if count == 0 {
                    return Err(hung_up(&self.peer));
                }
                self.count(count);
                filled += count;
            } else if !self.fill().await? {
                return Err(hung_up(&self.peer));
            }
        }
        Ok(())
    }

    /// Reads more into the buffer; `false` at the end of the stream.
    async fn fill(&mut self) -> Result<bool> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let free = &mut self.buffer[self.end..];
        let count = self.reader.read(free).await.map_err(|error| lost(&self.peer, &error))?;
        self.count(count);
        self.end += count;
        Ok(count > 0)
    }

    fn count(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
        metrics::NET_RECEIVED.add(bytes as u64);
    }

    /// The peer sent what it may not send: the connection ends.
    pub(crate) fn violation(&self, what: &str) -> Error {
        metrics::NET_FRAMES_REFUSED.increment();
        Error::corrupt(format!("{} breaks the protocol: {what}", self.peer))
    }
}
