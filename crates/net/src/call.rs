//! A call and its answer, as the two ends see them.

use crate::peer::Peer;
use async_trait::async_trait;
use kiln_memory::{Buffer, Bytes};
use kiln_types::{Deadline, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Hops that are told apart: 0 from whoever began the request, then once for each server that
/// passed it on. Deeper ones share the last.
pub const HOPS: usize = 4;

/// A request as the caller makes it.
#[derive(Debug)]
pub struct Call {
    /// What is asked for; the message layer numbers them.
    pub operation: u16,
    /// 0, or one more than the hop of the request on whose behalf this one is made.
    pub hop: u8,
    /// The message, at most [`kiln_wire::BODY_BYTES_MAX`] bytes.
    pub body: Vec<u8>,
    /// Bulk bytes for the server, at most [`kiln_wire::PAYLOAD_BYTES_MAX`].
    pub payload: Option<Bytes>,
    /// Memory for the bulk bytes of the answer. It belongs to the connection until the answer is
    /// there.
    pub receive: Option<Buffer>,
    /// When the caller stops waiting.
    pub deadline: Deadline,
}

impl Call {
    /// A call without bulk bytes.
    pub fn new(operation: u16, body: Vec<u8>, deadline: Deadline) -> Self {
        Self { operation, hop: 0, body, payload: None, receive: None, deadline }
    }

    /// Adds bulk bytes for the server.
    #[must_use]
    pub fn with_payload(mut self, payload: Bytes) -> Self {
        self.payload = Some(payload);
        self
    }

    /// Lends memory for the bulk bytes of the answer.
    #[must_use]
    pub fn with_receive(mut self, receive: Buffer) -> Self {
        self.receive = Some(receive);
        self
    }

    /// Says that the call is made on behalf of `request`.
    #[must_use]
    pub fn on_behalf_of(mut self, request: &Request) -> Self {
        self.hop = request.hop.saturating_add(1);
        self
    }
}

/// What comes back.
#[derive(Debug)]
pub struct Answer {
    /// The message.
    pub body: Vec<u8>,
    /// The memory that the call lent, cut to what the server put there; `None` if it lent none.
    pub received: Option<Buffer>,
}

/// A request as the server sees it.
#[derive(Debug)]
pub struct Request {
    /// What is asked for.
    pub operation: u16,
    /// How often servers passed it on.
    pub hop: u8,
    /// The message; its checksum was right.
    pub body: Vec<u8>,
    /// Bulk bytes from the caller.
    pub payload: Payload,
    /// How many bulk bytes the answer may have.
    pub receive_capacity: u32,
    /// When the caller stops waiting.
    pub deadline: Deadline,
    /// Whether the caller still waits.
    pub cancelled: Cancelled,
}

/// The bulk bytes of a request. TCP has them already; a transport with one-sided access fetches
/// them from the caller's memory when they are taken.
#[derive(Debug, Default)]
pub struct Payload {
    here: Option<Bytes>,
}

impl Payload {
    /// A payload that has arrived.
    pub fn here(bytes: Bytes) -> Self {
        Self { here: Some(bytes) }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.here.as_ref().map_or(0, |bytes| bytes.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, in memory of this process that nobody else can write. A second call gets none.
    ///
    /// # Errors
    /// `ConnectionLost` when the caller went away before they were fetched (not with TCP).
    pub async fn take(&mut self) -> Result<Bytes> {
        Ok(self.here.take().unwrap_or_else(Bytes::empty))
    }
}

/// Says whether the caller of a request gave up.
#[derive(Clone, Debug, Default)]
pub struct Cancelled(Arc<AtomicBool>);

impl Cancelled {
    /// Whether the caller does not want the answer any more, or its connection is gone.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What the handler answers.
#[derive(Debug, Default)]
pub struct Response {
    /// The message, at most [`kiln_wire::BODY_BYTES_MAX`] bytes.
    pub body: Vec<u8>,
    /// Bulk bytes, at most the request's `receive_capacity`.
    pub payload: Option<Bytes>,
}

impl Response {
    /// An answer without bulk bytes.
    pub fn new(body: Vec<u8>) -> Self {
        Self { body, payload: None }
    }

    /// Adds bulk bytes.
    #[must_use]
    pub fn with_payload(mut self, payload: Bytes) -> Self {
        self.payload = Some(payload);
        self
    }
}

/// What a server does with requests. Each request runs in a task of its own; it runs to its end
/// even when the caller gives up, so a handler that waits watches the deadline itself.
#[async_trait]
pub trait Handler: Send + Sync {
    /// Answers one request.
    ///
    /// # Errors
    /// Any: code, message and hint reach the caller.
    async fn handle(&self, peer: &Arc<Peer>, request: Request) -> Result<Response>;
}
