//! What the manager answers, whatever carries it: who may ask, and values to events and back.

use crate::manager::{Answer, Event};
use crate::news::Differences;
use crate::operations::Operation;
use crate::roles::Role;
use async_trait::async_trait;
use kiln_chain::lease::LeaseTimes;
use kiln_config::MgmtdConfig;
use kiln_env::Env;
use kiln_manager_link::follow_settings;
use kiln_net::{Peer, PeerKind};
use kiln_rpc::{
    FillProgress, Heartbeat, ManagerCalls, Registered, Registration, RoutingUpdates, TargetOrders,
};
use kiln_telemetry::metrics;
use kiln_types::{
    Code, Credential, CredentialLimits, CredentialRecord, Error, NodeId, Result, RoutingChange,
    RoutingInfo, RoutingVersion, ServerKey, SettingChange,
};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};

/// Routing information as it is pushed.
pub(crate) type News = Pin<Box<dyn Stream<Item = Arc<RoutingChange>> + Send>>;

/// What members and operators ask of a manager.
#[derive(Clone)]
pub struct Service {
    pub(crate) role: watch::Receiver<Role>,
    pub(crate) key: ServerKey,
    pub(crate) lease: LeaseTimes,
    /// The effective configuration, as TOML.
    pub(crate) config: Arc<str>,
    pub(crate) differences: Arc<Differences>,
    pub(crate) env: Env,
}

/// The service as one peer may use it.
pub struct Counter {
    service: Service,
    peer: Arc<Peer>,
}

impl Service {
    /// What `peer` may ask.
    pub fn counter(&self, peer: Arc<Peer>) -> Counter {
        Counter { service: self.clone(), peer }
    }

    /// Waits until this manager is the primary or knows which one is.
    ///
    /// # Errors
    /// `Cancelled` when it has ended before.
    pub(crate) async fn settled(&self) -> Result<()> {
        let mut role = self.role.clone();
        let settled = role.wait_for(|role| !matches!(role, Role::Seeking)).await;
        settled.map(drop).map_err(|_| Error::new(Code::Cancelled, "the manager has ended"))
    }

    /// Takes up the cluster's settings over the manager's own configuration, whatever its role is.
    pub(crate) async fn follow_settings(self, own: MgmtdConfig) {
        let mut role = self.role.clone();
        loop {
            let routing = role.borrow_and_update().routing();
            let follow = async {
                match routing {
                    Ok(routing) => follow_settings(own.clone(), routing, |_| {}).await,
                    Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = role.changed() => if changed.is_err() { return },
                () = follow => {}
            }
        }
    }

    async fn apply(&self, event: Event) -> Result<(Answer, Arc<RoutingInfo>)> {
        let handle = self.role.borrow().primary()?.clone();
        handle.apply(event).await
    }

    /// The newest routing information that this manager has.
    fn routing(&self) -> Result<Arc<RoutingInfo>> {
        Ok(self.role.borrow().routing()?.borrow().clone())
    }
}

/// A server speaks for itself only.
fn require_node(peer: &Peer, node: NodeId) -> Result<()> {
    peer.require_server()?;
    match peer.node {
        Some(own) if own != node => {
            Err(Error::new(Code::NotAuthorized, format!("{peer} speaks for node {node}")))
        }
        _ => Ok(()),
    }
}

#[async_trait]
impl ManagerCalls for Counter {
    async fn register(&self, registration: Registration) -> Result<Registered> {
        require_node(&self.peer, registration.node)?;
        let (_, routing) = self.service.apply(Event::Register(registration)).await?;
        let LeaseTimes { lease, heartbeat } = self.service.lease;
        Ok(Registered { routing: RoutingInfo::clone(&routing), lease, heartbeat })
    }

    async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<TargetOrders> {
        require_node(&self.peer, heartbeat.node)?;
        let (answer, _) = self.service.apply(Event::Heartbeat(heartbeat)).await?;
        let Answer::Alive { orders } = answer else {
            return Err(Error::internal("a heartbeat got another answer"));
        };
        metrics::MGMTD_HEARTBEATS.add(1);
        Ok(orders)
    }

