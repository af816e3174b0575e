//! The shell: opens the disks, listens, registers.

use crate::disks;
use crate::follower::Follower;
use crate::peers::Peers;
use crate::recovery::Recovery;
use crate::rights::Rights;
use crate::scrub::begin_scrubs;
use crate::service::{ChunkService, Lease};
use kiln_config::StorageConfig;
use kiln_env::Env;
use kiln_manager_link::{LinkOptions, ManagerLink};
use kiln_memory::Pool;
use kiln_net::{
    ConnectionPool, Identity, KeyRing, PoolOptions, Server, ServerOptions, TcpTransport, Terms,
};
use kiln_types::{Context, Error, Incarnation, Result, ServiceKind};
use kiln_wire::CapabilityKey;
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
    // The service is there before the link, which reports its targets; until then nothing is served.
    let lease_view = Arc::new(OnceLock::new());
    let lease = lease_of(Arc::clone(&lease_view), env.clone());
    let rights = Rights::new([CapabilityKey::derive(&key)]);
    let service = ChunkService::new(env.clone(), stores.clone(), rights, lease);
    let link_options = LinkOptions {
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
    let connections = ConnectionPool::new(transport, PoolOptions::default(), env.clone());
    let (adopted, taken_up) = watch::channel(Arc::default());
    let peers = Peers::new(connections, taken_up);
    let recovery = Recovery::new(config.recovery.rate, env.clone());
    let follower =
        Follower { service: service.clone(), peers, recovery, adopted, env: env.clone() };
    // Before the first heartbeat: a target that it does not name is taken to be gone.
    follower.open_targets().await?;
    let link = ManagerLink::start(link_options, ring, service.clone(), env.clone())?;
    let lease = Arc::clone(lease_view.get_or_init(|| Arc::clone(link.lease())));
    let scrubbed = Arc::clone(&service);
    let serving = server.serve(Some(service), None)?;
    let follow = follower.run(lease, link.routing().subscribe(), link.orders());
    let follow = env.spawn("follower", follow);
    let scrubs = begin_scrubs(&config.scrub, &scrubbed, &env);
    tracing::info!(%address, node = %config.node.id, disks = stores.len(), "the storage server answers");
    ready(address);
    let result = tokio::select! {
        () = shutdown => Ok(()),
        error = link.refused() => Err(error),
    };
    // Not a planned stop: that would give the role of every target away, and each would have to be
    // filled again. The lease runs out, or the server is back before.
    link.stop(false).await;
    serving.shutdown(GRACE).await;
    drop((follow, scrubs));
    for store in stores {
        store.close().await.context(format_args!("disk {}", store.identity().disk))?;
    }
    result
}

fn lease_of(view: Arc<OnceLock<Arc<kiln_manager_link::LeaseView>>>, env: Env) -> Lease {
    Arc::new(move || view.get().is_some_and(|view| view.may_serve(env.now())))
}
