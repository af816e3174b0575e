//! Metadata calls: sent to a metadata server, tried again until they are answered or too late.

use crate::client::deadline;
use kiln_env::Env;
use kiln_net::{Call, ConnectionPool, PoolOptions, Transport};
use kiln_rpc::{Origin, metadata, metadata_calls, v1};
use kiln_telemetry::{CALLS, Phase, about, phase};
use kiln_types::{
    Action, Caller, ClientId, Code, Error, InodeId, Node, NodeId, RequestId, Result, RoutingInfo,
    ServiceKind,
};
use parking_lot::Mutex;
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// The control plane of a client: the metadata calls as the .proto file has them.
pub struct Meta {
    env: Env,
    id: ClientId,
    connections: ConnectionPool,
    routing: watch::Receiver<Arc<RoutingInfo>>,
    timeout: Option<Duration>,
    server: Mutex<Kept>,
    slots: Arc<Mutex<Slots>>,
}

/// A server keeps one answer for each slot of a client: as many slots as calls are under way at a
/// time.
#[derive(Default)]
struct Slots {
    sequences: Vec<u64>,
    free: Vec<usize>,
}

/// See [`Meta::turn`].
pub struct Turn {
    origin: Origin,
    slot: usize,
    slots: Arc<Mutex<Slots>>,
}

impl Turn {
    /// What the call carries.
    pub fn origin(&self) -> Option<v1::Origin> {
        Some(v1::Origin::from(&self.origin))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.slots.lock().free.push(self.slot);
    }
}

/// The server that is asked now, the one that was asked before, and how many there were.
#[derive(Default)]
struct Kept {
    current: Option<Server>,
    left: Option<NodeId>,
    count: u64,
}

#[derive(Clone)]
struct Server {
    number: u64,
    node: NodeId,
    address: Arc<str>,
}

