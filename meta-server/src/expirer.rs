//! Letting go of what has been in the trash for long enough.

use crate::rounds;
use crate::store::Store;
use kiln_telemetry::metrics;
use kiln_types::Result;
use std::sync::Arc;
use std::time::Duration;

/// The shortest rest: what expires meanwhile goes together.
const REST_MIN: Duration = Duration::from_secs(1);

/// Empties the trash of what is due, whichever server put it there.
pub(crate) struct Expirer {
    store: Arc<Store>,
}

impl Expirer {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// Works until it is dropped. Failures are logged and tried again.
    pub(crate) async fn run(self) {
        let (env, bell) = (self.store.env(), &self.store.expiry);
        loop {
            let round = self.round().await;
            rounds::rest(env, bell, "what is in the trash stays for now", round).await;
        }
    }

    /// Lets go of everything that is due; for how long nothing else will be.
    pub(crate) async fn round(&self) -> Result<Duration> {
        let next = loop {
            let (gone, next) = self.store.expire().await?;
            if gone > 0 {
                self.store.detached.notify_one();
            }
            if let Some(next) = next {
                break next;
            }
        };
        metrics::META_TRASH.set_amount(self.store.trash().await?.usage.inodes);
        Ok(next.max(REST_MIN))
    }
}
