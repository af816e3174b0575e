//! The manager's calls: who may make them, and messages to events and back.

use crate::manager::{Answer, Event};
use crate::owner::Handle;
use kiln_chain::lease::LeaseTimes;
use kiln_env::Env;
use kiln_net::{Peer, peer_of};
use kiln_rpc::v1::mgmtd_server::Mgmtd;
use kiln_rpc::{Heartbeat, Registration, convert, status_from_error, v1};
use kiln_telemetry::{REQUESTS, metrics};
use kiln_types::{Code, Error, NodeId, Result, RoutingInfo, RoutingVersion, ServerKey};
use std::pin::Pin;
use std::sync::Arc;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

/// What tonic serves.
pub(crate) struct Service {
    pub(crate) handle: Handle,
    pub(crate) env: Env,
    pub(crate) key: ServerKey,
    pub(crate) lease: LeaseTimes,
    /// The effective configuration, as TOML.
    pub(crate) config: String,
}

type Reply<T> = Result<Response<T>, Status>;
type Updates = Pin<Box<dyn Stream<Item = Result<v1::RoutingInfo, Status>> + Send>>;

/// What `peer` may see: credentials are the servers' business.
fn routing_for(peer: &Peer, routing: &RoutingInfo) -> v1::RoutingInfo {
    let mut message = v1::RoutingInfo::from(routing);
    if !peer.is_server() {
        message.credentials.clear();
    }
    message
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

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Service {
    /// Measures a request, and turns its error into a status.
    async fn answer<R, T>(
        &self,
        operation: &'static str,
        request: Request<R>,
        handle: impl AsyncFnOnce(Request<R>) -> Result<T>,
    ) -> Reply<T> {
        let peer = peer_of(&request).map_err(|error| status_from_error(&error))?;
        let work =
            async { handle(request).await.inspect_err(|error| tracing::debug!(%error, "refused")) };
        let result = REQUESTS.measure(&self.env, operation, &peer.address, work).await;
        result.map(Response::new).map_err(|error| status_from_error(&error))
    }

    async fn register(&self, request: Request<v1::RegisterRequest>) -> Result<v1::RegisterReply> {
        let peer = peer_of(&request)?;
        let registration = Registration::try_from(request.into_inner())?;
        require_node(&peer, registration.node)?;
        let (_, routing) = self.handle.apply(Event::Register(registration)).await?;
        Ok(v1::RegisterReply {
            routing: Some(routing_for(&peer, &routing)),
            lease_ms: milliseconds(self.lease.lease),
            heartbeat_ms: milliseconds(self.lease.heartbeat),
        })
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<v1::HeartbeatReply> {
        let peer = peer_of(&request)?;
        let heartbeat = Heartbeat::try_from(request.into_inner())?;
        require_node(&peer, heartbeat.node)?;
        let (answer, routing) = self.handle.apply(Event::Heartbeat(heartbeat)).await?;
        let Answer::Alive { orders } = answer else {
            return Err(Error::internal("a heartbeat got another answer"));
        };
        metrics::MGMTD_HEARTBEATS.add(1);
        Ok(v1::HeartbeatReply {
            routing_version: routing.version.0,
            create_targets: orders.iter().map(v1::CreateTargetOrder::from).collect(),
        })
    }

    fn watch(&self, request: &Request<v1::WatchRoutingRequest>) -> Result<Updates> {
        let peer = peer_of(request)?;
        let known = RoutingVersion(request.get_ref().known_version);
        let published = self.handle.published();
        let current = published.borrow().version;
        if known > current {
            return Err(Error::corrupt(format!(
                "routing version {known} is known to {peer}, the manager has only {current}"
            ))
            .with_hint("the manager's store was set back: restore its newest copy"));
        }
        let updates = WatchStream::new(published).filter(move |routing| routing.version > known);
        Ok(Box::pin(updates.map(move |routing| Ok(routing_for(&peer, &routing)))))
    }

    async fn create_credential(
        &self,
        request: Request<v1::CreateCredentialRequest>,
    ) -> Result<v1::CredentialSecret> {
        peer_of(&request)?.require_operator()?;
        let v1::CreateCredentialRequest { name, limits } = request.into_inner();
        let limits = convert::required(limits, "limits")?;
        let event = Event::CreateCredential { name: name.clone(), limits };
        self.handle.apply(event).await?;
        Ok(v1::CredentialSecret::from(&kiln_wire::credential(&self.key, &name)?))
    }

    async fn revoke_credential(
        &self,
        request: Request<v1::RevokeCredentialRequest>,
    ) -> Result<v1::Empty> {
        peer_of(&request)?.require_operator()?;
        let name = request.into_inner().name;
        self.handle.apply(Event::RevokeCredential { name }).await?;
        Ok(v1::Empty {})
    }

    fn list_credentials(&self, request: &Request<v1::Empty>) -> Result<v1::CredentialList> {
        peer_of(request)?.require_operator()?;
        let published = self.handle.published().borrow().clone();
        let credentials = published.credentials.iter().map(v1::CredentialInfo::from).collect();
        Ok(v1::CredentialList { credentials })
    }

    async fn list_fills(&self, request: Request<v1::Empty>) -> Result<v1::FillList> {
        peer_of(&request)?.require_operator()?;
        match self.handle.apply(Event::ListFills).await?.0 {
            Answer::Fills(fills) => {
                Ok(v1::FillList { fills: fills.iter().map(v1::FillProgress::from).collect() })
            }
            _ => Err(Error::internal("the list of fillings got another answer")),
        }
    }

    fn config(&self, request: &Request<v1::Empty>) -> Result<v1::ConfigText> {
        peer_of(request)?.require_operator()?;
        Ok(v1::ConfigText { toml: self.config.clone() })
    }
}

#[tonic::async_trait]
impl Mgmtd for Service {
    type WatchRoutingStream = Updates;

    async fn register(&self, request: Request<v1::RegisterRequest>) -> Reply<v1::RegisterReply> {
        self.answer("register", request, async |ask| Service::register(self, ask).await).await
    }

    async fn heartbeat(&self, request: Request<v1::HeartbeatRequest>) -> Reply<v1::HeartbeatReply> {
        self.answer("heartbeat", request, async |ask| Service::heartbeat(self, ask).await).await
    }

    async fn watch_routing(&self, request: Request<v1::WatchRoutingRequest>) -> Reply<Updates> {
        self.answer("watch routing", request, async |ask| self.watch(&ask)).await
    }

    async fn create_credential(
        &self,
        request: Request<v1::CreateCredentialRequest>,
    ) -> Reply<v1::CredentialSecret> {
        let create = async |ask| Service::create_credential(self, ask).await;
        self.answer("create credential", request, create).await
    }

    async fn revoke_credential(
        &self,
        request: Request<v1::RevokeCredentialRequest>,
    ) -> Reply<v1::Empty> {
        let revoke = async |ask| Service::revoke_credential(self, ask).await;
        self.answer("revoke credential", request, revoke).await
    }

    async fn list_credentials(&self, request: Request<v1::Empty>) -> Reply<v1::CredentialList> {
        let list = async |ask| Service::list_credentials(self, &ask);
        self.answer("list credentials", request, list).await
    }

    async fn list_fills(&self, request: Request<v1::Empty>) -> Reply<v1::FillList> {
        self.answer("list fills", request, async |ask| Service::list_fills(self, ask).await).await
    }

    async fn get_config(&self, request: Request<v1::Empty>) -> Reply<v1::ConfigText> {
        self.answer("get config", request, async |ask| self.config(&ask)).await
    }
}

/// The service as tonic routes it.
pub(crate) fn routes(service: Service) -> tonic::service::Routes {
    tonic::service::Routes::new(v1::mgmtd_server::MgmtdServer::from_arc(Arc::new(service)))
}
