//! The background work: letting go of what was in the trash for long enough, removing what was in removed trees and
//! chunks that nothing names any more, counting for quotas what was there before them, and retiring silent clients.
//! Any server may do it at any time, twice, or stop in the middle.

use crate::counter::Counter;
use crate::expirer::Expirer;
use crate::pruner::Pruner;
use crate::records::Client;
use crate::store::Store;
use crate::sweeper::Sweeper;
use kiln_env::Env;
use kiln_telemetry::metrics;
use kiln_types::{ClientId, Monotonic, Result, Timestamp};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How often clients are looked at.
const CLIENT_INTERVAL: Duration = Duration::from_secs(5);
/// How long it is remembered that a client was retired.
const RETIRED_FOR: Duration = Duration::from_secs(24 * 3600);

/// Does the background work of one server.
pub struct Keeper {
    expirer: Expirer,
    pruner: Pruner,
    counter: Counter,
    sweeper: Sweeper,
    clients: Clients,
}

/// Watches the clients.
struct Clients {
    store: Arc<Store>,
    env: Env,
    /// The last count of each active client's signs of life, and since when it has stood still
    /// here.
    seen: HashMap<ClientId, (u64, Monotonic)>,
}

impl Keeper {
    /// A keeper of `store`.
    pub fn new(store: Arc<Store>) -> Self {
        let (env, seen) = (store.env().clone(), HashMap::new());
        let expirer = Expirer::new(Arc::clone(&store));
        let pruner = Pruner::new(Arc::clone(&store));
        let counter = Counter::new(Arc::clone(&store));
        let sweeper = Sweeper::new(Arc::clone(&store));
        Self { expirer, pruner, counter, sweeper, clients: Clients { store, env, seen } }
    }

    /// Works until it is dropped. Failures are logged and tried again.
    pub async fn run(self) {
        let queues =
            async { tokio::join!(self.expirer.run(), self.pruner.run(), self.counter.run()) };
        let store = Arc::clone(&self.clients.store);
        tokio::join!(queues, self.sweeper.run(), self.clients.run(), store.watch_move());
    }

    /// Looks at all clients, empties the trash of what is due and removed trees, counts for quotas, then collects
    /// all garbage that is due.
    #[cfg(test)]
    pub(crate) async fn round(&mut self) -> Result<()> {
        self.clients.look_at_all().await?;
        self.expirer.round().await?;
        self.pruner.round().await?;
        self.counter.round().await?;
        self.sweeper.round().await
    }
}

impl Clients {
    async fn run(mut self) {
        loop {
            self.store.forget_idle_backup();
            if let Err(error) = self.look_at_all().await {
                tracing::warn!(%error, "clients were not looked at; trying again");
            }
            self.env.sleep(CLIENT_INTERVAL).await;
        }
    }

    async fn look_at_all(&mut self) -> Result<()> {
        let mut after = None;
        let mut seen = HashMap::new();
        loop {
            let page = self.store.clients(after).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.client);
            for client in page {
                match client.state {
                    Client::Active { .. } => {
                        let since = self.silent_since(client.client, client.beats).await?;
                        seen.insert(client.client, (client.beats, since));
                    }
                    Client::Retired { at, goodbye } => {
                        self.look_at_retired(client.client, at, goodbye).await?;
                    }
                }
            }
        }
        metrics::META_CLIENTS.set_amount(seen.len() as u64);
        self.store.relieve(|client| seen.contains_key(&client)).await?;
        self.seen = seen;
        Ok(())
    }

    /// Since when an active client has been silent, on this server's own clock. One that has been
    /// silent for its lease is retired.
    async fn silent_since(&self, client: ClientId, beats: u64) -> Result<Monotonic> {
        let now = self.env.now();
        let since = match self.seen.get(&client) {
            Some((seen, since)) if *seen == beats => *since,
            _ => now,
        };
        let lease = self.store.settings.lease;
        if now.since(since) > lease && self.store.retire(client, beats).await? {
            tracing::info!(%client, ?lease, "retired: silent for longer than its lease");
        }
        Ok(since)
    }

    async fn look_at_retired(&self, client: ClientId, at: Timestamp, goodbye: bool) -> Result<()> {
        let now = self.env.wall();
        if !goodbye && now < self.store.capability_end(at) {
            return Ok(());
        }
        match self.store.end_client(client).await {
            Err(error) => tracing::warn!(%client, %error, "its open files stay open for now"),
            Ok(true) => tracing::debug!(%client, "ended"),
            Ok(false) => {
                let age = now.0.saturating_sub(at.0);
                if age > i64::try_from(RETIRED_FOR.as_nanos()).unwrap_or(i64::MAX) {
                    self.store.forget_client(client).await?;
                }
            }
        }
        Ok(())
    }
}
