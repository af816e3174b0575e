//! What can be set, with defaults for a server of moderate size.

use kiln_memory::Pool;
use kiln_wire::{Credit, Terms};
use std::time::Duration;

/// How a server listens and what it lets callers hold.
#[derive(Clone)]
pub struct ServerOptions {
    /// Where to listen, `host:port`; port 0 takes a free one.
    pub address: String,
    /// What the server speaks, and its node id.
    pub terms: Terms,
    /// Where the payloads of requests land.
    pub pool: Pool,
    /// How long a caller may take for the handshake.
    pub handshake_timeout: Duration,
    /// Connections that may be in their handshake; beyond it the oldest one is dropped.
    pub handshakes_max: usize,
    /// Connections that may be open.
    pub connections_max: usize,
    /// What may be outstanding on one connection.
    pub credit: Credit,
    /// Bytes of requests and answers that all connections together may hold, for each hop.
    pub in_flight_bytes: usize,
    /// A peer that takes or sends nothing for so long in the middle of a frame is dropped. A frame
    /// may take so long, and a second more for each MiB.
    pub stall: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:0".into(),
            terms: Terms::CURRENT,
            pool: Pool::new(64 << 20),
            handshake_timeout: Duration::from_secs(5),
            handshakes_max: 256,
            connections_max: 8192,
            credit: Credit { requests: 128, bytes: 16 << 20 },
            in_flight_bytes: 96 << 20,
            stall: Duration::from_secs(20),
        }
    }
}

/// How connections are shared and made again.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Connections to each address, for each hop.
    pub connections: usize,
    /// How long an attempt to connect may take.
    pub connect_timeout: Duration,
    /// The first pause after a failed attempt; it doubles with each further one, with jitter.
    pub backoff_min: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            connections: 1,
            connect_timeout: Duration::from_secs(3),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
        }
    }
}
