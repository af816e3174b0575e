//! What the manager orders: targets that are made or deleted here.

use crate::follower::Follower;
use crate::target::{Completeness, INCOMPLETE};
use kiln_manager_link::Orders;
use kiln_rpc::TargetOrder;
use kiln_types::{Code, Error, Result, TargetId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The pause after an order that could not be carried out.
const PAUSE: Duration = Duration::from_secs(1);

impl Follower {
    /// Makes and deletes targets as the manager says, until it is not heard any more. Apart from the
    /// routing information, which does not wait for disks.
    pub(crate) async fn carry_out(self: Arc<Self>, mut orders: watch::Receiver<Orders>) {
        loop {
            let wanted: Orders = orders.borrow_and_update().clone();
            let mut failed = false;
            for order in &wanted.create {
                if let Err(error) = self.create(order).await {
                    tracing::error!(target_id = %order.target, %error, "a target is not created");
                    failed = true;
                }
            }
            for target in &wanted.remove {
                if let Err(error) = self.remove(*target).await {
                    tracing::error!(target_id = %target, %error, "a target is not removed");
                    failed = true;
                }
            }
            let changed = tokio::select! {
                biased;
                changed = orders.changed() => changed,
                () = self.env.sleep(PAUSE), if failed => Ok(()),
            };
            if changed.is_err() {
                return;
            }
        }
    }

    async fn create(&self, order: &TargetOrder) -> Result<()> {
        if let Some(there) = self.service.targets().iter().find(|t| t.id() == order.target) {
            let same = there.chain() == order.chain && there.disk() == order.disk;
            return match same {
                true => Ok(()),
                false => Err(Error::new(
                    Code::Exists,
                    format!("it is here, of chain {} on disk {}", there.chain(), there.disk()),
                )),
            };
        }
        let mut stores = self.service.stores().iter();
        let Some(store) = stores.find(|store| store.identity().disk == order.disk) else {
            tracing::warn!(disk = %order.disk, "the manager names a disk that is not here");
            return Ok(());
        };
        // One that joins a chain with data does not count before it is filled.
        let (state, completeness) = match order.incomplete {
            true => (INCOMPLETE.to_vec(), Completeness::Left),
            false => (Vec::new(), Completeness::Complete),
        };
        store.create_target(order.target, order.chain, state).await?;
        tracing::info!(target_id = %order.target, chain = %order.chain, "target created");
        self.add(order.target, order.chain, store, completeness);
        self.take_up_again();
        Ok(())
    }

    /// Deletes a target that has ceased to serve. It is reported until it is gone.
    async fn remove(&self, id: TargetId) -> Result<()> {
        let targets = self.service.targets();
        let Some(target) = targets.iter().find(|target| target.id() == id) else { return Ok(()) };
        tracing::info!(target_id = %id, chain = %target.chain(), "a target is deleted");
        target.step_out(true);
        target.take_view(None);
        match target.store().remove_target(id).await {
            Err(error) if error.code() != Code::WrongTarget => return Err(error),
            _ => {}
        }
        self.service.remove(id);
        tracing::info!(target_id = %id, "a target is gone");
        Ok(())
    }
}
