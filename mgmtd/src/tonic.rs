//! The manager's calls over tonic: messages to values and back.

use crate::manager::Answer;
use crate::operations::Operation;
use crate::service::{Counter, Service};
use kiln_env::Env;
use kiln_net::peer_of;
use kiln_rpc::v1::mgmtd_server::{Mgmtd, MgmtdServer};
use kiln_rpc::{Drain, Heartbeat, ManagerCalls, Registration, convert, status_from_error, v1};
use kiln_telemetry::REQUESTS;
use kiln_types::{ChainId, Error, NodeId, Result, RoutingVersion, TargetId};
use std::pin::Pin;
use tokio_stream::{Stream, StreamExt};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// What tonic serves.
struct OverTonic {
    service: Service,
    env: Env,
}

type Reply<T> = Result<Response<T>, Status>;
type Updates = Pin<Box<dyn Stream<Item = Result<v1::RoutingChange, Status>> + Send>>;

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl OverTonic {
    /// Measures a request, and turns its error into a status.
    async fn answer<R, T>(
        &self,
        operation: &'static str,
        request: Request<R>,
        handle: impl AsyncFnOnce(&Counter, R) -> Result<T>,
    ) -> Reply<T> {
        let peer = peer_of(&request).map_err(|error| status_from_error(&error))?;
        let address = peer.address.clone();
        let counter = self.service.counter(peer);
        let work = async {
            let handled = handle(&counter, request.into_inner()).await;
            handled.inspect_err(|error| tracing::debug!(%error, "refused"))
        };
        let result = REQUESTS.measure(&self.env, operation, &address, work).await;
        result.map(Response::new).map_err(|error| status_from_error(&error))
    }
}

async fn register(counter: &Counter, request: v1::RegisterRequest) -> Result<v1::RegisterReply> {
    let registered = counter.register(Registration::try_from(request)?).await?;
    Ok(v1::RegisterReply {
        routing: Some(v1::RoutingInfo::from(&registered.routing)),
        lease_ms: milliseconds(registered.lease),
        heartbeat_ms: milliseconds(registered.heartbeat),
    })
}

async fn heartbeat(counter: &Counter, request: v1::HeartbeatRequest) -> Result<v1::HeartbeatReply> {
    let orders = counter.heartbeat(Heartbeat::try_from(request)?).await?;
    Ok(orders.reply(counter.routing_version()?))
}

fn watch(counter: &Counter, request: v1::WatchRoutingRequest) -> Result<Updates> {
    let news = counter.news_after(RoutingVersion(request.known_version))?;
    Ok(Box::pin(news.map(|change| Ok(v1::RoutingChange::from(&*change)))))
}

async fn create_credential(
    counter: &Counter,
    request: v1::CreateCredentialRequest,
) -> Result<v1::CredentialSecret> {
    let v1::CreateCredentialRequest { name, limits } = request;
    let limits = convert::required(limits, "limits")?;
    Ok(v1::CredentialSecret::from(&counter.create_credential(name, limits).await?))
}

async fn revoke_credential(
    counter: &Counter,
    request: v1::RevokeCredentialRequest,
) -> Result<v1::Empty> {
    counter.revoke_credential(request.name).await.map(|()| v1::Empty {})
}

fn list_credentials(counter: &Counter) -> Result<v1::CredentialList> {
    let credentials = counter.credentials()?.iter().map(v1::CredentialInfo::from).collect();
    Ok(v1::CredentialList { credentials })
}

async fn list_fills(counter: &Counter) -> Result<v1::FillList> {
    let fills = counter.fills().await?;
    Ok(v1::FillList { fills: fills.iter().map(v1::FillProgress::from).collect() })
}

async fn set_setting(counter: &Counter, request: v1::SetSettingRequest) -> Result<v1::Empty> {
    counter.set_setting(request.name, request.value).await.map(|()| v1::Empty {})
}

async fn list_settings(counter: &Counter) -> Result<v1::SettingList> {
    let (settings, changes) = counter.settings().await?;
    let changes = changes.iter().map(v1::SettingChange::from).collect();
    Ok(v1::SettingList { settings: settings.into_iter().collect(), changes })
}

async fn drain(counter: &Counter, request: v1::DrainRequest) -> Result<v1::Empty> {
    let drain: Drain = convert::required(request.drain, "drain")?;
    let operation = match request.cancel {
        true => Operation::CancelDrain(drain.what),
        false => Operation::Drain(drain),
    };
    counter.operate(operation).await.map(|_| v1::Empty {})
}

async fn rebalance(counter: &Counter, request: v1::RebalanceRequest) -> Result<v1::MoveList> {
    let operation = match request.cancel {
        true => Operation::CancelRebalance,
        false => Operation::Rebalance { dry_run: request.dry_run },
    };
    let moves = match counter.operate(operation).await? {
        Answer::Moves(moves) => moves.iter().map(v1::MoveInfo::from).collect(),
        _ => Vec::new(),
    };
    Ok(v1::MoveList { moves })
}

