//! Ports for servers that nobody gave one: free now, and outside the range from which the kernel takes
//! ports for outgoing connections, so that they are likely free at the next start too.

use kiln_env::Env;
use kiln_types::{Code, Error, Result};
use std::net::{SocketAddr, TcpListener};

const FIRST: u64 = 20_000;
const COUNT: u64 = 12_000;
const TRIES: u32 = 200;

/// Whether a server could listen there now.
pub(crate) fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

/// A free loopback address whose port is not among `given`.
pub(crate) fn choose(env: &Env, given: &[SocketAddr]) -> Result<SocketAddr> {
    for _ in 0..TRIES {
        let port = u16::try_from(FIRST + env.random_below(COUNT)).unwrap_or(0);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if !given.contains(&address) && is_free(address) {
            return Ok(address);
        }
    }
    Err(Error::new(
        Code::Local,
        format!("no free port on 127.0.0.1 from {FIRST} to {}", FIRST + COUNT - 1),
    ))
}
