//! Removing what is in directories that were removed as a whole.

use crate::rounds;
use crate::store::Store;
use kiln_telemetry::metrics;
use kiln_types::{InodeId, Result};
use std::sync::Arc;

/// Works on the removed trees of one server, and on what it finds of others.
pub(crate) struct Pruner {
    store: Arc<Store>,
}

impl Pruner {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// Works until it is dropped. Failures are logged and tried again.
    pub(crate) async fn run(self) {
        let (env, bell) = (self.store.env(), &self.store.detached);
        loop {
            let round = self.round().await.map(|()| rounds::SCAN_INTERVAL);
            rounds::rest(env, bell, "removed directories stay for now", round).await;
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
