//! Removing what is in directories that were removed as a whole.

use crate::store::Store;
use kiln_env::Env;
use kiln_telemetry::metrics;
use kiln_types::{InodeId, Result};
use std::sync::Arc;
use std::time::Duration;

/// How often removed directories are looked for that servers which stopped have left.
const SCAN_INTERVAL: Duration = Duration::from_secs(60);
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Works on the removed trees of one server, and on what it finds of others.
pub(crate) struct Pruner {
    store: Arc<Store>,
    env: Env,
}

impl Pruner {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        let env = store.env().clone();
        Self { store, env }
    }

    /// Works until it is dropped. Failures are logged and tried again.
    pub(crate) async fn run(self) {
        loop {
            let pause = match self.round().await {
                Ok(()) => self.env.jittered(SCAN_INTERVAL),
                Err(error) => {
                    tracing::warn!(%error, "removed directories stay for now; trying again");
                    PAUSE
                }
            };
            // Late or not: it is looked again.
            let _ = self.env.timeout(pause, "a removal", self.store.detached.notified()).await;
        }
    }

    /// Removes everything that is there.
    pub(crate) async fn round(&self) -> Result<()> {
        loop {
            let page = self.store.detached().await?;
            metrics::META_DETACHED.set_amount(page.len() as u64);
            if page.is_empty() {
                return Ok(());
            }
            let mut failure = Ok(());
            for directory in page {
                // One that cannot be emptied keeps none of the others.
                failure = self.empty(directory).await.and(failure);
            }
            failure?;
        }
    }

    async fn empty(&self, directory: InodeId) -> Result<()> {
        let mut after = 0;
        while let Some(next) = self.store.prune(directory, after).await? {
            after = next;
        }
        Ok(())
    }
}
