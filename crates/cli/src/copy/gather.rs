//! Requests side by side that go as one: while one call is under way, those that come wait for the next.

use kiln_types::{Error, Result};
use std::sync::{Mutex, PoisonError};
use tokio::sync::{Mutex as Turn, oneshot};

/// What waits, and who does it next.
pub(super) struct Gather<T, R> {
    waiting: Mutex<Vec<(T, oneshot::Sender<R>)>>,
    turn: Turn<()>,
}

impl<T, R> Default for Gather<T, R> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), turn: Turn::default() }
    }
}

impl<T, R> Gather<T, R> {
    /// Does `item` with all that wait by then: `work` answers each of them in order.
    ///
    /// # Errors
    /// `Internal` when whoever did it was stopped.
    pub(super) async fn join<F>(&self, item: T, work: impl FnOnce(Vec<T>) -> F) -> Result<R>
    where
        F: Future<Output = Vec<R>>,
    {
        let (tell, mut told) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push((item, tell));
        let lost = |_| Error::internal("a request that went with others was lost");
        let _turn = tokio::select! {
            biased;
            answer = &mut told => return answer.map_err(lost),
            turn = self.turn.lock() => turn,
        };
        let all = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        if !all.is_empty() {
            let (items, tell): (Vec<_>, Vec<_>) = all.into_iter().unzip();
            for (answer, tell) in work(items).await.into_iter().zip(tell) {
                // Whoever does not wait any more has no use for it.
                let _ = tell.send(answer);
            }
        }
        told.await.map_err(lost)
    }
}
