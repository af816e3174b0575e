//! The operating system's clock and randomness, and tokio's tasks.
#![allow(clippy::disallowed_methods, reason = "this module is the seam that the ban points to")]

use crate::task::{Abort, Task};
use kiln_types::{Code, Context, Error, Monotonic, Result, Timestamp};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) struct Real;

impl Real {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn now(&self) -> Monotonic {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        Monotonic(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0))
    }

    pub(crate) fn wall(&self) -> Timestamp {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)),
            Err(before) => {
                Timestamp(-i64::try_from(before.duration().as_nanos()).unwrap_or(i64::MAX))
            }
        }
    }

    pub(crate) async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    pub(crate) fn fill_random(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("invariant: Linux always has randomness after boot");
    }

    pub(crate) fn spawn<T, F>(&self, name: &'static str, future: F) -> Task<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (sender, result) = tokio::sync::oneshot::channel();
        let handle = tokio::spawn(async move {
            let _ = sender.send(future.await);
        });
        Task { result, abort: Some(Arc::new(handle.abort_handle())), name }
    }
}

impl Abort for tokio::task::AbortHandle {
    fn abort(&self) {
        tokio::task::AbortHandle::abort(self);
    }
}

pub(crate) fn spawn_thread<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<std::thread::JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .context(format_args!("start of thread '{name}'"))
}

pub(crate) fn spawn_apart(
    name: &str,
    future: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(format_args!("event loop of thread '{name}'"))?;
    spawn_thread(name, move || runtime.block_on(future)).map(drop)
}

pub(crate) async fn blocking<T: Send + 'static>(
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(body)
        .await
        .map_err(|error| Error::new(Code::Cancelled, format!("blocking work: {error}")))
}
