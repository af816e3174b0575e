//! The loop that registers and sends heartbeats. It runs apart from everything else, so that a busy
//! server does not miss them.

use crate::channel::{Managers, is_final};
use crate::lease::LeaseView;
use crate::link::{LinkOptions, Orders, Reporter};
use crate::routing::Routing;
use kiln_chain::lease::{LeaseTimes, ServerLease};
use kiln_env::Env;
use kiln_rpc::{Heartbeat, ManagerCalls, Registered, Registration};
use kiln_types::rehearsal::mark;
use kiln_types::{Code, Error, Result};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// What the server wants of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Live,
    /// End, with a last heartbeat that gives the server's role away.
    Stop,
}

/// How far the loop is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not registered yet, or not any more.
    Seeking,
    Registered,
    /// The manager refuses this server for good.
    Refused(Error),
    Ended,
}

/// Tries to say good-bye: the manager may be gone as well.
const GOODBYES: usize = 2;
/// The longest pause between two tries: many fit into the time after which a server fences itself.
pub(crate) const PAUSE_MAX: Duration = Duration::from_millis(250);
/// The shortest patience with one call.
const CALL_TIME_MIN: Duration = Duration::from_millis(250);

pub(crate) struct Heart {
    pub(crate) options: LinkOptions,
    pub(crate) managers: Managers,
    pub(crate) routing: Routing,
    pub(crate) reporter: Arc<dyn Reporter>,
    pub(crate) view: Arc<LeaseView>,
    pub(crate) orders: watch::Sender<Orders>,
    pub(crate) stage: watch::Sender<Stage>,
    pub(crate) wish: watch::Receiver<Wish>,
    pub(crate) env: Env,
    pub(crate) times: LeaseTimes,
    pub(crate) lease: ServerLease,
    pub(crate) sequence: u64,
}

impl Heart {
    /// Beats until it is told to stop, or the manager refuses this server for good.
    pub(crate) async fn run(mut self) {
        let mut wish = self.wish.clone();
        let stop = async move {
            // Without a ManagerLink nobody wants the lease any more: that is no planned stop.
            wish.wait_for(|wish| *wish == Wish::Stop).await.is_ok()
        };
        let refused = {
            let mut stop = std::pin::pin!(stop);
            let ended = self.beat_until(stop.as_mut()).await;
            match ended {
                Ok(planned) => {
                    self.say_goodbye(planned).await;
                    None
                }
                Err(error) => Some(error),
            }
        };
        self.lease.stop();
        self.view.show(&self.lease);
        self.stage.send_replace(match refused {
            Some(error) => {
                tracing::error!("the manager refuses this server: {error}");
                Stage::Refused(error)
            }
            None => Stage::Ended,
        });
    }

    /// Whether the stop that ended it is a planned one.
    async fn beat_until(&mut self, mut stop: impl Future<Output = bool> + Unpin) -> Result<bool> {
        loop {
            tokio::select! {
                biased;
                planned = &mut stop => return Ok(planned),
                result = self.step() => result?,
            }
        }
    }

    /// One registration or heartbeat, and the pause after it.
    async fn step(&mut self) -> Result<()> {
        let registered = *self.stage.borrow() == Stage::Registered;
        let result = match registered {
            true => self.beat(false).await,
            false => self.register().await,
        };
        match result {
            Ok(()) => self.env.sleep(self.interval()).await,
            Err(error) if is_final(&error) => return Err(error),
            Err(error) if error.code() == Code::UnknownMember && registered => {
                tracing::warn!("the manager has given this server up, it registers anew: {error}");
                self.lease.lost();
                self.view.show(&self.lease);
                self.stage.send_replace(Stage::Seeking);
            }
            Err(error) => {
                self.routing.report(&error);
                self.managers.pause().await;
            }
        }
        Ok(())
    }

    /// While there are targets to create, or to take out of their chains, the manager waits to hear that
    /// it is done.
    fn interval(&self) -> Duration {
        let orders = self.orders.borrow();
        match orders.create.is_empty() && orders.leave.is_empty() {
            true => self.times.heartbeat,
            false => self.times.heartbeat / 5,
        }
    }

    /// Several calls must fit in the time after which the server fences itself.
    fn call_time(&self) -> Duration {
        (self.times.fence() / 4).max(CALL_TIME_MIN)
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.lease.sent(self.sequence, self.env.now());
        self.sequence
    }

    async fn register(&mut self) -> Result<()> {
        let registration = Registration {
            cluster: self.options.key.cluster,
            node: self.options.node,
            kind: self.options.kind,
            address: self.options.address.clone(),
            incarnation: self.options.incarnation,
            disks: self.reporter.disks(),
            tags: self.options.tags.clone(),
            version: self.options.version.clone(),
        };
        let sequence = self.next_sequence();
        let call =
            |manager: Arc<dyn ManagerCalls>| async move { manager.register(registration).await };
        let registered = self.managers.call(self.call_time(), call).await?;
        let Registered { routing, lease, heartbeat } = registered;
        self.times = LeaseTimes { lease, heartbeat };
        let version = routing.version;
        tracing::info!(
            node = %self.options.node, manager = self.managers.address(), routing = %version,
            "registered"
        );
        // First what the lease requires, then the lease.
        self.routing.publish(routing);
        self.lease.registered(sequence, version, self.times);
        if self.options.adopts_at_once {
            self.view.adopt(version);
        }
        self.view.show(&self.lease);
        self.stage.send_replace(Stage::Registered);
        Ok(())
    }

    async fn beat(&mut self, stopping: bool) -> Result<()> {
        let sequence = self.next_sequence();
        let heartbeat = Heartbeat {
            node: self.options.node,
            incarnation: self.options.incarnation,
            sequence,
            routing: self.routing.now().version,
            targets: self.reporter.targets(),
            disks: self.reporter.disks(),
            stopping,
        };
        let call =
            |manager: Arc<dyn ManagerCalls>| async move { manager.heartbeat(heartbeat).await };
        let orders = self.managers.call(self.call_time(), call).await?;
        self.lease.answered(sequence);
        if self.env.now() >= self.lease.fenced_at() {
            mark("an answer comes after the fence that it moves");
        }
        self.view.show(&self.lease);
        self.orders.send_if_modified(|current| {
            let new = **current != orders;
            if new {
                *current = orders.into();
            }
            new
        });
        Ok(())
    }

    async fn say_goodbye(&mut self, planned: bool) {
        // Nothing is served from here on; only then the role may go to others.
        self.lease.stop();
        self.view.show(&self.lease);
        if !planned || *self.stage.borrow() != Stage::Registered {
            return;
        }
        for _ in 0..GOODBYES {
            match self.beat(true).await {
                Ok(()) => return,
                Err(error) => tracing::warn!("good-bye to the manager: {error}"),
            }
        }
    }
}
