//! What the manager answers, whatever carries it: who may ask, and values to events and back.

use crate::manager::{Answer, Event};
use crate::roles::Role;
use async_trait::async_trait;
use kiln_chain::lease::LeaseTimes;
use kiln_net::Peer;
use kiln_rpc::{
    FillProgress, Heartbeat, ManagerCalls, Registered, Registration, RoutingUpdates, TargetOrder,
};
use kiln_telemetry::metrics;
use kiln_types::{
    Code, Credential, CredentialLimits, CredentialRecord, Error, NodeId, Result, RoutingInfo,
    RoutingVersion, ServerKey,
};
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};

/// Routing information as it is published.
pub(crate) type Published = Pin<Box<dyn Stream<Item = RoutingInfo> + Send>>;

/// What members and operators ask of a manager.
#[derive(Clone)]
pub struct Service {
    pub(crate) role: watch::Receiver<Role>,
    pub(crate) key: ServerKey,
    pub(crate) lease: LeaseTimes,
    /// The effective configuration, as TOML.
    pub(crate) config: Arc<str>,
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

/// What `peer` may see: credentials are the servers' business.
fn routing_for(peer: &Peer, routing: &RoutingInfo) -> RoutingInfo {
    let credentials = if peer.is_server() { routing.credentials.clone() } else { Vec::new() };
    RoutingInfo { credentials, ..routing.clone() }
}

#[async_trait]
impl ManagerCalls for Counter {
    async fn register(&self, registration: Registration) -> Result<Registered> {
        require_node(&self.peer, registration.node)?;
        let (_, routing) = self.service.apply(Event::Register(registration)).await?;
        let LeaseTimes { lease, heartbeat } = self.service.lease;
        Ok(Registered { routing: routing_for(&self.peer, &routing), lease, heartbeat })
    }

    async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<Vec<TargetOrder>> {
        require_node(&self.peer, heartbeat.node)?;
        let (answer, _) = self.service.apply(Event::Heartbeat(heartbeat)).await?;
        let Answer::Alive { orders } = answer else {
            return Err(Error::internal("a heartbeat got another answer"));
        };
        metrics::MGMTD_HEARTBEATS.add(1);
        Ok(orders)
    }

    async fn watch_routing(&self, known: RoutingVersion) -> Result<Box<dyn RoutingUpdates>> {
        Ok(Box::new(Updates(self.published_after(known)?)))
    }
}

struct Updates(Published);

#[async_trait]
impl RoutingUpdates for Updates {
    async fn next(&mut self) -> Result<Option<RoutingInfo>> {
        Ok(self.0.next().await)
    }
}

impl Counter {
    /// The routing information that is newer than `known`, now and after each change. It ends when the
    /// manager is something else than now. A standby passes on what it hears from the primary.
    pub(crate) fn published_after(&self, known: RoutingVersion) -> Result<Published> {
        let role = self.service.role.borrow().clone();
        let published = role.routing()?;
        let current = published.borrow().version;
        if known > current && role.primary().is_ok() {
            return Err(Error::corrupt(format!(
                "routing version {known} is known to {}, the manager has only {current}",
                self.peer
            ))
            .with_hint("the manager's store was set back: restore its newest copy"));
        }
        let peer = Arc::clone(&self.peer);
        let newer = WatchStream::new(published).filter(move |routing| routing.version > known);
        let mut roles = self.service.role.clone();
        roles.mark_unchanged();
        let ended = async move { drop(roles.changed().await) };
        let newer = newer.map(move |routing| routing_for(&peer, &routing));
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

    pub(crate) async fn fills(&self) -> Result<Vec<FillProgress>> {
        self.peer.require_operator()?;
        match self.service.apply(Event::ListFills).await?.0 {
            Answer::Fills(fills) => Ok(fills),
            _ => Err(Error::internal("the list of fillings got another answer")),
        }
    }

    pub(crate) fn config(&self) -> Result<&str> {
        self.peer.require_operator()?;
        self.service.role.borrow().primary()?;
        Ok(&self.service.config)
    }
}
