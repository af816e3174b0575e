//! How requests reach the [`Service`]: calls from connections of frames, the stream of changes from tonic.

use crate::service::Service;
use crate::watching::{Messages, messages};
use async_trait::async_trait;
use kiln_net::{Handler, Peer, PeerKind, Request, Response, peer_of};
use kiln_rpc::convert::id_from;
use kiln_rpc::metadata::{decode, encode};
use kiln_rpc::{metadata_calls, status_from_error, v1};
use kiln_telemetry::REQUESTS;
use kiln_types::{Code, Error, Result};
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

/// The longest time for which a request is worked on. Dropped then, it has happened or not; the
/// client asks again, and gets the recorded answer if it has.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(60);

macro_rules! dispatch {
    ($($(#[$doc:meta])* $number:literal $name:ident($request:ident) -> $reply:ident;)*) => {
        async fn dispatch(service: &Service, peer: &Peer, request: &Request) -> Result<Vec<u8>> {
            match request.operation {
                $($number => {
                    let ask = decode::<v1::$request>(&request.body)?;
                    let work = Box::pin(service.$name(peer, ask));
                    measured(service, peer, stringify!($name), work).await.map(|reply| encode(&reply))
                })*
                number => {
                    let text = format!("metadata call {number:#x} is not known");
                    Err(Error::new(Code::Unsupported, text))
                }
            }
        }
    };
}

metadata_calls!(dispatch);

async fn measured<T>(
    service: &Service,
    peer: &Peer,
    operation: &'static str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let env = service.store.env();
    let work = async {
        let result = env.timeout(REQUEST_TIME_MAX, operation, work).await;
        result.flatten().inspect_err(|error| tracing::debug!(%error, "refused"))
    };
    REQUESTS.measure(env, operation, &peer.address, work).await
}

#[async_trait]
impl Handler for Service {
    async fn handle(&self, peer: &Arc<Peer>, request: Request) -> Result<Response> {
        dispatch(self, peer, &request).await.map(Response::new)
    }
}

/// The stream of changes, for tonic.
pub(crate) struct Watching(pub(crate) Arc<Service>);

impl Watching {
    async fn begin(&self, peer: &Peer, ask: v1::WatchRequest) -> Result<Messages> {
        let store = &self.0.store;
        let confined = match &peer.kind {
            PeerKind::Client { limits, .. } => limits.subtree != "/",
            PeerKind::Server => false,
        };
        Ok(messages(store.env(), store.watch(id_from(&ask.client)?, confined)?))
    }
}

#[async_trait]
impl v1::meta_server::Meta for Watching {
    type WatchStream = Messages;

    async fn watch(
        &self,
        request: tonic::Request<v1::WatchRequest>,
    ) -> std::result::Result<tonic::Response<Messages>, Status> {
        let begun = async {
            let peer = peer_of(&request)?;
            let ask = request.get_ref().clone();
            measured(&self.0, &peer, "watch", self.begin(&peer, ask)).await
        };
        begun.await.map(tonic::Response::new).map_err(|error| status_from_error(&error))
    }
}
