//! Removing chunks that nothing names any more: the shell around the [`Collector`].

use crate::collector::Collector;
use crate::store::Store;
use crate::store::garbage::{Name, Task};
use kiln_env::{Env, Task as Running};
use kiln_telemetry::metrics;
use kiln_types::{ChainId, Error, Monotonic, Result};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long new garbage waits for more of it: one sweep of a chain then serves all.
const JOIN: Duration = Duration::from_millis(100);
/// The pause when nothing happens: a failed sweep is due again, or a record could not be ended.
const PAUSE: Duration = Duration::from_millis(500);
/// How often the records are looked through, for what servers that stopped have left.
const SCAN_INTERVAL: Duration = Duration::from_secs(60);
/// When the records are looked through again if there was no room for all of them.
const SCAN_AGAIN: Duration = Duration::from_secs(5);
/// Outcomes that wait to be taken in.
const OUTCOMES_MAX: usize = 64;

const NOT_REMOVED: &str = "chunks of removed files stay for now; trying again";

/// How a sweep of a chain went.
struct Swept {
    chain: ChainId,
    tasks: Vec<Task>,
    outcomes: Vec<Result<()>>,
}

/// Collects the garbage of one server, and what it finds of others.
pub(crate) struct Sweeper {
    store: Arc<Store>,
    env: Env,
    collector: Collector,
    under_way: BTreeMap<ChainId, Running<()>>,
    sender: mpsc::Sender<Swept>,
    receiver: mpsc::Receiver<Swept>,
    /// How far a look through the records has got, and when the next one or the rest is due.
    scanned: Option<Name>,
    scan_at: Monotonic,
}

impl Sweeper {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        let env = store.env().clone();
        let (sender, receiver) = mpsc::channel(OUTCOMES_MAX);
        Self {
            store,
            env,
            collector: Collector::default(),
            under_way: BTreeMap::new(),
            sender,
            receiver,
            scanned: None,
            scan_at: Monotonic(0),
        }
    }

    /// Works until it is dropped. Failures are logged and tried again.
    pub(crate) async fn run(mut self) {
        let store = Arc::clone(&self.store);
        loop {
            if let Err(error) = self.begin().await {
                tracing::warn!(%error, "removed files are not collected; trying again");
            }
            let event = async {
                tokio::select! {
                    biased;
                    swept = self.receiver.recv() => swept,
                    () = store.handover.given() => None,
                }
            };
            match self.env.timeout(PAUSE, "a removal", event).await {
                Ok(Some(swept)) => self.take_in(swept),
                Ok(None) => self.env.sleep(JOIN).await,
                Err(_) => {}
            }
        }
    }

    /// Does all that is due, to its end.
    #[cfg(test)]
    pub(crate) async fn round(&mut self) -> Result<()> {
        self.begin().await?;
        while !self.under_way.is_empty() {
            if let Some(swept) = self.receiver.recv().await {
                self.take_in(swept);
            }
            self.begin().await?;
        }
        Ok(())
    }

    /// Begins what is due, and ends the records of what is collected.
    async fn begin(&mut self) -> Result<()> {
        while let Ok(swept) = self.receiver.try_recv() {
            self.take_in(swept);
        }
        self.take_new();
        let scan = self.scan().await;
        while let Some(task) = self.collector.wake(self.env.wall()) {
            self.add(task);
        }
        while let Some((chain, tasks)) = self.collector.start(self.env.now()) {
            self.sweep(chain, tasks);
        }
        metrics::META_GARBAGE.set_amount(self.collector.waiting() as u64);
        let collected = self.collector.collected();
        if !collected.is_empty() {
            self.store.end_garbage(&collected).await?;
            self.collector.ended(&collected);
            metrics::META_COLLECTED.add(collected.len() as u64);
        }
        scan
    }

    fn take_new(&mut self) {
        let handed = self.store.handover.take();
        if handed.is_short {
            self.scan_soon();
        }
        handed.tasks.into_iter().for_each(|task| self.add(task));
    }

    fn add(&mut self, task: Task) {
        if !self.collector.has_room() {
            return self.scan_soon();
        }
        match self.store.chunks.chains(&task.garbage.layout) {
            Ok(chains) => self.collector.add(task, chains, self.env.wall()),
            Err(error) => {
                tracing::debug!(inode = %task.inode, %error, "its chains are not known yet");
                self.scan_soon();
            }
        }
    }

    fn scan_soon(&mut self) {
        self.scan_at = self.scan_at.min(self.env.now().plus(SCAN_AGAIN));
    }

    /// Looks through the records, as far as there is room.
    async fn scan(&mut self) -> Result<()> {
        if self.env.now() < self.scan_at {
            return Ok(());
        }
        self.scan_at = self.env.now().plus(self.env.jittered(SCAN_INTERVAL));
        while self.collector.has_room() {
            let page = self.store.garbage(self.scanned).await.inspect_err(|_| self.scan_soon())?;
            self.scanned = page.last().map(Task::name);
            if self.scanned.is_none() {
                return Ok(());
            }
            page.into_iter().for_each(|task| self.add(task));
        }
        self.scan_soon();
        Ok(())
    }

    fn sweep(&mut self, chain: ChainId, tasks: Vec<Task>) {
        let (chunks, env) = (Arc::clone(&self.store.chunks), self.env.clone());
        let tree = self.store.settings.tree;
        let sender = self.sender.clone();
        let running =
            self.env.spawn("sweep", async move {
                let removals: Vec<_> = tasks.iter().map(|task| task.removal(tree)).collect();
                let removing = env.spawn("chunk removal", async move {
                    chunks.remove_chunks(chain, &removals).await
                });
                let outcomes = match removing.join().await {
                    Ok(outcomes) => outcomes,
                    Err(panicked) => vec![Err(panicked); tasks.len()],
                };
                // An error: the keeper has ended.
                let _ = sender.send(Swept { chain, tasks, outcomes }).await;
            });
        self.under_way.insert(chain, running);
    }

    fn take_in(&mut self, Swept { chain, tasks, outcomes }: Swept) {
        self.under_way.remove(&chain);
        let (mut swept, mut failed) = (Vec::new(), Vec::new());
        let mut last: Option<Error> = None;
        for (task, outcome) in tasks.iter().zip(outcomes) {
            match outcome {
                Ok(()) => swept.push(task.name()),
                Err(error) => {
                    failed.push(task.name());
                    last = Some(error);
                }
            }
        }
        let is_news = self.collector.swept(chain, &swept, &failed, self.env.now());
        let files = failed.len();
        match last {
            Some(error) if is_news => {
                tracing::warn!(%chain, files, %error, "{NOT_REMOVED}");
            }
            Some(error) => tracing::debug!(%chain, files, %error, "{NOT_REMOVED}"),
            None => {}
        }
    }
}
