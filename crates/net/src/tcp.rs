//! TCP: works everywhere; frames the bytes.

use crate::authority::Authority;
use crate::call::Handler;
use crate::link::FrameLink;
use crate::opening::Introduction;
use crate::options::ServerOptions;
use crate::server::Server;
use crate::stream::Stream;
use crate::transport::{Connection, Registration, Serving, Transport};
use async_trait::async_trait;
use kiln_env::Env;
use kiln_memory::Buffer;
use kiln_types::{Code, Deadline, Error, Result};
use kiln_wire::{Identity, Purpose, Terms};
use parking_lot::RwLock;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// The kernel gives up on a peer that does not acknowledge bytes for so long.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);
/// An idle connection is tried after so long, then at the interval, so many times.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// The TCP transport of one process.
pub struct TcpTransport {
    identity: RwLock<Identity>,
    terms: Terms,
    env: Env,
}

impl TcpTransport {
    /// A transport that proves itself with `identity`.
    pub fn new(identity: Identity, env: Env) -> Self {
        Self { identity: RwLock::new(identity), terms: Terms::CURRENT, env }
    }

    /// Says what the process speaks, and its node id if it is a server.
    #[must_use]
    pub fn with_terms(mut self, terms: Terms) -> Self {
        self.terms = terms;
        self
    }

    /// Connections from now on prove themselves with another identity (a rotated key).
    pub fn set_identity(&self, identity: Identity) {
        *self.identity.write() = identity;
    }
}

#[async_trait]
impl Transport for TcpTransport {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn register(&self, _memory: &Buffer) -> Result<Registration> {
        Ok(Registration::none())
    }

    async fn connect(&self, address: &str, deadline: Deadline) -> Result<Connection> {
        let identity = self.identity.read().clone();
        let introduction =
            Introduction { identity, terms: self.terms, purpose: Purpose::Data, expected: None };
        let opened =
            async { FrameLink::open(open_stream(address).await?, introduction, &self.env).await };
        let what = format!("connection to {address}");
        let link = self.env.until(deadline, &what, opened).await??;
        Ok(Connection::new(Arc::new(link)))
    }

    async fn serve(
        &self,
        options: ServerOptions,
        authority: Arc<dyn Authority>,
        handler: Arc<dyn Handler>,
    ) -> Result<Box<dyn Serving>> {
        let server = Server::bind(options, authority, self.env.clone()).await?;
        server.serve(Some(handler), None)
    }
}

/// Connects to `host:port`.
pub(crate) async fn open_stream(address: &str) -> Result<Stream> {
    let socket = TcpStream::connect(address).await.map_err(|e| unreachable(address, &e))?;
    stream_of(socket, address.to_owned())
}

fn unreachable(address: &str, source: &io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::InvalidInput => {
            Error::invalid(format!("'{address}' is not an address: {source}"))
                .with_hint("an address is HOST:PORT")
        }
        io::ErrorKind::ConnectionRefused => {
            Error::new(Code::Unreachable, format!("nobody listens at {address}"))
                .with_hint("check that the server runs and that host and port are right")
        }
        _ => Error::new(Code::Unreachable, format!("{address} cannot be reached: {source}")),
    }
}

/// Sets the socket up and splits it.
pub(crate) fn stream_of(socket: TcpStream, address: String) -> Result<Stream> {
    use rustix::net::sockopt;
    let set_up = || -> io::Result<()> {
        socket.set_nodelay(true)?;
        let unacknowledged_ms = UNACKNOWLEDGED_MAX.as_millis() as u32;
        sockopt::set_tcp_user_timeout(&socket, unacknowledged_ms)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_PROBES)?;
        Ok(())
    };
    // Buffers are left to the kernel: a fixed size would switch its tuning off.
    set_up().map_err(|error| {
        Error::new(Code::ConnectionLost, format!("connection to {address}: {error}"))
    })?;
    let (reader, writer) = socket.into_split();
    Ok(Stream { reader: Box::new(reader), writer: Box::new(writer), address })
}
