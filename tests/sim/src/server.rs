//! A storage server's machine.

use crate::cluster::named_managers;
use crate::log::{Log, note};
use crate::options::Options;
use crate::road::Road;
use crate::tap::Tap;
use crate::workload::Workload;
use kiln_chunk_store::{Identity, Options as StoreOptions, Store};
use kiln_config::{RecoveryConfig, ScrubConfig};
use kiln_disk::{Disk, SimulatedDisk};
use kiln_env::{Env, Host};
use kiln_manager_link::LinkOptions;
use kiln_memory::Pool;
use kiln_net::{KeyRing, ServerOptions, Terms, Transport};
use kiln_storage_server::{ChunkService, Parts, StorageServer, Target};
use kiln_types::{Code, DiskId, Incarnation, LocalState, NodeId, Result, ServerKey, ServiceKind};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long it takes until a process that ended is started again.
const RESTART: Duration = Duration::from_secs(1);
const DISK_BYTES: u64 = 64 << 20;
const MEMORY_BYTES: usize = 8 << 20;

/// The machine of a storage server, with its disks.
pub(crate) struct ServerHost {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) host: Host,
    key: ServerKey,
    road: Road,
    workload: Arc<Workload>,
    log: Log,
    state: Mutex<State>,
}

struct State {
    /// Counts starts.
    run: u64,
    disks: Vec<Arc<SimulatedDisk>>,
    /// The bits that flipped: disk, byte and bit.
    flips: Vec<(usize, u64, u8)>,
    is_up: bool,
    service: Option<Arc<ChunkService>>,
    stop: Option<oneshot::Sender<()>>,
}

impl ServerHost {
    pub(crate) fn new(
        options: &Options,
        (node, host): (NodeId, Host),
        key: ServerKey,
        road: Road,
        workload: Arc<Workload>,
        log: Log,
    ) -> Arc<Self> {
        let ground = &road.ground;
        let disk = |_| SimulatedDisk::new(ground.clone(), DISK_BYTES);
        let disks = (0..options.disks).map(disk).collect();
        let name = road.member.clone();
        let state =
            State { run: 0, disks, flips: Vec::new(), is_up: false, service: None, stop: None };
        let state = Mutex::new(state);
        Arc::new(Self { node, name, host, key, road, workload, log, state })
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state.lock().is_up
    }

    /// Whether it has given up a target because of its disk, or could not create any there.
    pub(crate) fn has_failed(&self) -> bool {
        self.service().is_some_and(|service| {
            let is_lost = |target: &Arc<Target>| target.local_state() == LocalState::Offline;
            let is_empty = |store: &Arc<Store>| store.targets().is_empty();
            service.targets().iter().any(is_lost) || service.stores().iter().any(is_empty)
        })
    }

    /// What answers, if the server runs.
    pub(crate) fn service(&self) -> Option<Arc<ChunkService>> {
        self.state.lock().service.clone()
    }

    pub(crate) fn disks(&self) -> Vec<Arc<SimulatedDisk>> {
        self.state.lock().disks.clone()
    }

