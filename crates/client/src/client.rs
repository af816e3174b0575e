//! A client incarnation.

use crate::chunks::ChunkClient;
use crate::closing::Closing;
use crate::file::File;
use crate::meta::Meta;
use crate::open::OpenMode;
use crate::reports::Reports;
use crate::session::Session;
use kiln_env::{Env, Task};
use kiln_manager_link::RoutingWatch;
use kiln_net::{ConnectionPool, Identity, PoolOptions, TcpTransport, Transport};
use kiln_rpc::convert::id_bytes;
use kiln_rpc::v1;
use kiln_types::{
    Caller, ClientId, Code, Consistency, Credential, Deadline, Error, Monotonic, Result,
    RoutingInfo,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// How often the client says that it lives; a metadata server's client lease is several times that.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long the first contact with the manager may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client that ends waits for servers to hear it.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// "For ever", as a deadline.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What can be set.
///
/// While servers are lost, restart, or have too few replicas for writes, a call is tried again and
/// again, with growing pauses of up to half a second, until its time is over; the error then says
/// what the last attempt met. Errors that trying again does not change (`NotFound`, `NoSpace`,
/// `ClientEvicted`, ...) are returned at once. A changing call that ran out of time may or may not
/// have taken effect.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a read or write of a chunk is tried; `None`: until it is answered.
    pub io_timeout: Option<Duration>,
    /// How long a metadata call is tried; `None`: until it is answered.
    pub meta_timeout: Option<Duration>,
    /// Chunk requests that may be under way.
    pub pieces: usize,
    /// Data connections to each server.
    pub connections: usize,
    /// What reads may show of writes that are under way.
    pub consistency: Consistency,
    /// Who writes through this client takes set-id bits away itself where it has to, as a kernel does: the
    /// metadata service leaves them.
    pub keeps_set_ids: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            io_timeout: Some(Duration::from_secs(120)),
            meta_timeout: Some(Duration::from_secs(60)),
            pieces: 32,
            connections: 2,
            consistency: Consistency::default(),
            keeps_set_ids: false,
        }
    }
}

/// The deadline of what is tried for `timeout`.
pub(crate) fn deadline(env: &Env, timeout: Option<Duration>) -> Deadline {
    env.deadline_after(timeout.unwrap_or(FOREVER))
}

/// What a client is made of; the simulator gives simulated ones.
pub struct Parts {
    /// The seams.
    pub env: Env,
    /// The way to storage servers.
    pub transport: Arc<dyn Transport>,
    /// The routing information, kept current.
    pub routing: watch::Receiver<Arc<RoutingInfo>>,
    /// Settings.
    pub options: Options,
}

/// One client incarnation; see the crate's documentation.
pub struct Client {
    pub(crate) env: Env,
    pub(crate) id: ClientId,
    pub(crate) meta: Arc<Meta>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) routing: watch::Receiver<Arc<RoutingInfo>>,
    chunks: Arc<ChunkClient>,
    pieces: Arc<Semaphore>,
    pub(crate) closing: Arc<Closing>,
    reports: Arc<Reports>,
    options: Options,
    _tasks: [Task<()>; 3],
    _watch: Option<RoutingWatch>,
}

impl Client {
    /// Connects over TCP: finds the routing information at `managers` (`host:port`), as the holder
    /// of
    /// `credential`.
    ///
    /// # Errors
    /// Why the manager refuses, or that none answers in time.
    pub async fn connect(
        env: &Env,
        managers: Vec<String>,
        credential: Credential,
        options: Options,
    ) -> Result<Self> {
        let identity = Identity::Client(credential);
        let transport = Arc::new(TcpTransport::new(identity.clone(), env.clone()));
        let watch = RoutingWatch::start(managers, identity.clone(), env)?;
        watch.routing().ready(env.deadline_after(CONNECT_TIMEOUT), env).await?;
        let routing = watch.routing().subscribe();
        let env = env.clone();
        let parts = Parts { env, transport, routing, options };
        Ok(Self { _watch: Some(watch), ..Self::new(parts) })
    }

