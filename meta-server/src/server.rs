//! The whole server: opens the tree, listens, registers, keeps house.

use crate::keeper::Keeper;
use crate::placement::{Table, Tables};
use crate::service::Service;
use crate::storage::StorageChunks;
use crate::store::{Settings, Store, StoreParts};
use kiln_client::ChunkClient;
use kiln_config::{MetaConfig, NewFileConfig};
use kiln_env::Env;
use kiln_kv::Kv;
use kiln_manager_link::{LinkOptions, ManagerLink, follow_settings};
use kiln_net::{
    ConnectionPool, Identity, KeyRing, PoolOptions, Server, ServerOptions, TcpTransport, Terms,
};
use kiln_types::LayoutWish;
use kiln_types::{
    ChainTableId, ClientId, Error, Incarnation, Result, RoutingInfo, ServiceKind, TreeId,
};
use kiln_wire::CapabilityKey;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The chain table of new files.
const TABLE: ChainTableId = ChainTableId(1);
/// How long requests under way may take when the server stops.
const GRACE: Duration = Duration::from_secs(2);

/// The newest version of the chain table, as the routing information has it.
struct RoutedTable(watch::Receiver<Arc<RoutingInfo>>);

impl Tables for RoutedTable {
    fn newest(&self) -> Option<Table> {
        let routing = self.0.borrow();
        let table = routing.newest_table(TABLE)?;
        let chains = u32::try_from(table.chains.len()).unwrap_or(u32::MAX);
        Some(Table { id: table.id, version: table.version, chains })
    }
}

/// Runs a metadata server over `kv` until `shutdown`; `ready` gets the address on which it answers.
///
/// # Errors
/// Why it cannot start (address, key, store), or that the manager refuses it.
pub async fn run(
    config: MetaConfig,
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
    let link_options = LinkOptions {
        managers: config.cluster.mgmtd.clone(),
        key: key.clone(),
        node: config.node.id,
        kind: ServiceKind::Meta,
        address: config.node.advertised(address),
        incarnation: Incarnation(env.random_u128()),
        tags: config.node.tags.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        adopts_at_once: true,
    };
    let link = ManagerLink::start(link_options, ring, Arc::new(()), env.clone())?;
    let transport = TcpTransport::new(Identity::Server(key.clone()), env.clone());
    let pool = PoolOptions::default();
    let connections = ConnectionPool::new(Arc::new(transport), pool, env.clone());
    let routing = link.routing().subscribe();
    let follow = follow_settings(config.clone(), routing.clone(), |_| {});
    let _settings = env.spawn("settings", follow);
    let id = ClientId(env.random_u128());
    let client = ChunkClient::new(env.clone(), id, connections, routing.clone());
    let chunks = Arc::new(StorageChunks::new(env.clone(), Arc::new(client)));
    let parts = StoreParts {
        kv,
        env: env.clone(),
        chunks: chunks.clone(),
        tables: Arc::new(RoutedTable(routing)),
        key: CapabilityKey::derive(&key),
    };
    let store = Arc::new(Store::open(parts, settings(&config)).await?);
    let keeper = Keeper::new(Arc::clone(&store));
    let keeper = env.spawn("keeper", keeper.run());
    let watched = Arc::clone(&store);
    let service = Service { store, chunks, routing: link.routing().subscribe() };
    let serving = server.serve(Some(Arc::new(service)), None)?;
    tracing::info!(%address, node = %config.node.id, "the metadata server answers");
    ready(address);
    let result = tokio::select! {
        () = shutdown => Ok(()),
        error = link.refused() => Err(error),
        error = watched.moved() => Err(error),
    };
    watched.end_watchers();
    serving.shutdown(GRACE).await;
    drop(keeper);
    link.stop().await;
    result
}

fn settings(config: &MetaConfig) -> Settings {
    // 0 means as wide as the table is; placement narrows the wish to the table.
    let stripe = match config.new_file.stripe {
        0 => NewFileConfig::STRIPE_MAX,
        stripe => stripe,
    };
    Settings {
        tree: TreeId::MAIN,
        new_file: LayoutWish { chunk_bytes: config.new_file.chunk_bytes(), stripe },
        capability: config.client.capability,
        lease: config.client.lease,
        root_owner: owner_of(&config.node.data_dir),
    }
}

/// A new tree's root directory belongs to whom the server's own directory belongs: who starts a
/// cluster may use it.
fn owner_of(directory: &Path) -> (u32, u32) {
    std::fs::metadata(directory).map_or((0, 0), |found| (found.uid(), found.gid()))
}