    async fn watch_routing(&self, known: RoutingVersion) -> Result<Box<dyn RoutingUpdates>> {
        Ok(Box::new(Updates(self.news_after(known)?)))
    }
}

struct Updates(News);

#[async_trait]
impl RoutingUpdates for Updates {
    async fn next(&mut self) -> Result<Option<RoutingChange>> {
        Ok(self.0.next().await.map(Arc::unwrap_or_clone))
    }
}

impl Counter {
    /// The routing information that is newer than `known`, now and after each change. It ends when the
    /// manager is something else than now. A standby passes on what it hears from the primary, while it does.
    pub(crate) fn news_after(&self, known: RoutingVersion) -> Result<News> {
        let mut roles = self.service.role.clone();
        let role = roles.borrow_and_update().clone();
        let published = role.routing()?;
        let current = published.borrow().version;
        if known > current && role.primary().is_ok() {
            return Err(Error::corrupt(format!(
                "routing version {known} is known to {}, the manager has only {current}",
                self.peer
            ))
            .with_hint("the manager's store was set back: restore its newest copy"));
        }
        let (for_server, differences) =
            (self.peer.is_server(), Arc::clone(&self.service.differences));
        let newer = WatchStream::new(published).filter(move |routing| routing.version > known);
        let env = self.service.env.clone();
        let ended = async move {
            tokio::select! {
                biased;
                _ = roles.changed() => {}
                () = role.out_of_touch(&env) => {}
            }
        };
        let mut last = Arc::<RoutingInfo>::default();
        let newer = newer.map(move |routing| {
            let change = differences.between(&last, &routing, for_server);
            last = routing;
            change
        });
        Ok(Box::pin(futures_util::StreamExt::take_until(newer, Box::pin(ended))))
    }

    pub(crate) fn routing_version(&self) -> Result<RoutingVersion> {
        Ok(self.service.routing()?.version)
    }

    pub(crate) async fn create_credential(
        &self,
        name: String,
        limits: CredentialLimits,
    ) -> Result<Credential> {
        self.peer.require_operator()?;
        let event = Event::CreateCredential { name: name.clone(), limits };
        self.service.apply(event).await?;
        kiln_wire::credential(&self.service.key, &name)
    }

    pub(crate) async fn revoke_credential(&self, name: String) -> Result<()> {
        self.peer.require_operator()?;
        self.service.apply(Event::RevokeCredential { name }).await.map(drop)
    }

    pub(crate) fn credentials(&self) -> Result<Vec<CredentialRecord>> {
        self.peer.require_operator()?;
        Ok(self.service.routing()?.credentials.clone())
    }

    pub(crate) async fn set_setting(&self, name: String, value: Option<String>) -> Result<()> {
        self.peer.require_operator()?;
        let at = self.service.role.borrow().primary()?.wall();
        let by = match &self.peer.kind {
            PeerKind::Client { name, .. } => name.clone(),
            PeerKind::Server => self.peer.to_string(),
        };
        self.service.apply(Event::SetSetting { name, value, by, at }).await.map(drop)
    }

    /// The settings that are set, and the last changes.
    pub(crate) async fn settings(&self) -> Result<(BTreeMap<String, String>, Vec<SettingChange>)> {
        self.peer.require_operator()?;
        match self.service.apply(Event::ListChanges).await? {
            (Answer::Changes(changes), routing) => Ok((routing.settings.clone(), changes)),
            _ => Err(Error::internal("the list of changes got another answer")),
        }
    }

    pub(crate) async fn fills(&self) -> Result<Vec<FillProgress>> {
        self.peer.require_operator()?;
        match self.service.apply(Event::ListFills).await?.0 {
            Answer::Fills(fills) => Ok(fills),
            _ => Err(Error::internal("the list of fillings got another answer")),
        }
    }

    pub(crate) async fn operate(&self, operation: Operation) -> Result<Answer> {
        self.peer.require_operator()?;
        Ok(self.service.apply(Event::Operate(operation)).await?.0)
    }

    pub(crate) fn config(&self) -> Result<&str> {
        self.peer.require_operator()?;
        self.service.role.borrow().primary()?;
        Ok(&self.service.config)
    }
}
