//! The control plane: tonic over streams that passed the handshake, at both ends.

use crate::authority::{Authority, judge};
use crate::opening::{Introduction, introduce};
use crate::peer::Peer;
use crate::stream::{Ending, Stream};
use crate::tcp::open_stream;
use hyper_util::rt::TokioIo;
use kiln_env::Env;
use kiln_types::{Code, Error, Result};
use kiln_wire::{Identity, Purpose, Terms};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::{Connected, Router};
use tonic::transport::{Channel, Endpoint, Server};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a client of the control plane pings a server that it hears nothing of, and how long it
/// waits for the answer: together less than a lease, so that who follows a manager that was cut off goes
/// on to another one in time.
const PING_EVERY: Duration = Duration::from_secs(1);
const PING_TIME_MAX: Duration = Duration::from_secs(3);
/// A server pings a client that is silent for so long, and gives it as long to answer.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Requests of one connection that may be under way.
const STREAMS_MAX: u32 = 1024;
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// A channel to the control plane at `address` (`host:port`). It connects when it is first used,
/// and again after it broke; a refused handshake is the error of the calls that wait for it.
///
/// # Errors
/// `Invalid` when the address is none.
pub fn control_channel(address: &str, identity: Identity, env: Env) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| {
        Error::invalid(format!("'{address}' is not an address: {error}"))
            .with_hint("an address is HOST:PORT")
    })?;
    let endpoint = endpoint
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIME_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let address: Arc<str> = address.into();
    let connector = tower::service_fn(move |_| {
        let (address, identity, env) = (Arc::clone(&address), identity.clone(), env.clone());
        async move { connect(&address, identity, env).await.map(TokioIo::new) }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

async fn connect(address: &str, identity: Identity, env: Env) -> Result<Duplex> {
    let deadline = env.deadline_after(CONNECT_TIMEOUT);
    let purpose = Purpose::Control;
    let introduction = Introduction { identity, terms: Terms::CURRENT, purpose, expected: None };
    let opened = async {
        let mut stream = open_stream(address).await?;
        introduce(&mut stream, introduction, &env).await?;
        Ok(Duplex(stream))
    };
    let what = format!("connection to {address}");
    env.until(deadline, &what, opened).await?
}

/// The peer that made a request of the control plane.
///
/// # Errors
/// `NotAuthenticated` when the request did not come over a connection of [`crate::Server`].
pub fn peer_of<T>(request: &tonic::Request<T>) -> Result<Arc<Peer>> {
    let peer = request.extensions().get::<Arc<Peer>>().map(Arc::clone);
    peer.ok_or_else(|| Error::new(Code::NotAuthenticated, "the request has no peer"))
}

/// tonic's server with our limits.
pub(crate) fn router(routes: tonic::service::Routes) -> Router {
    Server::builder()
        .http2_keepalive_interval(Some(SILENCE_MAX))
        .http2_keepalive_timeout(Some(SILENCE_MAX))
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_routes(routes)
}

/// Both halves of a stream as one.
struct Duplex(Stream);

impl AsyncRead for Duplex {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.reader).poll_read(context, buffer)
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.writer).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.writer).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.writer).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.writer.is_write_vectored()
    }
}

/// The standing of a control connection: whether its peer may still use it, and whether it is still
/// there.
pub(crate) struct Pass {
    peer: Arc<Peer>,
    authority: Arc<dyn Authority>,
    judged: AtomicU64,
    ending: Ending,
    gone: Ending,
}

impl Pass {
    /// Ends the connection if its peer may not use it any more.
    pub(crate) fn judge(&self) -> Result<()> {
        if let Some(reason) = self.ending.reason() {
            return Err(reason.clone());
        }
        let version = self.authority.version();
        if version != self.judged.load(Ordering::Relaxed) {
            if let Err(reason) = judge(&*self.authority, &self.peer) {
                tracing::warn!(peer = %self.peer, "closing a control connection: {reason}");
                self.ending.end(reason.clone());
                return Err(reason);
            }
            self.judged.store(version, Ordering::Relaxed);
        }
        Ok(())
    }

    pub(crate) fn end(&self, reason: Error) {
        self.ending.end(reason);
    }

    /// Waits until the stream is dropped.
    pub(crate) async fn gone(&self) {
        self.gone.wait().await;
    }
}

/// A control connection as tonic's server takes it. It fails when its peer loses the right to it:
/// with the next request, or within a second where it asks nothing.
pub(crate) struct ControlStream {
    duplex: Duplex,
    pass: Arc<Pass>,
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl ControlStream {
    pub(crate) fn new(
        stream: Stream,
        peer: Arc<Peer>,
        authority: Arc<dyn Authority>,
        judged: u64,
    ) -> (Self, Arc<Pass>) {
        let judged = AtomicU64::new(judged);
        let (ending, gone) = (Ending::new(), Ending::new());
        let pass = Arc::new(Pass { peer, authority, judged, ending, gone });
        let watched = Arc::clone(&pass);
        let ended = Box::pin(async move { watched.ending.wait().await });
        (Self { duplex: Duplex(stream), pass: Arc::clone(&pass), ended }, pass)
    }

    fn check(&self) -> io::Result<()> {
        self.pass.judge().map_err(|reason| io::Error::new(io::ErrorKind::ConnectionAborted, reason))
    }
}

impl Drop for ControlStream {
    fn drop(&mut self) {
        self.pass.gone.end(Error::from(Code::Cancelled));
    }
}

impl Connected for ControlStream {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        Arc::clone(&self.pass.peer)
    }
}

impl AsyncRead for ControlStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.duplex).poll_read(context, buffer);
        if self.ended.as_mut().poll(context).is_ready() {
            // Polled to its end once; from now on `check` fails before anybody comes here again.
            self.ended = Box::pin(std::future::pending());
        }
        self.check()?;
        read
    }
}

impl AsyncWrite for ControlStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.duplex).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.duplex).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.duplex).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.duplex).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.duplex.is_write_vectored()
    }
}
