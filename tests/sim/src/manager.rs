//! The manager's machine.

use crate::log::{Log, note};
use crate::options::Options;
use kiln_config::{BootstrapConfig, MgmtdConfig};
use kiln_env::{Env, Host};
use kiln_kv::{Kv, MemoryKv};
use kiln_mgmtd::{Service, Site};
use kiln_net::KeyRing;
use kiln_types::{Result, ServerKey};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// How long it takes until a process that ended is started again.
const RESTART: Duration = Duration::from_secs(1);

/// The machine that the manager runs on, with its store.
pub(crate) struct ManagerHost {
    pub(crate) name: String,
    pub(crate) host: Host,
    config: MgmtdConfig,
    key: ServerKey,
    kv: Arc<dyn Kv>,
    log: Log,
    ground: Env,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_up: bool,
    /// Counts starts.
    run: u64,
    service: Option<Service>,
}

impl ManagerHost {
    pub(crate) fn new(
        options: &Options,
        host: Host,
        key: ServerKey,
        ground: Env,
        log: Log,
    ) -> Arc<Self> {
        let bootstrap = BootstrapConfig {
            storage_servers: options.servers as u32,
            targets_per_disk: options.targets_per_disk,
            ..BootstrapConfig::default()
        };
        let config = MgmtdConfig { bootstrap, ..MgmtdConfig::default() };
        let kv = Arc::new(MemoryKv::new(&ground));
        let (name, state) = ("manager".to_owned(), Mutex::default());
        Arc::new(Self { name, host, config, key, kv, log, ground, state })
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
        note!(self.log, "the manager starts");
        let (manager, env) = (Arc::clone(self), self.host.env());
        let run = async move {
            let ended = manager.run().await;
            note!(manager.log, "the manager ended: {ended:?}");
            let again = Arc::clone(&manager);
            let restart = async move {
                again.ground.sleep(RESTART).await;
                if again.state.lock().run == this {
                    again.crash();
                    again.start();
                }
            };
            manager.ground.spawn("supervisor", restart).detach();
        };
        env.spawn("manager", run).detach();
    }

    async fn run(&self) -> Result<()> {
        let env = self.host.env();
        let ring = Arc::new(KeyRing::new(self.key.clone()));
        let address = format!("{}:1", self.name);
        let site = Site { config: &self.config, key: self.key.clone(), address, ring };
        let (owner, service) = kiln_mgmtd::start(site, Arc::clone(&self.kv), &env).await?;
        self.state.lock().service = Some(service);
        owner.run().await
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
