//! Futures that become tasks late: when they are woken for the first time.
//!
//! A task that is spawned to wait costs a wake-up of the runtime for nothing. Here the first poll happens at
//! once, and whoever wakes the future spawns it: for an answer from the network that is a thread of the runtime,
//! which goes on with it next.

use kiln_env::Env;
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use tokio::runtime::Handle;

/// Polls `future` on this thread, inside the runtime, and leaves the rest to a task of the runtime.
pub(super) fn run(
    env: Env,
    runtime: Handle,
    what: &'static str,
    mut future: impl Future<Output = ()> + Send + Unpin + 'static,
) {
    let late = Arc::new(Late { env, runtime, what, state: Mutex::new(State::Begins) });
    let waker = Waker::from(Arc::clone(&late));
    if Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_pending() {
        late.wait(future);
    }
}

struct Late<F> {
    env: Env,
    runtime: Handle,
    what: &'static str,
    state: Mutex<State<F>>,
}

enum State<F> {
    /// It is being polled for the first time.
    Begins,
    Waits(F),
    /// It was woken: during the first poll, or it is a task now.
    Woken,
}

impl<F: Future<Output = ()> + Send + 'static> Late<F> {
    fn wait(&self, future: F) {
        let mut state = self.state.lock();
        if matches!(*state, State::Begins) {
            *state = State::Waits(future);
            return;
        }
        drop(state);
        self.spawn(future);
    }

    fn spawn(&self, future: F) {
        let _inside = self.runtime.enter();
        self.env.spawn(self.what, future).detach();
    }
}

impl<F: Future<Output = ()> + Send + 'static> Wake for Late<F> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let before = std::mem::replace(&mut *self.state.lock(), State::Woken);
        if let State::Waits(future) = before {
            self.spawn(future);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::oneshot;

    fn begin(future: impl Future<Output = ()> + Send + 'static) {
        run(Env::real(), Handle::current(), "a test", Box::pin(future));
    }

    #[tokio::test]
    async fn it_goes_on_when_it_is_woken_and_only_then_is_a_task() {
        let (go_on, wait) = oneshot::channel();
        let (done, ended) = oneshot::channel();
        let before = Handle::current().metrics().num_alive_tasks();
        begin(async move {
            let heard = wait.await.unwrap_or(0);
            tokio::task::yield_now().await;
            let _ = done.send(heard);
        });
        assert_eq!(Handle::current().metrics().num_alive_tasks(), before);
        go_on.send(7).expect("it waits");
        assert_eq!(ended.await, Ok(7));
    }

    #[tokio::test]
    async fn a_wake_up_during_the_first_poll_counts() {
        let (done, ended) = oneshot::channel();
        begin(async move {
            tokio::task::yield_now().await;
            let _ = done.send(());
        });
        let ended = Env::real().timeout(Duration::from_secs(10), "its end", ended).await;
        assert_eq!(ended.expect("in time"), Ok(()));
    }
}
