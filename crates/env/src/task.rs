//! A handle on a spawned task, the same for both executors.

use kiln_types::{Code, Error, Result};
use std::sync::Arc;

/// A running task. Dropping it aborts the task.
pub struct Task<T> {
    pub(crate) result: tokio::sync::oneshot::Receiver<T>,
    pub(crate) abort: Option<Arc<dyn Abort>>,
    pub(crate) name: &'static str,
}

/// How an executor ends a task.
pub(crate) trait Abort: Send + Sync {
    fn abort(&self);
}

impl<T> Task<T> {
    /// Lets the task run on without a handle.
    pub fn detach(mut self) {
        self.abort = None;
    }

    /// Ends the task at its next await.
    pub fn abort(&self) {
        if let Some(abort) = &self.abort {
            abort.abort();
        }
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.result.is_terminated() || !self.result.is_empty()
    }

    /// Waits for the task's result.
    ///
    /// # Errors
    /// `Internal` when the task panicked or was aborted.
    pub async fn join(mut self) -> Result<T> {
        let result = (&mut self.result).await;
        result.map_err(|_| {
            Error::new(Code::Internal, format!("task '{}' ended without a result", self.name))
        })
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.abort();
    }
}
