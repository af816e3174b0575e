//! One direction of a simulated connection: bytes that arrive in order, some time after they were
//! sent.

use super::World;
use kiln_types::Monotonic;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that may be on their way; a writer waits beyond it, as behind a full socket.
const CAPACITY: usize = 256 << 10;

/// Bytes from one host to another. The faults: they are late by a random time, they stop while the
/// way is cut, and they are lost, with the connection, when it breaks.
pub(super) struct Pipe {
    pub(super) from: String,
    pub(super) to: String,
    world: Arc<World>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When each part arrives; an empty part is the end of the stream.
    parts: VecDeque<(Monotonic, Vec<u8>)>,
    bytes: usize,
    broken: bool,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    pub(super) fn new(from: &str, to: &str, world: Arc<World>) -> Arc<Self> {
        let (from, to) = (from.to_owned(), to.to_owned());
        Arc::new(Self { from, to, world, state: Mutex::new(State::default()) })
    }

    /// Loses what is on its way; both ends see a reset.
    pub(super) fn break_down(&self) {
        let mut state = self.state.lock();
        state.broken = true;
        state.parts.clear();
        let wakers = [state.reader.take(), state.writer.take()];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Lets the reader look again: the way may be open now.
    pub(super) fn nudge(&self) {
        let reader = self.state.lock().reader.take();
        reader.into_iter().for_each(Waker::wake);
    }

    fn send(&self, state: &mut State, bytes: &[u8]) {
        let due = self.world.arrival();
        let last = state.parts.back().map_or(due, |(last, _)| due.max(*last));
        state.bytes += bytes.len();
        state.parts.push_back((last, bytes.to_vec()));
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// The end that reads.
pub(super) struct PipeReader {
    pipe: Arc<Pipe>,
    /// Sleeps until the next part arrives.
    arrival: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl PipeReader {
    pub(super) fn new(pipe: Arc<Pipe>) -> Self {
        Self { pipe, arrival: None }
    }

    fn wait_for(&mut self, due: Monotonic, context: &mut Context<'_>) -> Poll<()> {
        let world = &self.pipe.world;
        let arrival = self.arrival.get_or_insert_with(|| {
            let env = world.env.clone();
            let left = due.since(env.now());
            Box::pin(async move { env.sleep(left).await })
        });
        let arrived = arrival.as_mut().poll(context);
        if arrived.is_ready() {
            self.arrival = None;
        }
        arrived
    }
}

impl AsyncRead for PipeReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let pipe = Arc::clone(&self.pipe);
        loop {
            let mut state = pipe.state.lock();
            if state.broken {
                return Poll::Ready(Err(reset()));
            }
            state.reader = Some(context.waker().clone());
            let Some(due) = state.parts.front().map(|(due, _)| *due) else {
                return Poll::Pending;
            };
            if pipe.world.is_cut(&pipe.from, &pipe.to) {
                return Poll::Pending;
            }
            if due > pipe.world.env.now() {
                drop(state);
                std::task::ready!(self.wait_for(due, context));
                continue;
            }
            let (_, part) = state.parts.front_mut().expect("invariant: looked at it above");
            if part.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let count = part.len().min(buffer.remaining());
            buffer.put_slice(&part[..count]);
            part.drain(..count);
            if part.is_empty() {
                state.parts.pop_front();
            }
            state.bytes -= count;
            if let Some(writer) = state.writer.take() {
                writer.wake();
            }
            return Poll::Ready(Ok(()));
        }
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        let mut state = self.pipe.state.lock();
        state.reader_gone = true;
        if let Some(writer) = state.writer.take() {
            writer.wake();
        }
    }
}

/// The end that writes. Dropping it ends the stream.
pub(super) struct PipeWriter {
    pipe: Arc<Pipe>,
    ended: bool,
}

impl PipeWriter {
    pub(super) fn new(pipe: Arc<Pipe>) -> Self {
        Self { pipe, ended: false }
    }

    fn finish(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            let mut state = self.pipe.state.lock();
            self.pipe.send(&mut state, &[]);
        }
    }
}

impl AsyncWrite for PipeWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let pipe = &self.pipe;
        if pipe.world.loses() {
            pipe.world.break_between(&pipe.from, &pipe.to);
        }
        let mut state = pipe.state.lock();
        if state.broken || state.reader_gone || self.ended {
            return Poll::Ready(Err(reset()));
        }
        let count = bytes.len().min(CAPACITY.saturating_sub(state.bytes));
        if count == 0 {
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        pipe.send(&mut state, &bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        self.finish();
    }
}