async fn recover(counter: &Counter, request: v1::RecoverChainRequest) -> Result<v1::Empty> {
    let (chain, from) = (ChainId(request.chain), TargetId(request.from));
    counter.operate(Operation::RecoverChain { chain, from }).await.map(|_| v1::Empty {})
}

async fn extend(
    counter: &Counter,
    request: v1::ExtendTableRequest,
) -> Result<v1::ExtendTableReply> {
    let targets_per_disk = request.targets_per_disk;
    match counter.operate(Operation::ExtendTable { targets_per_disk }).await? {
        Answer::Extended(extension) => {
            Ok(v1::ExtendTableReply { version: extension.version, chains: extension.count })
        }
        _ => Err(Error::internal("the order of more chains got another answer")),
    }
}

async fn forget_node(counter: &Counter, request: v1::ForgetNodeRequest) -> Result<v1::Empty> {
    counter.operate(Operation::ForgetNode(NodeId(request.node))).await.map(|_| v1::Empty {})
}

async fn operations(counter: &Counter) -> Result<v1::OperationList> {
    match counter.operate(Operation::List).await? {
        Answer::Operations(operations) => Ok(v1::OperationList::from(&operations)),
        _ => Err(Error::internal("the list of operations got another answer")),
    }
}

fn config(counter: &Counter) -> Result<v1::ConfigText> {
    Ok(v1::ConfigText { toml: counter.config()?.to_owned() })
}

#[tonic::async_trait]
impl Mgmtd for OverTonic {
    type WatchRoutingStream = Updates;

    async fn register(&self, request: Request<v1::RegisterRequest>) -> Reply<v1::RegisterReply> {
        self.answer("register", request, async |counter, ask| register(counter, ask).await).await
    }

    async fn heartbeat(&self, request: Request<v1::HeartbeatRequest>) -> Reply<v1::HeartbeatReply> {
        self.answer("heartbeat", request, async |counter, ask| heartbeat(counter, ask).await).await
    }

    async fn watch_routing(&self, request: Request<v1::WatchRoutingRequest>) -> Reply<Updates> {
        self.answer("watch routing", request, async |counter, ask| watch(counter, ask)).await
    }

    async fn create_credential(
        &self,
        request: Request<v1::CreateCredentialRequest>,
    ) -> Reply<v1::CredentialSecret> {
        let create = async |counter: &_, ask| create_credential(counter, ask).await;
        self.answer("create credential", request, create).await
    }

    async fn revoke_credential(
        &self,
        request: Request<v1::RevokeCredentialRequest>,
    ) -> Reply<v1::Empty> {
        let revoke = async |counter: &_, ask| revoke_credential(counter, ask).await;
        self.answer("revoke credential", request, revoke).await
    }

    async fn list_credentials(&self, request: Request<v1::Empty>) -> Reply<v1::CredentialList> {
        self.answer("list credentials", request, async |counter, _| list_credentials(counter)).await
    }

    async fn list_fills(&self, request: Request<v1::Empty>) -> Reply<v1::FillList> {
        self.answer("list fills", request, async |counter, _| list_fills(counter).await).await
    }

    async fn set_setting(&self, request: Request<v1::SetSettingRequest>) -> Reply<v1::Empty> {
        self.answer("set setting", request, async |counter, ask| set_setting(counter, ask).await)
            .await
    }

    async fn list_settings(&self, request: Request<v1::Empty>) -> Reply<v1::SettingList> {
        self.answer("list settings", request, async |counter, _| list_settings(counter).await).await
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Reply<v1::Empty> {
        self.answer("drain", request, async |counter, ask| drain(counter, ask).await).await
    }

    async fn rebalance(&self, request: Request<v1::RebalanceRequest>) -> Reply<v1::MoveList> {
        self.answer("rebalance", request, async |counter, ask| rebalance(counter, ask).await).await
    }

    async fn recover_chain(&self, request: Request<v1::RecoverChainRequest>) -> Reply<v1::Empty> {
        self.answer("recover chain", request, async |counter, ask| recover(counter, ask).await)
            .await
    }

    async fn extend_table(
        &self,
        request: Request<v1::ExtendTableRequest>,
    ) -> Reply<v1::ExtendTableReply> {
        self.answer("extend table", request, async |counter, ask| extend(counter, ask).await).await
    }

    async fn forget_node(&self, request: Request<v1::ForgetNodeRequest>) -> Reply<v1::Empty> {
        self.answer("forget node", request, async |counter, ask| forget_node(counter, ask).await)
            .await
    }

    async fn list_operations(&self, request: Request<v1::Empty>) -> Reply<v1::OperationList> {
        let list = async |counter: &_, _| operations(counter).await;
        self.answer("list operations", request, list).await
    }

    async fn get_config(&self, request: Request<v1::Empty>) -> Reply<v1::ConfigText> {
        self.answer("get config", request, async |counter, _| config(counter)).await
    }
}

/// The service as tonic routes it.
pub(crate) fn routes(service: Service, env: Env) -> Routes {
    Routes::new(MgmtdServer::new(OverTonic { service, env }))
}
