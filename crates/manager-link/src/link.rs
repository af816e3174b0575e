//! A server's tie to the manager.

use crate::channel::{Managers, Reach, over_tcp};
use crate::heart::{self, Heart, Stage, Wish};
use crate::lease::LeaseView;
use crate::routing::{self, Routing};
use kiln_chain::lease::{LeaseTimes, ServerLease};
use kiln_env::{Env, Task};
use kiln_net::{Identity, KeyRing};
use kiln_rpc::{DiskReport, TargetOrders, TargetReport};
use kiln_types::{
    Code, Deadline, Error, Incarnation, NodeId, Result, RoutingInfo, ServerKey, ServiceKind,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Who the server is, and where the managers are.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// The managers' addresses, `host:port`.
    pub managers: Vec<String>,
    /// The server key.
    pub key: ServerKey,
    /// The server's id.
    pub node: NodeId,
    /// What it runs.
    pub kind: ServiceKind,
    /// Where others reach it, `host:port`.
    pub address: String,
    /// This run of it: drawn at each start.
    pub incarnation: Incarnation,
    /// Failure-domain tags.
    pub tags: BTreeMap<String, String>,
    /// The program's version.
    pub version: String,
    /// The server has nothing to take up before it serves: it follows [`ManagerLink::routing`] as
    /// it is. Otherwise it calls [`LeaseView::adopt`] after each version that it has taken up.
    pub adopts_at_once: bool,
}

/// What a server tells with each heartbeat. Called between heartbeats: it must not wait.
pub trait Reporter: Send + Sync {
    /// All its disks, also before the first heartbeat: it opens them before it registers.
    fn disks(&self) -> Vec<DiskReport>;

    /// All its targets, from the first heartbeat on: one that is not named is taken to be gone.
    fn targets(&self) -> Vec<TargetReport>;
}

/// A server without disks and targets.
impl Reporter for () {
    fn disks(&self) -> Vec<DiskReport> {
        Vec::new()
    }

    fn targets(&self) -> Vec<TargetReport> {
        Vec::new()
    }
}

/// What this server is to do with its targets, as the manager said last.
pub type Orders = Arc<TargetOrders>;

/// The good-bye takes at most so long.
const STOP_TIME_MAX: Duration = Duration::from_secs(5);

/// A server's tie to the manager. Dropping it ends the lease, without a word to the manager.
pub struct ManagerLink {
    routing: Routing,
    lease: Arc<LeaseView>,
    orders: watch::Receiver<Orders>,
    stage: watch::Receiver<Stage>,
    wish: watch::Sender<Wish>,
    env: Env,
    _follow: Task<()>,
}

impl ManagerLink {
    /// Begins to register, for ever. `ring` gets the credentials of all routing information that
    /// comes.
    ///
    /// # Errors
    /// `Invalid` when there is no manager's address, `Local` when the system refuses a thread.
    pub fn start(
        options: LinkOptions,
        ring: Arc<KeyRing>,
        reporter: Arc<dyn Reporter>,
        env: Env,
    ) -> Result<Self> {
        let identity = Identity::Server(options.key.clone());
        let reach = over_tcp(identity, &env);
        Self::start_over(reach, options, ring, reporter, env)
    }

    /// As [`Self::start`], over another way to the managers.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_over(
        reach: Arc<dyn Reach>,
        options: LinkOptions,
        ring: Arc<KeyRing>,
        reporter: Arc<dyn Reporter>,
        env: Env,
    ) -> Result<Self> {
        let routing = Routing::new(Some(ring));
        let managers = |pause_max| {
            let (named, reach) = (options.managers.clone(), Arc::clone(&reach));
            let managers = Managers::new(named, routing.clone(), reach, pause_max, env.clone())?;
            Ok::<_, Error>(match options.kind {
                ServiceKind::Mgmtd => managers.only_named(),
                _ => managers,
            })
        };
        let follow = routing.clone().follow(managers(routing::PAUSE_MAX)?, env.clone());
        let follow = env.spawn("routing watch", follow);
        let lease = Arc::new(LeaseView::default());
        let (orders_sender, orders) = watch::channel(Orders::default());
        let (stage_sender, stage) = watch::channel(Stage::Seeking);
        let (wish, wishes) = watch::channel(Wish::Live);
        let heart = Heart {
            managers: managers(heart::PAUSE_MAX)?,
            options,
            routing: routing.clone(),
            reporter,
            view: Arc::clone(&lease),
            orders: orders_sender,
            stage: stage_sender,
            wish: wishes,
            env: env.clone(),
            times: LeaseTimes::SERVER,
            lease: ServerLease::new(LeaseTimes::SERVER),
            sequence: 0,
        };
        // It ends with the link: see Heart::run.
        env.spawn_apart("heartbeats", heart.run())?;
        Ok(Self { routing, lease, orders, stage, wish, env, _follow: follow })
    }

    /// The routing information.
    pub fn routing(&self) -> &Routing {
        &self.routing
    }

    /// Whether this server may serve.
    pub fn lease(&self) -> &Arc<LeaseView> {
        &self.lease
    }

    /// What to do with the targets, now and after each change.
    pub fn orders(&self) -> watch::Receiver<Orders> {
        self.orders.clone()
    }

    /// Waits until the server is registered.
    ///
    /// # Errors
    /// The manager's refusal, or `DeadlineExceeded` with what stood in the way.
    pub async fn registered(&self, deadline: Deadline) -> Result<Arc<RoutingInfo>> {
        let mut stage = self.stage.clone();
        let reached = stage.wait_for(|stage| *stage != Stage::Seeking);
        match self.env.until(deadline, "registration with the manager", reached).await {
            Ok(Ok(stage)) => match &*stage {
                Stage::Refused(error) => Err(error.clone()),
                Stage::Ended => Err(ended()),
                _ => Ok(self.routing.now()),
            },
            Ok(Err(_)) => Err(ended()),
            Err(late) => Err(self.routing.trouble().unwrap_or(late)),
        }
    }

    /// Waits until the manager refuses this server for good (another run of it has registered, it
    /// is of another cluster): then it must end.
    pub async fn refused(&self) -> Error {
        let mut stage = self.stage.clone();
        let refused = |stage: &Stage| matches!(stage, Stage::Refused(_) | Stage::Ended);
        match stage.wait_for(refused).await.as_deref() {
            Ok(Stage::Refused(error)) => error.clone(),
            _ => ended(),
        }
    }

    /// Ends the lease, as planned: nothing is served from here on, and the manager is told, which gives
    /// the server's role away at once where enough others serve. Without this it does when the lease
    /// ends, unless the server is back by then.
    pub async fn stop(self) {
        self.wish.send_replace(Wish::Stop);
        let mut stage = self.stage.clone();
        let ended = stage.wait_for(|stage| matches!(stage, Stage::Refused(_) | Stage::Ended));
        if let Err(late) = self.env.timeout(STOP_TIME_MAX, "good-bye to the manager", ended).await {
            tracing::warn!("{late}");
        }
    }
}

fn ended() -> Error {
    Error::new(Code::Cancelled, "the tie to the manager has ended")
}
