//! The background work: removing chunks that nothing names any more, and retiring silent clients.
//! Any server may do it at any time, twice, or stop in the middle.

use crate::records::Client;
use crate::store::Store;
use crate::store::garbage::Task;
use kiln_env::Env;
use kiln_telemetry::metrics;
use kiln_types::{ClientId, InodeId, Monotonic, Result, Timestamp, TruncateEpoch};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// How the keeper works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeeperOptions {
    /// The pause between rounds when nothing rings.
    pub interval: Duration,
    /// How often clients are looked at.
    pub client_interval: Duration,
    /// Files whose chunks are removed at once.
    pub lanes: usize,
    /// How long one file's removal may take.
    pub timeout: Duration,
    /// The first pause after a failed removal; it doubles with each further one.
    pub backoff_min: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
    /// How long it is remembered that a client was retired.
    pub retired_for: Duration,
}

impl Default for KeeperOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            client_interval: Duration::from_secs(5),
            lanes: 8,
            timeout: Duration::from_secs(60),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(300),
            retired_for: Duration::from_secs(24 * 3600),
        }
    }
}

/// The most failed removals whose next try is remembered; others are tried in each round.
const BACKOFFS_MAX: usize = 10_000;

type Name = (InodeId, TruncateEpoch);

/// Does the background work of one server.
pub struct Keeper {
    store: Arc<Store>,
    env: Env,
    options: KeeperOptions,
    backoffs: HashMap<Name, (Duration, Monotonic)>,
    /// The last count of each active client's signs of life, and since when it has stood still
    /// here.
    seen: HashMap<ClientId, (u64, Monotonic)>,
    clients_due: Monotonic,
}

impl Keeper {
    /// A keeper of `store`.
    pub fn new(store: Arc<Store>, options: KeeperOptions) -> Self {
        let env = store.env().clone();
        let (backoffs, seen) = (HashMap::new(), HashMap::new());
        Self { store, env, options, backoffs, seen, clients_due: Monotonic(0) }
    }

    /// Works until it is dropped. Failures are logged and tried again.
    pub async fn run(mut self) {
        let store = Arc::clone(&self.store);
        loop {
            if let Err(error) = self.round().await {
                tracing::warn!(%error, "background work of the metadata server failed");
            }
            let pause = self.env.jittered(self.options.interval);
            let _ = self.env.timeout(pause, "a ring", store.bell.notified()).await;
        }
    }

    /// One round: all garbage that is due, and, when it is time, all clients.
    ///
    /// # Errors
    /// What kv reports. A removal that fails is no error: it is tried again later.
    pub async fn round(&mut self) -> Result<()> {
        if self.env.now() >= self.clients_due {
            self.clients_due = self.env.now().plus(self.options.client_interval);
            self.look_at_clients().await?;
        }
        self.collect_garbage().await
    }

    async fn collect_garbage(&mut self) -> Result<()> {
        let mut after: Option<Name> = None;
        let mut waiting = 0;
        loop {
            let page = self.store.garbage(after).await?;
            let Some(last) = page.last() else {
                metrics::META_GARBAGE.set_amount(waiting);
                return Ok(());
            };
            waiting += page.len() as u64;
            after = Some((last.inode, last.epoch));
            let (now, wall) = (self.env.now(), self.env.wall());
            let is_due = |task: &Task| {
                let name = (task.inode, task.epoch);
                let waits = self.backoffs.get(&name).is_some_and(|(_, next)| now < *next);
                task.is_due(wall) && !waits
            };
            let due: VecDeque<Task> = page.into_iter().filter(is_due).collect();
            for (task, outcome) in self.collect_all(due).await? {
                waiting -= u64::from(outcome.is_ok());
                self.note(&task, outcome);
            }
        }
    }

    async fn collect_all(&self, due: VecDeque<Task>) -> Result<Vec<(Task, Result<()>)>> {
        let lanes = self.options.lanes.min(due.len());
        let due = Arc::new(Mutex::new(due));
        let lane = || {
            let (store, env, due) = (Arc::clone(&self.store), self.env.clone(), Arc::clone(&due));
            let timeout = self.options.timeout;
            self.env.spawn("chunk removal", async move {
                let mut outcomes = Vec::new();
                loop {
                    let Some(task) = due.lock().pop_front() else { return outcomes };
                    let outcome = env.timeout(timeout, "removal", store.collect(&task)).await;
                    outcomes.push((task, outcome.and_then(|outcome| outcome)));
                }
            })
        };
        let tasks: Vec<_> = (0..lanes).map(|_| lane()).collect();
        let mut outcomes = Vec::new();
        for task in tasks {
            outcomes.extend(task.join().await?);
        }
        Ok(outcomes)
    }

    fn note(&mut self, task: &Task, outcome: Result<()>) {
        let name = (task.inode, task.epoch);
        let Err(error) = outcome else {
            self.backoffs.remove(&name);
            metrics::META_COLLECTED.increment();
            return;
        };
        tracing::warn!(inode = %task.inode, %error, "chunks were not removed; trying again later");
        let pause = self.backoffs.get(&name).map_or(self.options.backoff_min, |(pause, _)| {
            (*pause * 2).min(self.options.backoff_max)
        });
        if self.backoffs.len() < BACKOFFS_MAX || self.backoffs.contains_key(&name) {
            let next = self.env.now().plus(self.env.jittered(pause));
            self.backoffs.insert(name, (pause, next));
        }
    }

    async fn look_at_clients(&mut self) -> Result<()> {
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
                if age > i64::try_from(self.options.retired_for.as_nanos()).unwrap_or(i64::MAX) {
                    self.store.forget_client(client).await?;
                }
            }
        }
        Ok(())
    }
}
