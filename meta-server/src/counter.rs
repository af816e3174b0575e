//! Counting for quotas what was there before them.

use crate::rounds;
use crate::store::Store;
use kiln_telemetry::metrics;
use kiln_types::Result;
use std::sync::Arc;

/// Counts for the quotas that one server set, and for what it finds of others.
pub(crate) struct Counter {
    store: Arc<Store>,
}

impl Counter {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// Works until it is dropped. Failures are logged and tried again.
    pub(crate) async fn run(self) {
        let (env, bell) = (self.store.env(), &self.store.recounts);
        loop {
            let round = self.round().await.map(|()| rounds::SCAN_INTERVAL);
            rounds::rest(env, bell, "usage is not counted to the end", round).await;
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
