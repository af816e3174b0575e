//! Following the routing information.

use crate::channel::{Managers, Reach, is_final, over_tcp};
use kiln_env::{Env, Task};
use kiln_net::{Identity, KeyRing};
use kiln_rpc::ManagerCalls;
use kiln_types::{Context, Deadline, Error, Result, RoutingInfo, RoutingVersion};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long the manager may take to answer the request.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// The longest pause between two tries.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(2);
/// After so long without news the manager is asked again.
const QUIET_TIME_MAX: Duration = Duration::from_secs(60);

/// The newest routing information, shared by all who follow it. Version 0 is none.
#[derive(Clone)]
pub struct Routing {
    newest: watch::Sender<Arc<RoutingInfo>>,
    /// What stands in the way of newer ones; `None` when nothing does.
    trouble: watch::Sender<Option<Error>>,
    ring: Option<Arc<KeyRing>>,
}

impl Routing {
    pub(crate) fn new(ring: Option<Arc<KeyRing>>) -> Self {
        Self { newest: watch::Sender::new(Arc::default()), trouble: watch::Sender::new(None), ring }
    }

    /// The newest one now.
    pub fn now(&self) -> Arc<RoutingInfo> {
        self.newest.borrow().clone()
    }

    /// The newest one, now and after each change; slow readers skip some.
    pub fn subscribe(&self) -> watch::Receiver<Arc<RoutingInfo>> {
        self.newest.subscribe()
    }

    /// Waits for the first one.
    ///
    /// # Errors
    /// At once, when a manager refuses this caller for good; else `DeadlineExceeded`, with what
    /// stood in the way.
    pub async fn ready(&self, deadline: Deadline, env: &Env) -> Result<Arc<RoutingInfo>> {
        self.at_least(RoutingVersion(1), deadline, env).await
    }

    /// Waits for `version` or a newer one, as after a `StaleChainVersion` that names it.
    ///
    /// # Errors
    /// As [`Self::ready`].
    pub async fn at_least(
        &self,
        version: RoutingVersion,
        deadline: Deadline,
        env: &Env,
    ) -> Result<Arc<RoutingInfo>> {
        let (mut newest, mut trouble) = (self.newest.subscribe(), self.trouble.subscribe());
        let came = async {
            tokio::select! {
                biased;
                found = newest.wait_for(|routing| routing.version >= version) => {
                    found.map(|routing| Arc::clone(&routing)).map_err(|_| ended())
                }
                found = trouble.wait_for(|error| error.as_ref().is_some_and(is_final)) => {
                    Err(found.ok().and_then(|error| (*error).clone()).unwrap_or_else(ended))
                }
            }
        };
        match env.until(deadline, "routing information", came).await {
            Ok(result) => result,
            Err(late) => Err(match self.trouble() {
                Some(error) => error.while_doing(late.message()),
                None => late,
            }),
        }
    }

    /// What stands in the way of contact with the manager, if anything.
    pub fn trouble(&self) -> Option<Error> {
        self.trouble.borrow().clone()
    }

    /// Takes up newer routing information; older one is ignored.
    pub(crate) fn publish(&self, routing: RoutingInfo) {
        if let Some(ring) = &self.ring
            && routing.version > self.newest.borrow().version
        {
            ring.set_credentials(&routing.credentials);
        }
        let routing = Arc::new(routing);
        self.newest.send_if_modified(|newest| {
            let newer = routing.version > newest.version;
            if newer {
                *newest = routing;
            }
            newer
        });
        self.trouble.send_replace(None);
    }

    pub(crate) fn report(&self, error: &Error) {
        self.trouble.send_if_modified(|trouble| {
            let new = trouble.as_ref() != Some(error);
            match (new, &trouble) {
                (false, _) => {}
                (true, None) => tracing::warn!("no contact with the manager: {error}"),
                (true, Some(_)) => tracing::debug!("still no contact with the manager: {error}"),
            }
            if new {
                *trouble = Some(error.clone());
            }
            new
        });
    }

    /// Follows the managers' routing information for ever.
    pub(crate) async fn follow(self, mut managers: Managers, env: Env) {
        loop {
            if let Err(error) = self.follow_one(&mut managers, &env).await {
                self.report(&error);
            }
            managers.pause().await;
        }
    }

    /// Follows one manager until it has been quiet for long, or an error.
    async fn follow_one(&self, managers: &mut Managers, env: &Env) -> Result<()> {
        let known = self.newest.borrow().version;
        let what = format!("routing information from the manager at {}", managers.address());
        let watch =
            |manager: Arc<dyn ManagerCalls>| async move { manager.watch_routing(known).await };
        let mut updates = managers.call(ANSWER_TIME_MAX, watch).await?;
        // It answers: nothing stands in the way, even if there is nothing new.
        self.trouble.send_replace(None);
        let mut routing = RoutingInfo::default();
        while let Ok(update) = env.timeout(QUIET_TIME_MAX, "", updates.next()).await {
            let laid = update.and_then(|change| routing.lay(change.ok_or_else(ended)?));
            match laid.context(&what) {
                Ok(()) => self.publish(routing.clone()),
                Err(error) => {
                    managers.leave();
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

fn ended() -> Error {
    Error::new(kiln_types::Code::ConnectionLost, "the manager ended the routing information")
}

/// Follows the routing information as long as it exists; for clients, which have no lease.
pub struct RoutingWatch {
    routing: Routing,
    _task: Task<()>,
}

impl RoutingWatch {
    /// Begins to follow the managers at `addresses`, for ever.
    ///
    /// # Errors
    /// `Invalid` when there is no address.
    pub fn start(addresses: Vec<String>, identity: Identity, env: &Env) -> Result<Self> {
        let reach = over_tcp(identity, env);
        Self::start_over(reach, addresses, env)
    }

    /// As [`Self::start`], over another way to the managers.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_over(reach: Arc<dyn Reach>, addresses: Vec<String>, env: &Env) -> Result<Self> {
        let routing = Routing::new(None);
        let managers = Managers::new(addresses, routing.clone(), reach, PAUSE_MAX, env.clone())?;
        let task = env.spawn("routing watch", routing.clone().follow(managers, env.clone()));
        Ok(Self { routing, _task: task })
    }

    /// What it found.
    pub fn routing(&self) -> &Routing {
        &self.routing
    }
}
