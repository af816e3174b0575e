//! Goal: tonic works over streams that passed the handshake, handlers see who asks, and whoever may
//! not ask hears why. Method: one service of the control plane, with a body for the tests, on a
//! real server.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use async_trait::async_trait;
use common::*;
use kiln_env::Env;
use kiln_net::{
    Handler, Identity, KeyRing, Server, ServerOptions, Serving, TcpTransport, Transport,
    control_channel, peer_of,
};
use kiln_rpc::v1::mgmtd_client::MgmtdClient;
use kiln_rpc::v1::mgmtd_server::{Mgmtd, MgmtdServer};
use kiln_rpc::v1::{
    ConfigText, CreateCredentialRequest, CredentialList, CredentialSecret, DrainRequest, Empty,
    ExtendTableReply, ExtendTableRequest, FillList, ForgetNodeRequest, HeartbeatReply,
    HeartbeatRequest, MoveList, OperationList, RebalanceRequest, RecoverChainRequest,
    RegisterReply, RegisterRequest, RevokeCredentialRequest, RoutingChange, SetSettingRequest,
    SettingList, WatchRoutingRequest,
};
use kiln_rpc::{error_from_status, status_from_error};
use kiln_types::{Code, Error, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// Says who asks; its stream never ends by itself.
struct Who;

type Answer<T> = std::result::Result<Response<T>, Status>;

fn absent<T>() -> Answer<T> {
    Err(status_from_error(&Error::new(Code::Unsupported, "not in this test").with_hint("go on")))
}

#[async_trait]
impl Mgmtd for Who {
    type WatchRoutingStream = ReceiverStream<std::result::Result<RoutingChange, Status>>;

    async fn register(&self, _: Request<RegisterRequest>) -> Answer<RegisterReply> {
        absent()
    }

    async fn heartbeat(&self, _: Request<HeartbeatRequest>) -> Answer<HeartbeatReply> {
        std::future::pending().await
    }

    async fn watch_routing(
        &self,
        _: Request<WatchRoutingRequest>,
    ) -> Answer<Self::WatchRoutingStream> {
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        sender.send(Ok(RoutingChange::default())).await.unwrap();
        // The sender lives as long as the process: the stream stays open.
        std::mem::forget(sender);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn create_credential(
        &self,
        _: Request<CreateCredentialRequest>,
    ) -> Answer<CredentialSecret> {
        absent()
    }

    async fn revoke_credential(&self, _: Request<RevokeCredentialRequest>) -> Answer<Empty> {
        absent()
    }

    async fn list_credentials(&self, _: Request<Empty>) -> Answer<CredentialList> {
        absent()
    }

    async fn list_fills(&self, _: Request<Empty>) -> Answer<FillList> {
        absent()
    }

    async fn set_setting(&self, _: Request<SetSettingRequest>) -> Answer<Empty> {
        absent()
    }

    async fn list_settings(&self, _: Request<Empty>) -> Answer<SettingList> {
        absent()
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Answer<Empty> {
        absent()
    }

    async fn rebalance(&self, _: Request<RebalanceRequest>) -> Answer<MoveList> {
        absent()
    }

    async fn recover_chain(&self, _: Request<RecoverChainRequest>) -> Answer<Empty> {
        absent()
    }

    async fn extend_table(&self, _: Request<ExtendTableRequest>) -> Answer<ExtendTableReply> {
        absent()
    }

    async fn forget_node(&self, _: Request<ForgetNodeRequest>) -> Answer<Empty> {
        absent()
    }

    async fn list_operations(&self, _: Request<Empty>) -> Answer<OperationList> {
        absent()
    }

    async fn get_config(&self, request: Request<Empty>) -> Answer<ConfigText> {
        let peer = peer_of(&request).map_err(|error| status_from_error(&error))?;
        Ok(Response::new(ConfigText { toml: peer.to_string() }))
    }
}

struct Served {
    env: Env,
    ring: Arc<KeyRing>,
    serving: Box<dyn Serving>,
}

impl Served {
    async fn new(data: bool) -> Self {
        let (env, ring) = (Env::real(), ring());
        let options = ServerOptions { terms: terms(7), ..ServerOptions::default() };
        let server = Server::bind(options, Arc::clone(&ring) as _, env.clone()).await.unwrap();
        let handler = data.then(|| Face::new(&env) as Arc<dyn Handler>);
        let routes = Routes::new(MgmtdServer::new(Who));
        let serving = server.serve(handler, Some(routes)).unwrap();
        Self { env, ring, serving }
    }

    fn client(&self, identity: Identity) -> MgmtdClient<Channel> {
        let address = self.serving.address();
        MgmtdClient::new(control_channel(address, identity, self.env.clone()).unwrap())
    }
}

async fn who(client: &mut MgmtdClient<Channel>) -> Result<String> {
    let answer = client.get_config(Empty {}).await;
    answer.map(|answer| answer.into_inner().toml).map_err(|status| error_from_status(&status))
}

#[tokio::test]
async fn handlers_see_the_peer_on_one_port_for_both_planes() {
    let served = Served::new(true).await;
    let mut user = served.client(client());
    assert!(who(&mut user).await.unwrap().starts_with("client 'laptop' at 127.0.0.1:"));
    let mut server = served.client(Identity::Server(server_key(9)));
    assert!(who(&mut server).await.unwrap().starts_with("server at 127.0.0.1:"));
    let error = user.register(RegisterRequest::default()).await.map(|_| ()).unwrap_err();
    let expected = Error::new(Code::Unsupported, "not in this test").with_hint("go on");
    assert_eq!(error_from_status(&error), expected);
    let data = TcpTransport::new(client(), served.env.clone());
    let deadline = served.env.deadline_after(Duration::from_secs(5));
    let connection = data.connect(served.serving.address(), deadline).await.unwrap();
    connection.call(kiln_net::Call::new(ECHO, vec![1], deadline)).await.unwrap();
}

#[tokio::test]
async fn many_requests_share_a_channel() {
    let served = Served::new(false).await;
    let client = served.client(client());
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let mut client = client.clone();
            served.env.spawn("call", async move { who(&mut client).await })
        })
        .collect();
    for call in calls {
        call.join().await.unwrap().unwrap();
    }
    assert_eq!(served.serving.counters().accepted.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_refused_handshake_tells_the_caller_why() {
    let served = Served::new(false).await;
    let wrong = kiln_wire::credential(&server_key(8), "laptop").unwrap();
    let mut stranger = served.client(Identity::Client(wrong));
    for _ in 0..2 {
        let error = who(&mut stranger).await.unwrap_err();
        assert_eq!(error.code(), Code::NotAuthenticated);
        assert!(error.message().contains("the secret of credential 'laptop' is wrong"), "{error}");
    }
    served.ring.set_credentials(&[record("laptop", true)]);
    let error = who(&mut served.client(client())).await.unwrap_err();
    assert_eq!(error.code(), Code::NotAuthorized);
    assert!(error.message().contains("credential 'laptop' was revoked"), "{error}");
    let data = TcpTransport::new(Identity::Server(server_key(9)), served.env.clone());
    let deadline = served.env.deadline_after(Duration::from_secs(5));
    let error = data.connect(served.serving.address(), deadline).await.err().unwrap();
    assert_eq!(error.code(), Code::Unsupported);
    assert!(error.message().contains("has no data plane"), "{error}");
}

#[tokio::test]
async fn a_channel_connects_when_the_server_comes_and_again_when_it_comes_back() {
    let served = Served::new(false).await;
    let address = served.serving.address().to_owned();
    let mut client = served.client(client());
    served.serving.shutdown(Duration::from_secs(1)).await;
    let error = who(&mut client).await.unwrap_err();
    assert_eq!(error.code(), Code::Unreachable);
    assert!(error.message().contains("nobody listens at"), "{error}");
    let options = ServerOptions { address, ..ServerOptions::default() };
    for _ in 0..2 {
        let ring = Arc::clone(&served.ring) as _;
        let server = Server::bind(options.clone(), ring, served.env.clone()).await.unwrap();
        let again = server.serve(None, Some(Routes::new(MgmtdServer::new(Who)))).unwrap();
        who(&mut client).await.unwrap();
        drop(again);
        assert!(who(&mut client).await.is_err());
    }
}

#[tokio::test]
async fn a_revoked_credential_ends_requests_and_streams() {
    let served = Served::new(false).await;
    let (mut asking, mut listening) = (served.client(client()), served.client(client()));
    who(&mut asking).await.unwrap();
    let stream = listening.watch_routing(WatchRoutingRequest::default()).await.unwrap();
    let mut stream = stream.into_inner();
    stream.next().await.unwrap().unwrap();
    served.ring.set_credentials(&[record("laptop", true)]);
    // The connection breaks first; the attempt to make it again is refused.
    let mut error = who(&mut asking).await.unwrap_err();
    if error.code() == Code::ConnectionLost {
        error = who(&mut asking).await.unwrap_err();
    }
    assert_eq!(error.code(), Code::NotAuthorized, "{error}");
    let end = served.env.timeout(Duration::from_secs(4), "end of the stream", stream.next());
    assert!(!matches!(end.await.unwrap(), Some(Ok(_))));
}

#[tokio::test]
async fn shutdown_does_not_wait_for_streams_for_ever() {
    let served = Served::new(false).await;
    let mut client = served.client(client());
    let stream = client.watch_routing(WatchRoutingRequest::default()).await.unwrap();
    let start = served.env.now();
    served.serving.shutdown(Duration::from_millis(300)).await;
    assert!(served.env.now().since(start) < Duration::from_secs(2));
    let mut stream = stream.into_inner();
    stream.next().await.unwrap().unwrap();
    let end = served.env.timeout(Duration::from_secs(4), "end of the stream", stream.next());
    assert!(!matches!(end.await.unwrap(), Some(Ok(_))));
}
