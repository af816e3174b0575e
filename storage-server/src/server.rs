//! The shell: opens the disks, listens, registers.

use crate::disks;
use crate::follower::Follower;
use crate::peers::Peers;
use crate::recovery::Recovery;
use crate::rights::Rights;
use crate::scrub::begin_scrubs;
use crate::service::{ChunkService, Lease};
use kiln_chunk_store::Store;
use kiln_config::{RecoveryConfig, ScrubConfig, StorageConfig};
use kiln_env::{Env, Task};
use kiln_manager_link::{LinkOptions, ManagerLink, Reach, follow_settings};
use kiln_memory::Pool;
use kiln_net::{
    ConnectionPool, Identity, KeyRing, PoolOptions, Server, ServerOptions, Serving, TcpTransport,
    Terms, Transport,
};
use kiln_types::{Context, Error, Incarnation, Result, ServiceKind};
use kiln_wire::CapabilityKey;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;

/// How long requests under way may take when the server stops.
const GRACE: Duration = Duration::from_secs(2);

/// Runs a storage server until `shutdown`; `ready` gets the address on which it answers, once it is
/// registered with the manager.
///
/// # Errors
/// Why it cannot start (address, key, disks), or that the manager refuses it.
pub async fn run(
    config: StorageConfig,
    env: Env,
    ready: impl FnOnce(SocketAddr) + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    let key = kiln_config::read_server_key(&config.node.server_key)?;
    let ring = Arc::new(KeyRing::new(key.clone()));
    let pool = Pool::new((config.io.memory / 4) as usize);
    let options = ServerOptions {
        address: config.node.listen.to_string(),
        terms: Terms { node: Some(config.node.id), ..Terms::CURRENT },
        pool: pool.clone(),
        in_flight_bytes: (config.io.memory / 4) as usize,
        ..ServerOptions::default()
    };
    let server = Server::bind(options, ring.clone(), env.clone()).await?;
    let address: SocketAddr = server.address().parse().map_err(|error| {
        Error::internal(format!("the address '{}' that was taken: {error}", server.address()))
    })?;
    let stores = disks::open(&config, key.cluster, &env, &pool).await?;
    let disks = stores.len();
    let link = LinkOptions {
        managers: config.cluster.mgmtd.clone(),
        key: key.clone(),
        node: config.node.id,
        kind: ServiceKind::Storage,
        address: config.node.advertised(address),
        incarnation: Incarnation(env.random_u128()),
        tags: config.node.tags.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        adopts_at_once: false,
    };
    let transport = Arc::new(TcpTransport::new(Identity::Server(key), env.clone()));
    let (recovery, scrub) = (config.recovery.clone(), config.scrub.clone());
    let settings_env = env.clone();
    let parts = Parts { env, stores, transport, link, ring, reach: None, recovery, scrub };
    let storage = StorageServer::start(parts).await?;
    let _settings = settings_env.spawn("settings", storage.follow_settings(config.clone()));
    let serving = server.serve(Some(storage.handler()), None)?;
    tracing::info!(%address, node = %config.node.id, disks, "the storage server answers");
    ready(address);
    let result = tokio::select! {
        () = shutdown => Ok(()),
        error = storage.refused() => Err(error),
    };
    storage.stop(serving).await?;
    result
}

/// What a storage server is made of; the simulator gives simulated ones.
pub struct Parts {
    /// The seams.
    pub env: Env,
    /// Its disks, opened.
    pub stores: Vec<Arc<Store>>,
    /// The way to other storage servers.
    pub transport: Arc<dyn Transport>,
    /// Who it is, and where the managers are.
    pub link: LinkOptions,
    /// Gets the credentials of each routing information.
    pub ring: Arc<KeyRing>,
    /// The way to the managers; `None`: TCP.
    pub reach: Option<Arc<dyn Reach>>,
    /// How other servers' targets are filled.
    pub recovery: RecoveryConfig,
    /// How its own chunks are looked after.
    pub scrub: ScrubConfig,
}