    /// A new incarnation over `parts`.
    pub fn new(parts: Parts) -> Self {
        let Parts { env, transport, routing, options } = parts;
        let id = ClientId(env.random_u128());
        let meta_timeout = options.meta_timeout;
        let way = Arc::clone(&transport);
        let meta = Meta::new(env.clone(), id, way, routing.clone(), meta_timeout);
        let meta = Arc::new(meta);
        let pool = PoolOptions { connections: options.connections, ..PoolOptions::default() };
        let connections = ConnectionPool::new(Arc::clone(&transport), pool, env.clone());
        let chunks = ChunkClient::new(env.clone(), id, connections, routing.clone());
        let chunks = Arc::new(chunks.with_consistency(options.consistency));
        let keep_alive = keep_alive(env.clone(), Arc::clone(&meta), id);
        let closing = Arc::new(Closing::default());
        let ends = Arc::clone(&closing).run(env.clone(), Arc::clone(&meta), id);
        let reports = Arc::new(Reports::default());
        let reporting = Arc::clone(&reports).run(env.clone(), Arc::clone(&meta));
        let _tasks = [
            env.spawn("keep alive", keep_alive),
            env.spawn("closing", ends),
            env.spawn("reports", reporting),
        ];
        Self {
            id,
            meta,
            transport,
            routing,
            chunks,
            pieces: Arc::new(Semaphore::new(options.pieces)),
            closing,
            reports,
            _tasks,
            options,
            env,
            _watch: None,
        }
    }

    /// The incarnation's id.
    pub fn id(&self) -> ClientId {
        self.id
    }

    /// The metadata calls.
    pub fn meta(&self) -> &Arc<Meta> {
        &self.meta
    }

    /// The chunk calls.
    pub fn chunks(&self) -> &Arc<ChunkClient> {
        &self.chunks
    }

    /// The routing information as it is known now.
    pub fn routing(&self) -> Arc<RoutingInfo> {
        self.chunks.routing()
    }

    /// The file that `open` or `create`, sent at `sent`, answered.
    pub(crate) fn file(
        &self,
        caller: &Caller,
        mode: OpenMode,
        reply: v1::OpenReply,
        sent: Monotonic,
    ) -> Result<File> {
        if reply.session.is_empty() {
            return Err(Error::new(Code::IsDirectory, "a directory has no content to open"));
        }
        let (env, meta) = (self.env.clone(), Arc::clone(&self.meta));
        let session = Session::new(env, meta, self.id, caller.clone(), mode, reply, sent)?;
        if !mode.write {
            self.closing.reads.add(session.id(), session.right());
        }
        File::open(
            self.env.clone(),
            Arc::clone(&self.meta),
            Arc::clone(&self.chunks),
            session,
            Arc::clone(&self.pieces),
            (Arc::clone(&self.closing), Arc::clone(&self.reports)),
            &self.options,
        )
    }

    /// Ends the incarnation; see [`Self::goodbye`].
    pub async fn close(self) {
        self.goodbye().await;
    }

    /// The last that is heard of this incarnation: its sessions are closed, and servers forget what
    /// they remember for retries. Nothing may be called after it.
    pub async fn goodbye(&self) {
        let goodbye = v1::KeepAliveRequest { client: id_bytes(self.id), goodbye: true };
        let sessions = self.meta.keep_alive(goodbye);
        if let Ok(Err(error)) | Err(error) =
            self.env.timeout(GOODBYE_TIMEOUT, "goodbye", sessions).await
        {
            tracing::debug!(%error, "the metadata service did not hear the goodbye");
        }
        self.chunks.goodbye(self.env.deadline_after(GOODBYE_TIMEOUT)).await;
    }
}

async fn keep_alive(env: Env, meta: Arc<Meta>, id: ClientId) {
    loop {
        env.sleep(KEEP_ALIVE).await;
        let alive = v1::KeepAliveRequest { client: id_bytes(id), goodbye: false };
        if let Err(error) = meta.keep_alive(alive).await {
            tracing::warn!(%error, "the metadata service does not hear this client");
        }
    }
}
