//! The one abstraction: registered memory and one-sided transfer.

use crate::authority::Authority;
use crate::call::{Answer, Call, Handler};
use crate::counters::Counters;
use crate::options::ServerOptions;
use crate::peer::Peer;
use async_trait::async_trait;
use kiln_memory::Buffer;
use kiln_types::{Deadline, Error, Result};
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

/// A way to reach peers. All of them pass one conformance suite.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Its name, as operators see it: `tcp`, `simulated`.
    fn name(&self) -> &'static str;

    /// Makes memory known to the transport, so that peers may be given access to it without a
    /// set-up in each call. Calls may lend memory that is not registered; a transport that needs
    /// registration then does it, or copies.
    ///
    /// # Errors
    /// `Local` when the system refuses to pin the memory.
    fn register(&self, memory: &Buffer) -> Result<Registration>;

    /// Opens a connection and proves to each other who is there.
    ///
    /// # Errors
    /// `Unreachable` when nobody answers, the peer's refusal, or `DeadlineExceeded`.
    async fn connect(&self, address: &str, deadline: Deadline) -> Result<Connection>;

    /// Listens for connections and answers requests with `handler` until the result is dropped.
    ///
    /// # Errors
    /// `Busy` when the address is taken, `Local` when the system refuses it.
    async fn serve(
        &self,
        options: ServerOptions,
        authority: Arc<dyn Authority>,
        handler: Arc<dyn Handler>,
    ) -> Result<Box<dyn Serving>>;
}

/// Memory that a transport knows, until this is dropped.
pub struct Registration {
    _held: Option<Box<dyn Any + Send + Sync>>,
}

impl Registration {
    /// For a transport that needs none.
    pub fn none() -> Self {
        Self { _held: None }
    }

    /// Holds what ends the registration when it is dropped.
    pub fn holding(held: Box<dyn Any + Send + Sync>) -> Self {
        Self { _held: Some(held) }
    }
}

/// The connector's end of a connection, as a transport implements it; callers use [`Connection`].
#[async_trait]
pub trait Link: Send + Sync {
    /// See [`Connection::call`].
    ///
    /// # Errors
    /// See [`Connection::call`].
    async fn call(&self, call: Call) -> Result<Answer>;

    /// The acceptor.
    fn peer(&self) -> &Arc<Peer>;

    /// Whether new calls can only fail.
    fn is_closed(&self) -> bool;

    /// Ends it; what is outstanding fails with `reason`.
    fn close(&self, reason: Error);
}

/// A connection to a server. Clones share it; it closes with the last of them.
#[derive(Clone)]
pub struct Connection {
    link: Arc<dyn Link>,
}

impl Connection {
    /// Wraps a transport's link.
    pub fn new(link: Arc<dyn Link>) -> Self {
        Self { link }
    }

    /// Sends a request and waits for its answer. Many calls may be under way; answers come in any
    /// order. Dropping the future tells the server that the answer is not wanted; memory that the
    /// call lent stays with the connection until the server has confirmed.
    ///
    /// # Errors
    /// The handler's error; `DeadlineExceeded` and `ConnectionLost`, after both of which it is
    /// unknown whether the request took effect; `Invalid` for a call above the protocol's limits.
    pub async fn call(&self, call: Call) -> Result<Answer> {
        self.link.call(call).await
    }

    /// The server.
    pub fn peer(&self) -> &Arc<Peer> {
        self.link.peer()
    }

    /// Whether new calls can only fail.
    pub fn is_closed(&self) -> bool {
        self.link.is_closed()
    }

    /// Ends the connection; what is outstanding fails with `reason`.
    pub fn close(&self, reason: Error) {
        self.link.close(reason);
    }
}

/// A listening server. Dropping it ends everything at once.
#[async_trait]
pub trait Serving: Send + Sync {
    /// Where it listens, `host:port` with the port that was taken.
    fn address(&self) -> &str;

    /// What it has counted.
    fn counters(&self) -> &Arc<Counters>;

    /// Takes no new connections and requests, lets those under way finish for at most `grace`, then
    /// ends everything.
    async fn shutdown(&self, grace: Duration);
}