/// A storage server that runs, whatever brings it its requests. Dropping it ends its lease.
pub struct StorageServer {
    service: Arc<ChunkService>,
    link: ManagerLink,
    recovery: Arc<Recovery>,
    scrub: Arc<watch::Sender<ScrubConfig>>,
    tasks: Vec<Task<()>>,
}

impl StorageServer {
    /// Opens the targets that the disks have, and begins to register.
    ///
    /// # Errors
    /// As [`ManagerLink::start`], and what the disks say.
    pub async fn start(parts: Parts) -> Result<Self> {
        let Parts { env, stores, transport, link, ring, reach, recovery, scrub } = parts;
        // The service is there before the link, which reports its targets; until then nothing is served.
        let lease_view = Arc::new(OnceLock::new());
        let lease = lease_of(Arc::clone(&lease_view), env.clone());
        let rights = Rights::new([CapabilityKey::derive(&link.key)]);
        let service = ChunkService::new(env.clone(), stores, rights, lease);
        let connections = ConnectionPool::new(transport, PoolOptions::default(), env.clone());
        let (adopted, taken_up) = watch::channel(Arc::default());
        let peers = Peers::new(connections, taken_up);
        let recovery = Recovery::new(recovery.rate, env.clone());
        let follower = Follower {
            service: service.clone(),
            peers,
            recovery: Arc::clone(&recovery),
            adopted,
            taking_up: Mutex::default(),
            env: env.clone(),
        };
        // Before the first heartbeat: a target that it does not name is taken to be gone.
        follower.open_targets().await?;
        let reporter = service.clone();
        let link = match reach {
            Some(reach) => ManagerLink::start_over(reach, link, ring, reporter, env.clone())?,
            None => ManagerLink::start(link, ring, reporter, env.clone())?,
        };
        let lease = Arc::clone(lease_view.get_or_init(|| Arc::clone(link.lease())));
        let follow = follower.run(lease, link.routing().subscribe(), link.orders());
        let scrub = Arc::new(watch::Sender::new(scrub));
        let mut tasks = begin_scrubs(&scrub.subscribe(), &service, &env);
        tasks.push(env.spawn("follower", follow));
        Ok(Self { service, link, recovery, scrub, tasks })
    }

    /// Takes up the cluster's settings over `config`, for ever.
    fn follow_settings(&self, config: StorageConfig) -> impl Future<Output = ()> + Send + use<> {
        let (recovery, scrub) = (Arc::clone(&self.recovery), Arc::clone(&self.scrub));
        let routing = self.link.routing().subscribe();
        follow_settings(config, routing, move |new| {
            recovery.set_rate(new.recovery.rate);
            scrub.send_replace(new.scrub.clone());
        })
    }

    /// What answers its requests.
    pub fn handler(&self) -> Arc<ChunkService> {
        Arc::clone(&self.service)
    }

    /// Waits until the manager refuses this server for good.
    pub async fn refused(&self) -> Error {
        self.link.refused().await
    }

    /// Ends its lease and gives its role away where enough others serve, lets what `serving` has under way finish, and closes its disks.
    ///
    /// # Errors
    /// What the disks say.
    pub async fn stop(self, serving: Box<dyn Serving>) -> Result<()> {
        self.link.stop().await;
        serving.shutdown(GRACE).await;
        drop(self.tasks);
        for store in self.service.stores() {
            store.close().await.context(format_args!("disk {}", store.identity().disk))?;
        }
        Ok(())
    }
}

fn lease_of(view: Arc<OnceLock<Arc<kiln_manager_link::LeaseView>>>, env: Env) -> Lease {
    let ignored = || kiln_types::rehearsal::planted("the lease does not end");
    Arc::new(move || view.get().is_some_and(|view| view.may_serve(env.now()) || ignored()))
}
