//! Keeps the targets where the manager wants them, and tells it how they are.

use crate::peers::Peers;
use crate::recovery::Recovery;
use crate::service::ChunkService;
use crate::target::{Completeness, INCOMPLETE, Target};
use kiln_chain::replica::View;
use kiln_chunk_store::Store;
use kiln_env::Env;
use kiln_manager_link::{LeaseView, Orders, Reporter};
use kiln_rpc::{DiskReport, TargetOrders, TargetReport};
use kiln_telemetry::metrics;
use kiln_types::rehearsal::mark;
use kiln_types::{Result, RoutingInfo};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::watch;

/// Follows the routing information and the manager's orders.
pub struct Follower {
    /// The targets that it keeps.
    pub service: Arc<ChunkService>,
    /// How new targets reach their neighbours.
    pub peers: Arc<Peers>,
    /// What they may spend on filling others.
    pub recovery: Arc<Recovery>,
    /// Gets the routing information that was taken up.
    pub adopted: watch::Sender<Arc<RoutingInfo>>,
    /// Whose turn it is to show it to targets: never an older one after a newer one.
    pub taking_up: Mutex<()>,
    /// The seams.
    pub env: Env,
}

impl Follower {
    /// Opens the targets that the stores have.
    /// One whose disk lost records is marked first: it has to be filled before it serves.
    ///
    /// # Errors
    /// What the store says.
    pub async fn open_targets(&self) -> Result<()> {
        for store in self.service.stores() {
            for record in store.targets() {
                if record.damaged {
                    mark("a disk lost records: its target is filled");
                    store.accept_damage(record.target, INCOMPLETE.to_vec()).await?;
                    tracing::error!(target_id = %record.target, "the disk lost records: to be filled");
                }
                let completeness = match record.damaged || record.state == INCOMPLETE {
                    true => Completeness::Leaves,
                    false => Completeness::Complete,
                };
                self.add(record.target, record.chain, store, completeness);
            }
        }
        Ok(())
    }

    pub(crate) fn add(
        &self,
        target: kiln_types::TargetId,
        chain: kiln_types::ChainId,
        store: &Arc<Store>,
        completeness: Completeness,
    ) {
        let (store, env, peers) = (Arc::clone(store), self.env.clone(), Arc::clone(&self.peers));
        let recovery = Arc::clone(&self.recovery);
        self.service.add(Target::open(target, chain, store, env, peers, recovery, completeness));
    }

    /// Takes up each version of the routing information, telling `lease`, and each set of orders, until
    /// the senders are gone.
    pub async fn run(
        self,
        lease: Arc<LeaseView>,
        mut routing: watch::Receiver<Arc<RoutingInfo>>,
        mut orders: watch::Receiver<Orders>,
    ) {
        let follower = Arc::new(self);
        let carry_out = Arc::clone(&follower).carry_out(orders.clone());
        let _carry_out = follower.env.spawn("target orders", carry_out);
        loop {
            follower.step_out(&orders.borrow_and_update());
            let newest = Arc::clone(&routing.borrow_and_update());
            let version = newest.version;
            follower.take_up(newest);
            lease.adopt(version);
            let changed = tokio::select! {
                biased;
                changed = routing.changed() => changed,
                changed = orders.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Lets those targets take no part that are not needed any more.
    fn step_out(&self, orders: &TargetOrders) {
        for target in self.service.targets() {
            let id = target.id();
            target.step_out(orders.leave.contains(&id) || orders.remove.contains(&id));
        }
    }

    fn take_up(&self, routing: Arc<RoutingInfo>) {
        let _turn = self.taking_up.lock();
        self.adopted.send_replace(routing);
        self.show_views();
    }

    /// Shows the routing information also to targets that came since.
    pub(crate) fn take_up_again(&self) {
        let _turn = self.taking_up.lock();
        self.show_views();
    }

    fn show_views(&self) {
        let routing = Arc::clone(&self.adopted.borrow());
        for target in self.service.targets() {
            let chain = routing.chains.get(&target.chain());
            target.take_view(chain.and_then(|chain| View::of(chain, target.id())));
        }
    }
}

impl Reporter for ChunkService {
    fn disks(&self) -> Vec<DiskReport> {
        let disk = |store: &Arc<Store>| {
            let usage = store.usage();
            let disk = store.identity().disk.to_string();
            metrics::STORE_USED.of(&disk).set_amount(usage.used_bytes);
            metrics::STORE_CAPACITY.of(&disk).set_amount(usage.capacity_bytes);
            DiskReport {
                disk: store.identity().disk,
                capacity_bytes: usage.capacity_bytes,
                used_bytes: usage.used_bytes,
            }
        };
        self.stores().iter().map(disk).collect()
    }

    fn targets(&self) -> Vec<TargetReport> {
        let used: std::collections::BTreeMap<_, _> =
            self.stores().iter().flat_map(|store| store.usage().targets).collect();
        let report = |target: Arc<Target>| TargetReport {
            target: target.id(),
            local: target.local_state(),
            chain_version: target.chain_version(),
            used_bytes: used.get(&target.id()).copied().unwrap_or(0),
            oldest_io: target.oldest_io(),
            unreachable: target.unreachable(),
            fill: target.progress(),
        };
        let targets = ChunkService::targets(self);
        let waiting: usize = targets.iter().map(|target| target.waiting()).sum();
        metrics::STORAGE_WAITING.set_amount(waiting as u64);
        targets.into_iter().map(report).collect()
    }
}
