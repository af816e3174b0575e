//! The shell: listens, and plays the manager's roles.

use crate::roles::Roles;
use crate::tonic::routes;
use kiln_config::MgmtdConfig;
use kiln_env::Env;
use kiln_kv::Kv;
use kiln_manager_link::{Reach, over_tcp};
use kiln_net::{Identity, KeyRing, Server, ServerOptions, Terms};
use kiln_types::{Error, Result, ServerKey};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long requests under way may take when the manager stops.
const GRACE: Duration = Duration::from_secs(1);

/// Runs a manager over `kv` until `shutdown`; `ready` gets the address on which it answers, when it is the
/// primary or knows which one is.
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
    let reach = over_tcp(Identity::Server(key.clone()), &env);
    let site = Site { config, key, address: advertised, ring, reach };
    let own = site.config.clone();
    let (roles, service) = Roles::new(site, kv, &env)?;
    let _settings = env.spawn("settings", service.clone().follow_settings(own));
    let serving = server.serve(None, Some(routes(service.clone(), env.clone())))?;
    let announce = async {
        if service.settled().await.is_ok() {
            tracing::info!(%address, "the manager answers");
            ready(address);
        }
    };
    let (played, ()) = tokio::join!(roles.play(shutdown), announce);
    serving.shutdown(GRACE).await;
    tracing::info!("the manager has stopped");
    played
}

/// What a manager is told of itself.
pub struct Site {
    /// Its settings.
    pub config: MgmtdConfig,
    /// The server key.
    pub key: ServerKey,
    /// Where members reach it.
    pub address: String,
    /// Gets the credentials of each routing information.
    pub ring: Arc<KeyRing>,
    /// The way to other managers.
    pub reach: Arc<dyn Reach>,
}
