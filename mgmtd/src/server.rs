//! The shell: opens the store, listens, runs the owner.

use crate::manager::{Manager, Options};
use crate::owner::Owner;
use crate::service::Service;
use crate::store::Store;
use crate::tonic::routes;
use kiln_chain::lease::{LeaseTimes, Patience};
use kiln_config::MgmtdConfig;
use kiln_env::Env;
use kiln_kv::Kv;
use kiln_net::{KeyRing, Server, ServerOptions, Terms};
use kiln_types::{Context, Error, Incarnation, KeyId, Node, Result, ServerKey, ServiceKind};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long requests under way may take when the manager stops.
const GRACE: Duration = Duration::from_secs(1);

/// Runs a manager over `kv` until `shutdown`; `ready` gets the address on which it answers.
///
/// # Errors
/// Why it cannot start (address, server key, store), or that its store failed later.
pub async fn run(
    config: MgmtdConfig,
    env: Env,
    kv: Arc<dyn Kv>,
    ready: impl FnOnce(SocketAddr) + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    let key = kiln_config::read_server_key(&config.node.server_key)?;
    let ring = Arc::new(KeyRing::new(key.clone()));
    let options = ServerOptions {
        address: config.node.listen.to_string(),
        terms: Terms { node: Some(config.node.id), ..Terms::CURRENT },
        ..ServerOptions::default()
    };
    let server = Server::bind(options, ring.clone(), env.clone()).await?;
    let address: SocketAddr = server.address().parse().map_err(|error| {
        Error::internal(format!("the address '{}' that was taken: {error}", server.address()))
    })?;
    let advertised = config.node.advertised(address);
    let site = Site { config: &config, key, address: advertised, ring };
    let (owner, service) = start(site, kv, &env).await?;
    let left = owner.store();
    let serving = server.serve(None, Some(routes(service, env.clone())))?;
    let owner = env.spawn("manager", owner.run());
    tracing::info!(%address, node = %config.node.id, "the manager answers");
    ready(address);
    // The owner ends with this statement; so do the streams of routing information.
    let result = tokio::select! {
        () = shutdown => Ok(()),
        ended = owner.join() => ended.and_then(|result| result).context("manager"),
    };
    serving.shutdown(GRACE).await;
    if let Err(error) = left.release().await {
        tracing::debug!(%error, "the manager's record stays in its store");
    }
    tracing::info!("the manager has stopped");
    result
}

/// What a manager is told of itself.
pub struct Site<'a> {
    /// Its settings.
    pub config: &'a MgmtdConfig,
    /// The server key.
    pub key: ServerKey,
    /// Where members reach it.
    pub address: String,
    /// Gets the credentials of each routing information.
    pub ring: Arc<KeyRing>,
}

/// Takes over the store of a manager. When this returns, its state is durable and nobody has been told of
/// it; [`Owner::run`] then does what is asked of the service.
///
/// # Errors
/// What the store says.
pub async fn start(site: Site<'_>, kv: Arc<dyn Kv>, env: &Env) -> Result<(Owner, Service)> {
    let Site { config, key, address, ring } = site;
    let (store, state) = Store::open(kv, env.clone(), key.cluster).await?;
    let options = manager_options(config, own_node(config, address, env), key.id);
    let lease = options.lease;
    let manager = Manager::new(options, state.clone(), env.now());
    let (owner, handle) = Owner::start(manager, store, state, ring, env.clone()).await?;
    let config = kiln_config::to_toml(config)?.into();
    Ok((owner, Service { handle, key, lease, config }))
}

fn own_node(config: &MgmtdConfig, address: String, env: &Env) -> Node {
    Node {
        id: config.node.id,
        kind: ServiceKind::Mgmtd,
        address,
        incarnation: Incarnation(env.random_u128()),
        alive: true,
        tags: config.node.tags.clone(),
    }
}

fn manager_options(config: &MgmtdConfig, own: Node, key: KeyId) -> Options {
    let lease = LeaseTimes { lease: config.lease.duration, heartbeat: config.lease.heartbeat };
    Options {
        own,
        lease,
        patience: Patience { lease: lease.lease, ..Patience::default() },
        // No server fills a target that missed writes yet: it waits.
        bootstrap: config.bootstrap.clone(),
        key,
    }
}
