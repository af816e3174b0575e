//! The manager's calls over tonic: values to messages and back.

use async_trait::async_trait;
use kiln_env::Env;
use kiln_net::{Identity, control_channel};
use kiln_rpc::v1::mgmtd_client::MgmtdClient;
use kiln_rpc::{
    Heartbeat, ManagerCalls, Registered, Registration, RoutingUpdates, TargetOrders, convert,
    error_from_status, v1,
};
use kiln_types::{Error, Result, RoutingChange, RoutingVersion};
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

/// Calls to a manager.
pub type ManagerClient = MgmtdClient<Channel>;

/// The largest message: the routing information of a large cluster.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A client of the manager at `address`; it connects when it is first used.
///
/// # Errors
/// `Invalid` when the address is none.
pub fn manager_client(address: &str, identity: Identity, env: Env) -> Result<ManagerClient> {
    let channel = control_channel(address, identity, env)?;
    Ok(MgmtdClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// The manager behind a client of it.
pub(crate) struct OverTonic(pub(crate) ManagerClient);

#[async_trait]
impl ManagerCalls for OverTonic {
    async fn register(&self, registration: Registration) -> Result<Registered> {
        let request = v1::RegisterRequest::from(&registration);
        let reply = answer(self.0.clone().register(request).await)?;
        Ok(Registered {
            lease: positive(reply.lease_ms, "lease")?,
            heartbeat: positive(reply.heartbeat_ms, "heartbeat")?,
            routing: convert::required(reply.routing, "routing")?,
        })
    }

    async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<TargetOrders> {
        let request = v1::HeartbeatRequest::from(&heartbeat);
        TargetOrders::try_from(answer(self.0.clone().heartbeat(request).await)?)
    }

    async fn watch_routing(&self, known: RoutingVersion) -> Result<Box<dyn RoutingUpdates>> {
        let request = v1::WatchRoutingRequest { known_version: known.0 };
        let updates = answer(self.0.clone().watch_routing(request).await)?;
        Ok(Box::new(Updates(updates)))
    }
}

struct Updates(Streaming<v1::RoutingChange>);

#[async_trait]
impl RoutingUpdates for Updates {
    async fn next(&mut self) -> Result<Option<RoutingChange>> {
        let update = self.0.message().await.map_err(|status| error_from_status(&status))?;
        update.map(RoutingChange::try_from).transpose()
    }
}

fn answer<T>(result: Result<Response<T>, Status>) -> Result<T> {
    result.map(Response::into_inner).map_err(|status| error_from_status(&status))
}

fn positive(milliseconds: u64, name: &str) -> Result<Duration> {
    match milliseconds {
        0 => Err(Error::internal(format!("the manager gave a {name} of 0 ms"))),
        some => Ok(Duration::from_millis(some)),
    }
}