macro_rules! calls {
    ($($(#[$doc:meta])* $number:literal $name:ident($request:ident) -> $reply:ident;)*) => {
        impl Meta {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// The server's error, or the last one before the time was over.
                pub async fn $name(&self, request: v1::$request) -> Result<v1::$reply> {
                    let call = Asked {
                        what: stringify!($name),
                        operation: $number,
                        inode: steered_by(&request),
                        body: metadata::request(self.id, &request),
                    };
                    metadata::decode(&self.call(call).await?)
                }
            )*
        }
    };
}

metadata_calls!(calls);

impl Meta {
    /// Calls as client `id` over `transport`, each tried for `timeout`; `None`: until it is answered.
    pub fn new(
        env: Env,
        id: ClientId,
        transport: Arc<dyn Transport>,
        routing: watch::Receiver<Arc<RoutingInfo>>,
        timeout: Option<Duration>,
    ) -> Self {
        let connections = ConnectionPool::new(transport, connections(), env.clone());
        Self {
            env,
            id,
            connections,
            routing,
            timeout,
            server: Mutex::default(),
            slots: Arc::default(),
        }
    }

    /// The right to one changing call: who asks, under an id that stays through the call's retries.
    /// Keep it until the call has ended.
    pub fn turn(&self, caller: &Caller) -> Turn {
        let mut slots = self.slots.lock();
        let slot = slots.free.pop().unwrap_or_else(|| {
            slots.sequences.push(0);
            slots.sequences.len() - 1
        });
        slots.sequences[slot] += 1;
        let request = RequestId::in_slot(slot as u64, slots.sequences[slot]);
        let origin = Origin { caller: caller.clone(), client: self.id, request };
        Turn { origin, slot, slots: Arc::clone(&self.slots) }
    }

    /// Measures a call; it is a phase of what it is made for.
    async fn call(&self, ask: Asked) -> Result<Vec<u8>> {
        // Boxed: each layer around a future holds it twice.
        let what = ask.what;
        let work = Box::pin(self.call_until(ask));
        let measured = CALLS.measure(&self.env, what, "metadata", work);
        phase(&self.env, Phase::Meta, measured).await
    }

    async fn call_until(&self, ask: Asked) -> Result<Vec<u8>> {
        let Asked { what, operation, inode, body } = ask;
        let deadline = deadline(&self.env, self.timeout);
        let mut pause = PAUSE_MIN;
        loop {
            let error = match self.server(inode) {
                Ok(server) => {
                    about(|about| about.node = Some(server.node));
                    let attempt = self.env.deadline_after(ATTEMPT_TIMEOUT).min(deadline);
                    let call = Call::new(operation, body.clone(), attempt);
                    let sent = self.connections.call(&server.address, call);
                    match phase(&self.env, Phase::Meta, sent).await {
                        Ok(answer) => return Ok(answer.body),
                        Err(error) => {
                            self.judge(&server, &error);
                            error
                        }
                    }
                }
                Err(error) => error,
            };
            if matches!(error.action(), Action::GiveUp | Action::Operator) {
                return Err(error);
            }
            tracing::debug!(what, %error, "metadata call failed");
            if deadline.left(self.env.now()) <= pause {
                return Err(error.while_doing(format_args!("metadata call '{what}'")));
            }
            let paused = self.pause(self.env.jittered(pause));
            phase(&self.env, Phase::Pause, paused).await;
            pause = PAUSE_MAX.min(pause * 2);
        }
    }

    /// Waits; news of who is up end that early.
    async fn pause(&self, pause: Duration) {
        let mut routing = self.routing.clone();
        routing.mark_unchanged();
        if let Ok(Err(_)) = self.env.timeout(pause, "routing", routing.changed()).await {
            self.env.sleep(pause).await;
        }
    }

    /// Leaves a server that did not answer for another one, if there is one. Calls side by side may
    /// find that out one after the other: only the first leaves it.
    fn judge(&self, server: &Server, error: &Error) {
        let answered = !matches!(
            error.code(),
            Code::Unreachable | Code::ConnectionLost | Code::DeadlineExceeded | Code::Cancelled
        );
        let mut kept = self.server.lock();
        let is_current = kept.current.as_ref().is_some_and(|kept| kept.number == server.number);
        if !answered && (is_current || server.number == STEERED) {
            kept.left = Some(server.node);
            kept.current.take_if(|kept| kept.node == server.node);
        }
    }

    /// The server that was used last, or any that lives, or the one to which an inode's changes are steered; not the
    /// one that was left last unless it is the only one.
    fn server(&self, inode: Option<InodeId>) -> Result<Server> {
        let routing = self.routing.borrow();
        let alive = |server: &Server| {
            let node = routing.nodes.get(&server.node);
            node.is_some_and(|node| node.alive && *node.address == *server.address)
        };
        let mut kept = self.server.lock();
        if let (None, Some(server)) = (inode, kept.current.as_ref().filter(|server| alive(server)))
        {
            return Ok(server.clone());
        }
        let is_up = |node: &&Node| node.kind == ServiceKind::Meta && node.alive;
        let mut meta: Vec<_> = routing.nodes.values().filter(is_up).collect();
        if meta.len() > 1 {
            meta.retain(|node| Some(node.id) != kept.left);
        }
        let any = || meta.get(self.env.random_below(meta.len().max(1) as u64) as usize).copied();
        let node = match inode {
            Some(inode) => meta.iter().copied().max_by_key(|node| weight(inode, node.id)),
            None => any(),
        };
        let node = node.ok_or_else(|| Error::new(Code::NotReady, "no metadata server is up"))?;
        let server =
            |number| Server { number, node: node.id, address: node.address.as_str().into() };
        if inode.is_some() {
            return Ok(server(STEERED));
        }
        kept.count += 1;
        let server = server(kept.count);
        kept.current = Some(server.clone());
        Ok(server)
    }
}

/// The number of a [`Server`] to which an inode's changes are steered.
const STEERED: u64 = 0;

/// A call to be made.
struct Asked {
    what: &'static str,
    operation: u16,
    /// See [`steered_by`].
    inode: Option<InodeId>,
    body: Vec<u8>,
}

/// Requests that change the length of an open file go to one server for each inode: two servers that change it at
/// the same time would only be in each other's way.
fn steered_by(request: &dyn Any) -> Option<InodeId> {
    let close = request.downcast_ref().map(|ask: &v1::CloseRequest| ask.inode);
    let sync = || request.downcast_ref().map(|ask: &v1::SyncRequest| ask.inode);
    let renew = || request.downcast_ref().map(|ask: &v1::RenewRequest| ask.inode);
    close.or_else(sync).or_else(renew).map(InodeId)
}

/// How much a server is for an inode (rendezvous hashing: Thaler and Ravishankar, 1998): the highest one is it, and
/// when a server comes or goes only what is its own moves.
fn weight(inode: InodeId, node: NodeId) -> u64 {
    // The finalizer of SplitMix64.
    let mut mixed =
        inode.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ node.0.wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn connections() -> PoolOptions {
    PoolOptions { backoff_min: PAUSE_MIN, backoff_max: PAUSE_MAX, ..PoolOptions::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_are_shared_out_and_move_only_with_their_server() {
        let best = |inode: u64, nodes: &[u64]| {
            nodes.iter().copied().max_by_key(|node| weight(InodeId(inode), NodeId(*node))).unwrap()
        };
        let mut shares = [0; 4];
        for inode in 1..4000 {
            let (all, fewer) = (best(inode, &[1, 2, 3]), best(inode, &[1, 3]));
            shares[all as usize] += 1;
            assert!(all == fewer || all == 2, "inode {inode} moves from {all} to {fewer}");
        }
        assert!(shares[1..].iter().all(|share| (1200..1470).contains(share)), "{shares:?}");
    }
}
