//! The io_uring engine: one named thread for each disk that owns the ring; requests come by a
//! queue.

use crate::file::DataFile;
use crate::kernel::Ring;
use crate::operation::Operation;
use crate::sync_gate::SyncGate;
use kiln_env::Env;
use kiln_types::{Code, Error, Result};
use parking_lot::Mutex;
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};

/// How long dropping the disk waits for operations in flight.
const DRAIN: Duration = Duration::from_secs(10);
/// How often in a row the kernel may be too busy to take anything.
const BUSY_MAX: u32 = 100_000;

/// The handle that feeds the thread. Dropping it drains the ring and ends the thread.
pub(crate) struct Uring {
    shared: Arc<Shared>,
    mode: &'static str,
    /// Closes when the thread has ended.
    ended: Mutex<mpsc::Receiver<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// An eventfd that ends the thread's sleep.
    wake: OwnedFd,
    file: Arc<DataFile>,
    slots: Arc<Semaphore>,
    gate: Arc<SyncGate>,
}

/// Bounded by the permits that its operations hold.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Operation>,
    /// Whether the thread sleeps, or is about to, and nobody has woken it yet.
    asleep: bool,
    closed: bool,
}

impl Uring {
    /// Sets a ring up on a thread of its own, as deep as `slots` has permits.
    ///
    /// # Errors
    /// `Unsupported` when io_uring does not work here.
    pub(crate) async fn start(
        file: Arc<DataFile>,
        slots: Arc<Semaphore>,
        gate: Arc<SyncGate>,
        env: &Env,
    ) -> Result<Self> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|errno| Error::local("eventfd", &errno.into()))?;
        let depth = slots.available_permits();
        let name = file.path().file_name().map(|name| name.to_string_lossy().into_owned());
        let queue = Mutex::new(Queue::default());
        let shared = Arc::new(Shared { queue, wake, file, slots, gate });
        let (ready, started) = oneshot::channel();
        let (alive, ended) = mpsc::channel();
        let body = Arc::clone(&shared);
        env.spawn_thread(&format!("disk-{}", name.unwrap_or_default()), move || {
            let _alive = alive;
            // The ring is made here: its kernel side belongs to the thread that submits.
            match Ring::new(depth, body.file.as_fd(), body.wake.as_fd()) {
                Err(error) => drop(ready.send(Err(error))),
                Ok(ring) => {
                    let _ = ready.send(Ok(ring.mode()));
                    serve(body, ring);
                }
            }
        })?;
        let refused = |why: &dyn std::fmt::Display| {
            Error::new(Code::Unsupported, format!("io_uring does not work here: {why}"))
                .with_hint("containers and kernel.io_uring_disabled often forbid it")
        };
        match started.await {
            Ok(Ok(mode)) => Ok(Self { shared, mode, ended: Mutex::new(ended) }),
            Ok(Err(error)) => Err(refused(&error)),
            Err(_) => Err(refused(&"its thread ended")),
        }
    }

    pub(crate) fn mode(&self) -> &'static str {
        self.mode
    }

    /// Queues an operation. If the thread is gone its caller hears so by the channel that closes.
    pub(crate) fn submit(&self, operation: Operation) {
        let mut queue = self.shared.queue.lock();
        if queue.closed {
            return;
        }
        queue.waiting.push_back(operation);
        let asleep = std::mem::take(&mut queue.asleep);
        drop(queue);
        if asleep {
            self.shared.wake();
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake();
        if self.ended.lock().recv_timeout(DRAIN) == Err(mpsc::RecvTimeoutError::Timeout) {
            let path = self.shared.file.path().display();
            tracing::error!(%path, "operations in flight do not end: leaving their thread behind");
        }
    }
}

impl Shared {
    fn wake(&self) {
        // It fails only when the counter is at its end, and then the thread is woken already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Moves all that is queued into `batch`. When there is nothing, the thread may sleep: whoever
    /// comes next wakes it. Says whether the disk was closed.
    fn collect(&self, batch: &mut Vec<Operation>) -> bool {
        let mut queue = self.queue.lock();
        batch.extend(queue.waiting.drain(..));
        queue.asleep = batch.is_empty();
        queue.closed
    }
}

/// The thread: ends when the disk is closed and nothing is in flight, or when the ring breaks.
fn serve(shared: Arc<Shared>, mut ring: Ring) {
    let closing = Closing(&shared);
    if let Err(error) = turn(&shared, &mut ring) {
        let error = shared.file.failed(format_args!("io_uring broke: {error}"));
        tracing::error!("{error}");
        shared.gate.fail(&error);
    }
    drop(closing);
    drop(ring);
}

fn turn(shared: &Shared, ring: &mut Ring) -> io::Result<()> {
    let (mut batch, mut completed) = (Vec::new(), Vec::new());
    let mut busy = 0;
    loop {
        let closed = shared.collect(&mut batch);
        if !batch.is_empty() {
            for operation in batch.drain(..) {
                ring.start(operation)?;
            }
            continue;
        }
        if closed && ring.is_idle() {
            return Ok(());
        }
        match ring.submit_and_wait().map_err(|error| (error.raw_os_error(), error)) {
            Ok(_) => busy = 0,
            Err((Some(code), _)) if code == Errno::INTR.raw_os_error() => {}
            Err((Some(code), _)) if is_busy(code) && busy < BUSY_MAX => {
                busy += 1;
                std::thread::yield_now();
            }
            Err((_, error)) => return Err(error),
        }
        shared.queue.lock().asleep = false;
        ring.reap(&mut completed)?;
        for (operation, outcome) in completed.drain(..) {
            if let Some(operation) = operation.advance(outcome, &shared.file) {
                ring.start(operation)?;
            }
        }
    }
}

/// Memory is short, or completions have to be taken first.
fn is_busy(code: i32) -> bool {
    code == Errno::AGAIN.raw_os_error() || code == Errno::BUSY.raw_os_error()
}

/// However the thread ends, nobody waits for it any more.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.slots.close();
        let mut queue = self.0.queue.lock();
        queue.closed = true;
        let waiting = std::mem::take(&mut queue.waiting);
        drop(queue);
        drop(waiting);
    }
}
