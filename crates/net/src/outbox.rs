//! What waits to be written to a connection.
//!
//! Whoever pushes a frame writes it, if nobody writes now and the socket takes it: no task switch
//! stands between a lone reply and the wire. Small frames in company are left to the connection's
//! pump, which lets all tasks that are ready have their turn first: what they push shares one system
//! call. The pump also waits for a socket that took no more. The outbox owns its frames, so a caller that goes away leaves no half-written
//! frame behind.
//!
//! The queue is bounded by credits: a frame is a request or reply that has some, or a note about
//! one.

use crate::budget::Admission;
use crate::peer::Peer;
use crate::stream::{Ending, Writer, lost};
use kiln_env::Env;
use kiln_memory::Bytes;
use kiln_telemetry::metrics::{NET_FRAMES_SENT, NET_SENT, NET_WRITES};
use kiln_types::{Code, Error, Result};
use kiln_wire::{FRAME_HEADER_BYTES, FrameHeader};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::AsyncWrite;
use tokio::sync::Notify;

/// Frames that are written with one system call at most.
const BATCH: usize = 16;
/// A frame with as much is worth a system call of its own.
const LARGE: usize = 32 << 10;
/// How often the pump looks after the connection.
const TICK: Duration = Duration::from_secs(1);
/// A peer that takes less than this within the stall time is dropped.
const PROGRESS_BYTES: u64 = 1 << 20;

/// A frame on its way out.
pub(crate) struct Frame {
    header: [u8; FRAME_HEADER_BYTES],
    body: Vec<u8>,
    payload: Option<Bytes>,
    /// Released when the frame is written.
    _admission: Option<Admission>,
}

impl Frame {
    /// A frame; lengths of `header` are those of body and payload.
    pub(crate) fn new(header: FrameHeader, body: Vec<u8>, payload: Option<Bytes>) -> Self {
        Self { header: header.encode(), body, payload, _admission: None }
    }

    pub(crate) fn holding(mut self, admission: Admission) -> Self {
        self._admission = Some(admission);
        self
    }

    fn parts(&self) -> [&[u8]; 3] {
        [&self.header, &self.body, self.payload.as_deref().unwrap_or(&[])]
    }

    fn bytes(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }
}

pub(crate) struct Outbox {
    peer: Arc<Peer>,
    ending: Arc<Ending>,
    queue: Mutex<VecDeque<Frame>>,
    pen: Mutex<Pen>,
    /// Wakes the pump when the socket took no more.
    blocked: Notify,
    /// Wakes the pump to write what waits in the queue.
    gather: Notify,
    /// It was woken, and has not begun yet.
    gathering: AtomicBool,
    written: AtomicU64,
}

/// The right to write.
struct Pen {
    writer: Option<Writer>,
    /// Taken from the queue; the first may be partly written.
    staged: VecDeque<Frame>,
    /// Bytes of the first staged frame that are written.
    offset: usize,
    /// The socket took no more and the pump waits for it; nobody else may poll it then.
    blocked: bool,
}

impl Outbox {
    pub(crate) fn new(writer: Writer, peer: Arc<Peer>, ending: Arc<Ending>) -> Self {
        let pen = Pen { writer: Some(writer), staged: VecDeque::new(), offset: 0, blocked: false };
        Self {
            peer,
            ending,
            queue: Mutex::new(VecDeque::new()),
            pen: Mutex::new(pen),
            blocked: Notify::new(),
            gather: Notify::new(),
            gathering: AtomicBool::new(false),
            written: AtomicU64::new(0),
        }
    }

    /// Sends a frame; drops it when the connection has ended.
    pub(crate) fn push(&self, frame: Frame) {
        if self.ending.has_come() {
            return;
        }
        self.queue.lock().push_back(frame);
        self.write_now();
    }

    /// Sends a frame beside which so many `others` are under way: they are likely to follow at once.
    pub(crate) fn push_among(&self, others: usize, frame: Frame) {
        if others == 0 || frame.bytes() >= LARGE {
            return self.push(frame);
        }
        if self.ending.has_come() {
            return;
        }
        self.queue.lock().push_back(frame);
        if !self.gathering.swap(true, Ordering::AcqRel) {
            self.gather.notify_one();
        }
    }

