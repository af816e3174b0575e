//! Counting for quotas what was there before them.

use crate::store::Store;
use kiln_env::Env;
use kiln_telemetry::metrics;
use kiln_types::Result;
use std::sync::Arc;
use std::time::Duration;

/// How often directories are looked for that servers which stopped have left.
const SCAN_INTERVAL: Duration = Duration::from_secs(60);
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Counts for the quotas that one server set, and for what it finds of others.
pub(crate) struct Counter {
    store: Arc<Store>,
    env: Env,
}

impl Counter {
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
                    tracing::warn!(%error, "usage is not counted to the end; trying again");
                    PAUSE
                }
            };
            // Late or not: it is looked again.
            let _ = self.env.timeout(pause, "a quota", self.store.recounts.notified()).await;
        }
    }

    /// Counts everything that there is to count.
    pub(crate) async fn round(&self) -> Result<()> {
        while self.store.count_old().await? {}
        loop {
            let page = self.store.uncounted().await?;
            metrics::META_UNCOUNTED.set_amount(page.len() as u64);
            if page.is_empty() {
                return Ok(());
            }
            for directory in page {
                while self.store.count(directory).await? {}
            }
        }
    }
}
