//! The managers' machines, and the store that they share.

use crate::log::{Log, note};
use crate::options::Options;
use crate::road::Road;
use async_trait::async_trait;
use kiln_config::{BootstrapConfig, MgmtdConfig, NodeConfig};
use kiln_env::Host;
use kiln_kv::{Kv, MemoryKv, Transaction};
use kiln_mgmtd::{Roles, Service, Site};
use kiln_net::{KeyRing, SimulatedNetwork};
use kiln_types::{Code, Error, NodeId, Result, ServerKey, ServiceKind};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// The name of the managers' store in the network, where several share it.
pub(crate) const STORE: &str = "store";
/// How long it takes until a process that ended is started again.
const RESTART: Duration = Duration::from_secs(1);

/// The machine that a manager runs on.
pub(crate) struct ManagerHost {
    pub(crate) name: String,
    pub(crate) host: Host,
    config: MgmtdConfig,
    key: ServerKey,
    kv: Arc<dyn Kv>,
    road: Road,
    log: Log,
    state: Mutex<State>,
}

/// A store that other managers have open too, over the network.
struct Shared {
    kv: MemoryKv,
    network: SimulatedNetwork,
    manager: String,
}

#[async_trait]
impl Kv for Shared {
    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        let [there, back] = [(&*self.manager, STORE), (STORE, &*self.manager)];
        if [there, back].iter().any(|(from, to)| self.network.is_cut(from, to)) {
            return Err(Error::new(Code::Unreachable, "the managers' store"));
        }
        self.kv.begin().await
    }
}

#[derive(Default)]
struct State {
    is_up: bool,
    /// Counts starts.
    run: u64,
    service: Option<Service>,
    stop: Option<oneshot::Sender<()>>,
}

impl ManagerHost {
    pub(crate) fn new(
        options: &Options,
        number: usize,
        host: Host,
        key: ServerKey,
        kv: &MemoryKv,
        road: Road,
        log: Log,
    ) -> Arc<Self> {
        let bootstrap = BootstrapConfig {
            storage_servers: options.servers as u32,
            targets_per_disk: options.targets_per_disk,
            ..BootstrapConfig::default()
        };
        let mut node = NodeConfig::of(ServiceKind::Mgmtd);
        node.id = NodeId(number as u64);
        let config = MgmtdConfig { node, bootstrap, ..MgmtdConfig::default() };
        let name = road.member.clone();
        let (network, manager) = (road.network.clone(), name.clone());
        let kv: Arc<dyn Kv> = match options.managers {
            // As with an engine in its own process.
            1 => Arc::new(kv.clone()),
            _ => Arc::new(Shared { kv: kv.clone(), network, manager }),
        };
        Arc::new(Self { name, host, config, key, kv, road, log, state: Mutex::default() })
    }

    /// What answers, if the manager runs.
    pub(crate) fn service(&self) -> Option<Service> {
        self.state.lock().service.clone()
    }

    /// Starts the manager, unless it runs.
    pub(crate) fn start(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.is_up, true) {
            return;
        }
        state.run += 1;
        let this = state.run;
        drop(state);
        note!(self.log, "{} starts", self.name);
        let (manager, env) = (Arc::clone(self), self.host.env());
        let run = async move {
            let ended = manager.run().await;
            note!(manager.log, "{} ended: {ended:?}", manager.name);
            let again = Arc::clone(&manager);
            let restart = async move {
                again.road.ground.sleep(RESTART).await;
                if again.state.lock().run == this {
                    again.crash();
                    again.start();
                }
            };
            manager.road.ground.spawn("supervisor", restart).detach();
        };
        env.spawn("manager", run).detach();
    }

    async fn run(&self) -> Result<()> {
        let env = self.host.env();
        let site = Site {
            config: self.config.clone(),
            key: self.key.clone(),
            address: format!("{}:1", self.name),
            ring: Arc::new(KeyRing::new(self.key.clone())),
            reach: Arc::new(self.road.clone()),
        };
        let (roles, service) = Roles::new(site, Arc::clone(&self.kv), &env)?;
        let (stop, stopped) = oneshot::channel();
        {
            let mut state = self.state.lock();
            (state.service, state.stop) = (Some(service), Some(stop));
        }
        let shutdown = async move {
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        roles.play(shutdown).await
    }

    /// Lets the manager end in order; its supervisor starts it again.
    pub(crate) fn stop(&self) {
        if let Some(stop) = self.state.lock().stop.take() {
            // It may have ended by itself.
            let _ = stop.send(());
        }
    }

    /// Ends the manager's process; its store stays.
    pub(crate) fn crash(&self) {
        let mut state = self.state.lock();
        state.is_up = false;
        let service = state.service.take();
        drop(state);
        drop(service);
        self.host.crash();
    }
}
