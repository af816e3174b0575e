//! How requests reach the [`Service`], and what of the answers clients may keep.

use crate::holds::{Holds, Shown};
use crate::service::Service;
use crate::store::Store;
use crate::watch::Ask;
use async_trait::async_trait;
use kiln_net::{Handler, Peer, PeerKind, Request, Response};
use kiln_rpc::metadata::{WATCH, asked, decode, encode};
use kiln_rpc::{metadata_calls, v1};
use kiln_telemetry::REQUESTS;
use kiln_types::{ClientId, Code, Error, Result, RoutingInfo, ServiceKind};
use std::sync::Arc;
use std::time::Duration;

/// The longest time for which a request is worked on. Dropped then, it has happened or not; the
/// client asks again, and gets the recorded answer if it has.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(60);
/// How often something is read again because it changed meanwhile.
const READS_MAX: usize = 4;

macro_rules! dispatch {
    ($($(#[$doc:meta])* $number:literal $name:ident($request:ident) -> $reply:ident;)*) => {
        async fn dispatch(service: &Service, peer: &Peer, request: &Request) -> Result<Vec<u8>> {
            let (client, body) = asked(&request.body)?;
            match request.operation {
                WATCH => Ok(encode(&watch(service, peer, client, decode(body)?).await?)),
                $($number => {
                    let ask = decode::<v1::$request>(body)?;
                    let work = Box::pin(async {
                        let mut noting = Noting::begin(&service.store, client);
                        loop {
                            let result = service.$name(peer, ask.clone()).await;
                            if noting.is_done(&ask, &result) {
                                return result;
                            }
                        }
                    });
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

#[async_trait]
impl Handler for Service {
    async fn handle(&self, peer: &Arc<Peer>, request: Request) -> Result<Response> {
        dispatch(self, peer, &request).await.map(Response::new)
    }
}

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

/// Notes what a client that watches may keep of an answer.
struct Noting<'a> {
    store: &'a Store,
    client: ClientId,
    /// The last change before the request.
    before: u64,
    reads: usize,
}

impl<'a> Noting<'a> {
    fn begin(store: &'a Store, client: ClientId) -> Self {
        Self { store, client, before: store.last_change(), reads: 0 }
    }

    /// `false`: what was read has changed in between, and is to be read again.
    fn is_done<R: Holds, T: Holds>(&mut self, ask: &R, result: &Result<T>) -> bool {
        if !self.store.notes(self.client) {
            return true;
        }
        let mut shown = Shown::default();
        ask.note(&mut shown);
        result.iter().for_each(|reply| reply.note(&mut shown));
        let is_fresh = self.store.hold(self.client, self.before, &shown);
        self.before = self.store.last_change();
        self.reads += 1;
        is_fresh || !R::READS || self.reads == READS_MAX
    }
}

/// Answers a watcher that asks what changed.
async fn watch(
    service: &Service,
    peer: &Peer,
    client: ClientId,
    ask: v1::WatchRequest,
) -> Result<v1::Changes> {
    let servers = servers(&service.routing.borrow());
    let (confined, credential) = match &peer.kind {
        PeerKind::Client { name, limits } => (limits.subtree != "/", name.as_str()),
        PeerKind::Server => (false, ""),
    };
    let only = ask.only && servers.len() <= 1;
    let ask = Ask { watch: ask.watch, seen: ask.seen, only, confined };
    let (number, changes) = service.store.watch(client, credential, ask).await?;
    Ok(v1::Changes { number, servers, ..v1::Changes::from(&changes) })
}

fn servers(routing: &RoutingInfo) -> Vec<u64> {
    let meta = routing.nodes.values().filter(|node| node.kind == ServiceKind::Meta);
    meta.map(|node| node.id.0).collect()
}

impl From<&crate::watch::Changes> for v1::Changes {
    fn from(changes: &crate::watch::Changes) -> Self {
        let inodes = changes.inodes();
        let names = changes.names();
        Self {
            lost: changes.is_lost(),
            inodes: inodes
                .map(|(inode, content)| v1::ChangedInode { inode: inode.0, content })
                .collect(),
            names: names
                .map(|(parent, name)| v1::ChangedName { parent: parent.0, name: name.clone() })
                .collect(),
            unlocked: changes.unlocked_inodes().map(|inode| inode.0).collect(),
            appends: changes.appends().map(|inode| inode.0).collect(),
            ..Self::default()
        }
    }
}