    /// Bytes that were written so far.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Whether everything is written.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.lock().is_empty() && self.pen.lock().staged.is_empty()
    }

    /// Writes what the socket takes without waiting.
    fn write_now(&self) {
        loop {
            // Whoever holds the pen looks at the queue again after giving it back.
            let Some(mut pen) = self.pen.try_lock() else { return };
            if pen.blocked {
                return;
            }
            match self.drain(&mut pen, &mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(())) => {
                    drop(pen);
                    if self.queue.lock().is_empty() {
                        return;
                    }
                }
                Poll::Ready(Err(error)) => {
                    drop(pen);
                    return self.ending.end(lost(&self.peer, &error));
                }
                Poll::Pending => {
                    pen.blocked = true;
                    drop(pen);
                    return self.blocked.notify_one();
                }
            }
        }
    }

    fn drain(&self, pen: &mut Pen, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Pen { writer, staged, offset, .. } = pen;
        let Some(writer) = writer else {
            drop(std::mem::take(&mut *self.queue.lock()));
            return Poll::Ready(Ok(()));
        };
        loop {
            if staged.len() < BATCH {
                let mut queue = self.queue.lock();
                let count = queue.len().min(BATCH - staged.len());
                staged.extend(queue.drain(..count));
            }
            if staged.is_empty() {
                return Pin::new(writer).poll_flush(context);
            }
            let written = match poll_write(writer, staged, *offset, context) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => written,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
            self.written.fetch_add(written as u64, Ordering::Relaxed);
            NET_SENT.add(written as u64);
            NET_WRITES.increment();
            *offset += written;
            while let Some(first) = staged.front() {
                let bytes = first.bytes();
                if *offset < bytes {
                    break;
                }
                *offset -= bytes;
                staged.pop_front();
                NET_FRAMES_SENT.increment();
            }
        }
    }

    /// Looks after the connection until it ends: writes what a full socket left over, and calls
    /// `tick` each second. A peer that takes next to nothing for `stall` ends it.
    pub(crate) async fn pump(
        &self,
        env: &Env,
        stall: Option<Duration>,
        mut tick: impl FnMut() + Send,
    ) {
        loop {
            tokio::select! {
                biased;
                () = self.ending.wait() => return,
                () = self.gather.notified() => {
                    tokio::task::yield_now().await;
                    self.gathering.store(false, Ordering::Release);
                    self.write_now();
                }
                () = self.blocked.notified() => self.write_blocked(env, stall, &mut tick).await,
                () = env.sleep(TICK) => tick(),
            }
        }
    }

    /// Gives up the writing half of the stream and everything that waits for it.
    pub(crate) fn close(&self) {
        let mut pen = self.pen.lock();
        pen.writer = None;
        let staged = std::mem::take(&mut pen.staged);
        drop(pen);
        drop((staged, std::mem::take(&mut *self.queue.lock())));
    }

    async fn write_blocked(
        &self,
        env: &Env,
        stall: Option<Duration>,
        tick: &mut (impl FnMut() + Send),
    ) {
        let (mut before, mut since) = (self.written(), env.now());
        loop {
            tokio::select! {
                biased;
                () = self.ending.wait() => return,
                result = poll_fn(|context| self.poll_blocked(context)) => {
                    if let Err(error) = result {
                        self.ending.end(lost(&self.peer, &error));
                    }
                    // Someone may have pushed while this task held the pen.
                    return self.write_now();
                }
                () = env.sleep(stall.unwrap_or(TICK).min(TICK)) => tick(),
            }
            let Some(stall) = stall.filter(|stall| env.now().since(since) >= *stall) else {
                continue;
            };
            if self.written() < before + PROGRESS_BYTES {
                self.ending.end(stalled(&self.peer, stall));
            }
            (before, since) = (self.written(), env.now());
        }
    }

    fn poll_blocked(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pen = self.pen.lock();
        let result = self.drain(&mut pen, context);
        pen.blocked = result.is_pending();
        result
    }

    /// Waits until everything is written, at most `patience`.
    pub(crate) async fn flushed(&self, env: &Env, patience: Duration) -> Result<()> {
        let written = async {
            while !self.is_empty() && !self.ending.has_come() {
                env.sleep(Duration::from_millis(1)).await;
            }
        };
        env.timeout(patience, "last answers", written).await
    }
}

fn poll_write(
    writer: &mut Writer,
    staged: &VecDeque<Frame>,
    offset: usize,
    context: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let mut slices = [IoSlice::new(&[]); 3 * BATCH];
    let (mut count, mut skip) = (0, offset);
    for part in staged.iter().flat_map(Frame::parts) {
        if skip >= part.len() {
            skip -= part.len();
            continue;
        }
        slices[count] = IoSlice::new(&part[skip..]);
        (count, skip) = (count + 1, 0);
    }
    Pin::new(writer).poll_write_vectored(context, &slices[..count])
}

pub(crate) fn stalled(peer: &Peer, stall: Duration) -> Error {
    let message = format!("connection to {peer}: it moved next to nothing for {stall:.0?}");
    Error::new(Code::ConnectionLost, message)
}
