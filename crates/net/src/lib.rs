//! The Transport trait over registered memory, the opening handshake, TCP and simulated networks.
//!
//! A caller lends a request's payload and the memory for the answer's ([`Call`]); the server reads
//! from the one and writes into the other ([`Request`], [`Response`]). TCP frames the bytes; a
//! transport with one-sided access moves them itself. Every connection, control plane included,
//! opens with the mutual challenge of `kiln_wire`, and afterwards both sides know the [`Peer`].
//!
//! Invariants: memory that a call lends belongs to the connection until the answer has arrived or
//! the connection is gone, whatever becomes of the caller. Every queue has a bound and every wait a
//! deadline: credits bound what one connection holds of a server, a budget for each hop what all of
//! them hold together. A request that servers pass on travels on another connection and counts in
//! another budget than the one it came from, so that servers which wait for each other cannot wait
//! in a circle.
#![forbid(unsafe_code)]

mod authority;
mod budget;
mod call;
mod control;
mod counters;
mod gate;
mod intake;
mod link;
mod opening;
mod options;
mod outbox;
mod peer;
mod pool;
mod server;
mod session;
mod simulated;
mod stream;
mod tcp;
mod transport;

pub use authority::{Authority, KeyRing};
pub use call::{Answer, Call, Cancelled, HOPS, Handler, Payload, Request, Response};
pub use control::{control_channel, peer_of};
pub use counters::{Counters, Refused};
pub use kiln_wire::{Credit, Identity, Purpose, Terms};
pub use options::{PoolOptions, ServerOptions};
pub use peer::{Peer, PeerKind};
pub use pool::ConnectionPool;
pub use server::Server;
pub use simulated::{SimulatedNetwork, SimulatedOptions, SimulatedTransport};
pub use tcp::TcpTransport;
pub use transport::{Connection, Link, Registration, Serving, Transport};
