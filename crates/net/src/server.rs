//! A listening server: one port for both planes.

use crate::authority::Authority;
use crate::budget::Budgets;
use crate::call::Handler;
use crate::control;
use crate::counters::Counters;
use crate::gate::Gate;
use crate::options::ServerOptions;
use crate::session::House;
use crate::tcp::stream_of;
use crate::transport::Serving;
use async_trait::async_trait;
use kiln_env::{Env, Task};
use kiln_types::{Code, Error, Result};
use parking_lot::Mutex;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, lookup_host};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;

const BACKLOG: u32 = 1024;
/// Control connections that wait for tonic to take them.
const CONTROL_QUEUE: usize = 64;
/// The pause after the system refused to hand over a connection (no free file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound port that nothing answers on yet: its address can be announced before it is served.
pub struct Server {
    listener: TcpListener,
    address: String,
    options: ServerOptions,
    authority: Arc<dyn Authority>,
    env: Env,
}

impl Server {
    /// Takes the address of `options`.
    ///
    /// # Errors
    /// `Busy` when another process has it, `Invalid` when it is none, `Local` when this machine
    /// does not have it.
    pub async fn bind(
        options: ServerOptions,
        authority: Arc<dyn Authority>,
        env: Env,
    ) -> Result<Self> {
        let wanted = &options.address;
        let candidates = lookup_host(wanted).await.map_err(|error| {
            Error::invalid(format!("'{wanted}' is not an address to listen on: {error}"))
                .with_hint("an address is HOST:PORT")
        })?;
        let mut result = Err(Error::invalid(format!("'{wanted}' has no addresses")));
        for candidate in candidates {
            result = listen(candidate).map_err(|error| refused(wanted, &error));
            if result.is_ok() {
                break;
            }
        }
        let listener = result?;
        let address = listener.local_addr().map_err(|error| refused(wanted, &error))?;
        Ok(Self { listener, address: address.to_string(), options, authority, env })
    }

    /// Where it listens, `host:port` with the port that was taken.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Answers: data requests with `handler`, the control plane with `routes`. Whatever is absent
    /// is refused. Ends when the result is dropped.
    ///
    /// # Errors
    /// `Invalid` when there is neither.
    pub fn serve(
        self,
        handler: Option<Arc<dyn Handler>>,
        routes: Option<Routes>,
    ) -> Result<Box<dyn Serving>> {
        if handler.is_none() && routes.is_none() {
            return Err(Error::invalid("a server with neither data nor control plane"));
        }
        let Self { listener, address, options, authority, env } = self;
        let counters = Arc::new(Counters::default());
        let budgets = Budgets::new(options.in_flight_bytes);
        let house = House { options, authority, handler, env: env.clone(), counters, budgets };
        let (incoming, control) = match routes {
            Some(routes) => {
                let (incoming, control) = Control::start(routes, &env);
                (Some(incoming), Some(control))
            }
            None => (None, None),
        };
        let gate = Gate::new(house, incoming);
        let acceptor = env.spawn("net acceptor", accept(listener, Arc::clone(&gate), env.clone()));
        Ok(Box::new(Listening::new(address, gate, acceptor, control, env)))
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restarted server takes its port back while old connections still die.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn refused(address: &str, source: &io::Error) -> Error {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "?"));
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            Error::new(Code::Busy, format!("port {port} on {host} is in use by another process"))
                .with_hint(format!(
                    "stop that process ('ss -ltnp sport = :{port}' names it), or listen on another \
                     port"
                ))
        }
        io::ErrorKind::AddrNotAvailable => {
            Error::new(Code::Local, format!("{host} is not an address of this machine"))
                .with_hint("listen on an address that 'ip address' shows")
        }
        io::ErrorKind::PermissionDenied => {
            Error::new(Code::Local, format!("this user may not listen on port {port}"))
                .with_hint("ports below 1024 are root's: choose a higher one")
        }
        _ => Error::local(format_args!("listening on {address}"), source),
    }
}

async fn accept(listener: TcpListener, gate: Arc<Gate>, env: Env) {
    loop {
        match listener.accept().await {
            // A socket that cannot be set up is one whose peer has gone already.
            Ok((socket, from)) => match stream_of(socket, from.to_string()) {
                Ok(stream) => gate.arrive(stream),
                Err(error) => tracing::debug!("{error}"),
            },
            Err(error) => {
                tracing::warn!("a connection could not be accepted: {error}");
                env.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// tonic's server, fed with connections that passed the handshake.
pub(crate) struct Control {
    task: Task<()>,
    stop: oneshot::Sender<()>,
}

impl Control {
    fn start(routes: Routes, env: &Env) -> (mpsc::Sender<control::ControlStream>, Self) {
        let (incoming, streams) = mpsc::channel(CONTROL_QUEUE);
        let (stop, stopped) = oneshot::channel();
        let streams = ReceiverStream::new(streams).map(Ok::<_, io::Error>);
        let served = control::router(routes).serve_with_incoming_shutdown(streams, async {
            let _ = stopped.await;
        });
        let task = env.spawn("net control", async move {
            if let Err(error) = served.await {
                tracing::error!("the control plane ended: {error}");
            }
        });
        (incoming, Self { task, stop })
    }
}

/// A server that listens, whatever brings its connections.
pub(crate) struct Listening {
    address: String,
    gate: Arc<Gate>,
    tasks: Mutex<Option<[Task<()>; 2]>>,
    control: Mutex<Option<Control>>,
    env: Env,
}

impl Listening {
    pub(crate) fn new(
        address: String,
        gate: Arc<Gate>,
        acceptor: Task<()>,
        control: Option<Control>,
        env: Env,
    ) -> Self {
        let sweeper = env.spawn("net sweeper", Arc::clone(&gate).sweep());
        let tasks = Mutex::new(Some([acceptor, sweeper]));
        Self { address, gate, tasks, control: Mutex::new(control), env }
    }
}

#[async_trait]
impl Serving for Listening {
    fn address(&self) -> &str {
        &self.address
    }

    fn counters(&self) -> &Arc<Counters> {
        self.gate.counters()
    }

    async fn shutdown(&self, grace: Duration) {
        drop(self.tasks.lock().take());
        let deadline = self.env.deadline_after(grace);
        let control = self.control.lock().take();
        let task = control.map(|control| {
            let _ = control.stop.send(());
            control.task
        });
        self.gate.part(grace).await;
        if let Some(task) = task {
            // Streams that never end are cut off by the deadline.
            let _ = self.env.until(deadline, "control requests under way", task.join()).await;
        }
        self.gate.kill();
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.gate.kill();
    }
}
