//! A client's machine.

use crate::cluster::named_managers;
use crate::log::{Log, note};
use crate::options::Options;
use crate::road::Road;
use crate::workload::{Client, Workload};
use kiln_client::ChunkClient;
use kiln_env::{Env, Host};
use kiln_manager_link::RoutingWatch;
use kiln_net::{ConnectionPool, Identity, PoolOptions, SimulatedNetwork, Terms};
use kiln_types::{ClientId, Result, RoutingInfo, ServerKey};
use parking_lot::Mutex;
use std::sync::Arc;

/// The machine of a client.
pub(crate) struct ClientHost {
    pub(crate) number: usize,
    pub(crate) name: String,
    pub(crate) host: Host,
    width: usize,
    key: ServerKey,
    network: SimulatedNetwork,
    road: Road,
    workload: Arc<Workload>,
    log: Log,
    is_up: Mutex<bool>,
}

impl ClientHost {
    pub(crate) fn new(
        options: &Options,
        (number, host): (usize, Host),
        key: ServerKey,
        road: Road,
        workload: Arc<Workload>,
        log: Log,
    ) -> Arc<Self> {
        let (name, network, width) = (road.member.clone(), road.network.clone(), options.width);
        let is_up = Mutex::new(false);
        Arc::new(Self { number, name, host, width, key, network, road, workload, log, is_up })
    }

    /// Whether it proves itself as a server does; every other one does.
    pub(crate) fn is_server(number: usize) -> bool {
        number.is_multiple_of(2)
    }

    /// Starts a new incarnation, unless one runs.
    pub(crate) fn start(self: &Arc<Self>) {
        if std::mem::replace(&mut *self.is_up.lock(), true) {
            return;
        }
        let client = Arc::clone(self);
        let run = async move {
            let log = client.log.clone();
            let ended = client.run().await;
            note!(log, "client ended: {ended:?}");
        };
        self.host.env().spawn("client", run).detach();
    }

    async fn run(self: Arc<Self>) -> Result<()> {
        let env = self.host.env();
        let (client, _watch) = self.connect(&env).await?;
        let client = Arc::new(client);
        let workers: Vec<_> = (0..self.width)
            .map(|i| env.spawn("worker", Arc::clone(&client).work(i == 0)))
            .collect();
        for worker in workers {
            worker.join().await?;
        }
        Ok(())
    }

    /// A new incarnation, as soon as there is a chain table.
    pub(crate) async fn connect(&self, env: &Env) -> Result<(Client, RoutingWatch)> {
        let road = Arc::new(self.road.clone());
        let watch = RoutingWatch::start_over(road, named_managers(), env)?;
        let mut routing = watch.routing().subscribe();
        // The sender lives as long as the watch.
        let _ = routing.wait_for(|routing: &Arc<RoutingInfo>| !routing.tables.is_empty()).await;
        let is_server = Self::is_server(self.number);
        let identity = match is_server {
            true => Identity::Server(self.key.clone()),
            false => Identity::Client(kiln_wire::credential(&self.key, "admin")?),
        };
        let transport = self.network.host_on(env.clone(), &self.name, identity, Terms::CURRENT);
        let connections =
            ConnectionPool::new(Arc::new(transport), PoolOptions::default(), env.clone());
        let id = ClientId(env.random_u128());
        let chunks = ChunkClient::new(env.clone(), id, connections, routing);
        let (number, workload) = (self.number, Arc::clone(&self.workload));
        Ok((Client { number, id, is_server, chunks, workload, env: env.clone() }, watch))
    }

    /// The client dies; its outstanding operations are never decided for it.
    pub(crate) fn crash(&self) {
        *self.is_up.lock() = false;
        self.network.crash(&self.name);
        self.host.crash();
    }
}
