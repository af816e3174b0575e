//! The one task that owns the manager: takes events, makes the state durable, publishes, answers.

use crate::manager::{Answer, Event, Manager};
use crate::state::State;
use crate::store::Store;
use kiln_env::Env;
use kiln_net::KeyRing;
use kiln_telemetry::{Phase, Trace, metrics};
use kiln_types::{Code, Context, Error, Result, RoutingInfo, Timestamp};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Events that may wait.
const QUEUE: usize = 1024;
/// Events that share one commit.
const BATCH: usize = 256;
/// How often leases are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long a commit may take, with its retries. Leases are not renewed meanwhile.
const COMMIT_TIME_MAX: Duration = Duration::from_secs(15);

/// What is told to whoever sent an event: the answer, and routing information that rests on it.
type Told = Result<(Answer, Arc<RoutingInfo>)>;

struct Command {
    event: Event,
    told: oneshot::Sender<Told>,
    trace: Trace,
}

/// The way to the owner; clones share it.
#[derive(Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    published: watch::Receiver<Arc<RoutingInfo>>,
    env: Env,
}

impl Handle {
    /// Sends an event and waits until its consequences are durable and published.
    pub(crate) async fn apply(&self, event: Event) -> Told {
        let (told, answer) = oneshot::channel();
        let trace = Trace::current();
        trace.enter(&self.env, Phase::Queue);
        self.commands.try_send(Command { event, told, trace }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Error::new(Code::Overloaded, "too many requests wait for the manager")
            }
            mpsc::error::TrySendError::Closed(_) => stopping(),
        })?;
        // The owner bounds its commits, and drops what is left when it ends.
        answer.await.map_err(|_| stopping())?
    }

    /// The wall clock.
    pub(crate) fn wall(&self) -> Timestamp {
        self.env.wall()
    }

    /// The routing information, now and after each change. It ends with the owner.
    pub(crate) fn published(&self) -> watch::Receiver<Arc<RoutingInfo>> {
        self.published.clone()
    }
}

fn stopping() -> Error {
    Error::new(Code::Cancelled, "the manager is stopping")
}

/// The manager's owner; [`Self::run`] is its life.
pub(crate) struct Owner {
    manager: Manager,
    store: Store,
    durable: State,
    ring: Arc<KeyRing>,
    commands: mpsc::Receiver<Command>,
    publish: watch::Sender<Arc<RoutingInfo>>,
    env: Env,
}

impl Owner {
    /// Makes the manager's first state durable; nothing was published before.
    pub(crate) async fn start(
        manager: Manager,
        store: Store,
        before: State,
        ring: Arc<KeyRing>,
        env: Env,
    ) -> Result<(Self, Handle)> {
        let (sender, commands) = mpsc::channel(QUEUE);
        let (publish, published) = watch::channel(Arc::default());
        let handle = Handle { commands: sender, published, env: env.clone() };
        let mut owner = Self { manager, store, durable: before, ring, commands, publish, env };
        owner.commit().await?;
        Ok((owner, handle))
    }

    /// Works until nobody can ask any more.
    ///
    /// # Errors
    /// Why the state could not be made durable: the manager has to begin anew then.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut next_tick = self.env.now();
        loop {
            let left = next_tick.since(self.env.now());
            let first = match self.env.timeout(left, "", self.commands.recv()).await {
                Ok(Some(command)) => Some(command),
                Ok(None) => return Ok(()),
                Err(_) => None,
            };
            let rest = std::iter::from_fn(|| self.commands.try_recv().ok());
            let batch: Vec<_> = first.into_iter().chain(rest.take(BATCH)).collect();
            let mut answers = Vec::with_capacity(batch.len());
            for Command { event, told, trace } in batch {
                trace.leave(&self.env, Phase::Queue);
                // Until it is answered.
                trace.enter(&self.env, Phase::KvCommit);
                answers.push((told, self.manager.apply(event, self.env.now())));
            }
            if self.env.now() >= next_tick {
                self.tick()?;
                next_tick = self.env.now().plus(TICK);
            }
            self.commit().await?;
            self.store.seat().held().await.context("the manager steps down")?;
            let published = self.publish.borrow().clone();
            for (told, answer) in answers {
                // Whoever asked may have gone away.
                let _ = told.send(answer.map(|answer| (answer, Arc::clone(&published))));
            }
        }
    }

    fn tick(&mut self) -> Result<()> {
        self.manager.apply(Event::Tick, self.env.now()).map(drop)
    }

    async fn commit(&mut self) -> Result<()> {
        let state = self.manager.state();
        if state.routing.version == self.durable.routing.version {
            return Ok(());
        }
        let committed = self.store.commit(&self.durable, state);
        self.env
            .timeout(COMMIT_TIME_MAX, "commit", committed)
            .await?
            .context("the manager cannot make its state durable and stops")?;
        self.durable = state.clone();
        let routing = Arc::new(state.routing.clone());
        self.ring.set_credentials(&routing.credentials);
        show(&routing);
        metrics::MGMTD_MOVES.set_amount(state.moves.len() as u64);
        self.publish.send_replace(routing);
        Ok(())
    }
}

/// What operators watch.
fn show(routing: &RoutingInfo) {
    let chains = || routing.chains.values();
    let degraded = chains().filter(|chain| chain.is_degraded());
    let read_only = chains().filter(|chain| chain.serving().count() < chain.min_serving as usize);
    metrics::MGMTD_ROUTING_VERSION.set_amount(routing.version.0);
    metrics::MGMTD_DEAD
        .set_amount(routing.nodes.values().filter(|node| !node.alive).count() as u64);
    metrics::MGMTD_CHAINS.set_amount(chains().count() as u64);
    metrics::MGMTD_CHAINS_DEGRADED.set_amount(degraded.count() as u64);
    metrics::MGMTD_CHAINS_READ_ONLY.set_amount(read_only.count() as u64);
}