    /// Starts the server, unless it runs.
    pub(crate) fn start(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.is_up, true) {
            return;
        }
        state.run += 1;
        let this = state.run;
        drop(state);
        note!(self.log, "{} starts", self.name);
        let server = Arc::clone(self);
        let run = async move {
            let ended = server.run().await;
            note!(server.log, "{} ended: {ended:?}", server.name);
            let again = Arc::clone(&server);
            let restart = async move {
                again.road.ground.sleep(RESTART).await;
                if again.state.lock().run == this {
                    again.crash(false);
                    again.start();
                }
            };
            server.road.ground.spawn("supervisor", restart).detach();
        };
        self.host.env().spawn("server", run).detach();
    }

    async fn run(&self) -> Result<()> {
        let env = self.host.env();
        let pool = Pool::new(MEMORY_BYTES);
        let stores = self.open(&env, &pool).await?;
        let terms = Terms { node: Some(self.node), ..Terms::CURRENT };
        let identity = kiln_net::Identity::Server(self.key.clone());
        let transport = self.road.network.host_on(env.clone(), &self.name, identity, terms);
        let transport: Arc<dyn Transport> = Arc::new(transport);
        let ring = Arc::new(KeyRing::new(self.key.clone()));
        let address = format!("{}:1", self.name);
        let parts = Parts {
            env: env.clone(),
            stores,
            transport: Arc::clone(&transport),
            link: self.link(address.clone(), &env),
            ring: Arc::clone(&ring),
            reach: Some(Arc::new(self.road.clone())),
            recovery: RecoveryConfig::default(),
            scrub: ScrubConfig::default(),
        };
        let storage = StorageServer::start(parts).await?;
        let in_flight_bytes = MEMORY_BYTES;
        let options =
            ServerOptions { address, terms, pool, in_flight_bytes, ..ServerOptions::default() };
        let (service, hints) = (storage.handler(), Arc::clone(&self.workload.hints));
        let tap = Tap { service, hints, history: Arc::clone(&self.workload.history) };
        let serving = transport.serve(options, ring, Arc::new(tap)).await?;
        let (stop, stopped) = oneshot::channel();
        {
            let mut state = self.state.lock();
            (state.service, state.stop) = (Some(storage.handler()), Some(stop));
        }
        tokio::select! {
            biased;
            Ok(()) = stopped => storage.stop(serving).await,
            error = storage.refused() => Err(error),
        }
    }

    /// Lets the server end in order; its supervisor starts it again.
    pub(crate) fn stop(&self) {
        if let Some(stop) = self.state.lock().stop.take() {
            // It may have ended by itself.
            let _ = stop.send(());
        }
    }

    fn link(&self, address: String, env: &Env) -> LinkOptions {
        LinkOptions {
            managers: named_managers(),
            key: self.key.clone(),
            node: self.node,
            kind: ServiceKind::Storage,
            address,
            incarnation: Incarnation(env.random_u128()),
            tags: BTreeMap::new(),
            version: "simulated".into(),
            adopts_at_once: false,
        }
    }

    async fn open(&self, env: &Env, pool: &Pool) -> Result<Vec<Arc<Store>>> {
        let mut stores = Vec::new();
        for (number, disk) in (1..).zip(self.disks()) {
            let device: Arc<dyn Disk> = disk;
            if Store::identify(&device).await?.is_none() {
                let disk = DiskId(u128::from(self.node.0) * 10 + number);
                Store::format(&device, Identity { disk, cluster: self.key.cluster }).await?;
            }
            let options = StoreOptions {
                cache_bytes: 1 << 20,
                log_slack_bytes: 1 << 20,
                reserve_bytes: 4 << 20,
                skip_sync: kiln_types::rehearsal::planted("acknowledge without a sync"),
                ..StoreOptions::default()
            };
            let open = || {
                let options = options.clone();
                Store::open(Arc::clone(&device), env.clone(), pool.clone(), options)
            };
            stores.push(match open().await {
                // The only record of a target is lost: such a disk has to be replaced.
                Err(error) if error.code() == Code::Corrupt && self.flip_back() => {
                    note!(self.log, "bits of {} flip back: {error}", self.name);
                    open().await?
                }
                opened => opened?,
            });
        }
        Ok(stores)
    }

    /// A bit of one of its disks flips.
    pub(crate) fn flip(&self, disk: usize, at: u64, bit: u8) {
        let mut state = self.state.lock();
        state.flips.push((disk, at, bit));
        state.disks[disk].flip_bit(at, bit);
    }

    /// Takes back what has flipped since this was done last, if anything.
    fn flip_back(&self) -> bool {
        let mut state = self.state.lock();
        let flips = std::mem::take(&mut state.flips);
        flips.iter().for_each(|(disk, at, bit)| state.disks[*disk].flip_bit(*at, *bit));
        !flips.is_empty()
    }

    /// Ends the server's process, with or without its machine.
    pub(crate) fn crash(&self, loses_power: bool) {
        let mut state = self.state.lock();
        state.is_up = false;
        let service = state.service.take();
        drop(state);
        drop(service);
        self.road.network.crash(&self.name);
        self.host.crash();
        for disk in &mut self.state.lock().disks {
            *disk = if loses_power { disk.power_loss() } else { disk.kill() };
        }
    }
}
