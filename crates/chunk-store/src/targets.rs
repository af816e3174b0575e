//! Changes of targets, one at a time.

use crate::core::Core;
use crate::record::{Record, TargetBody};
use crate::state::Effect;
use kiln_types::{ChainId, ChunkVersion, Code, Error, Result, TargetId};
use std::sync::Arc;

pub(crate) async fn create(
    core: Arc<Core>,
    target: TargetId,
    chain: ChainId,
    state: Vec<u8>,
) -> Result<()> {
    let _changes = core.target_changes.lock().await;
    let _gate = core.gate.read().await;
    let body = TargetBody { target, chain, version_max: ChunkVersion::NONE, state, damaged: false };
    {
        let all = core.state.lock();
        all.check()?;
        if all.targets.contains_key(&target) {
            return Err(Error::new(Code::Exists, format!("target {target} is on this disk")));
        }
    }
    // In two batches: the loss of the only one would be the loss of the target.
    for _ in 0..2 {
        let records = vec![Record::Target(body.clone())];
        let receiver = {
            let mut all = core.state.lock();
            Core::submit_waiting(&mut all, records, Vec::new(), Effect::Target)
        };
        core.durable(receiver).await?;
    }
    Ok(())
}

/// `accept`: with its damage.
pub(crate) async fn set_state(
    core: Arc<Core>,
    target: TargetId,
    state: Vec<u8>,
    accept: bool,
) -> Result<()> {
    let _changes = core.target_changes.lock().await;
    let _gate = core.gate.read().await;
    let receiver = {
        let mut all = core.state.lock();
        let body = all.any_target(target)?.body(target);
        let body = TargetBody { state, damaged: body.damaged && !accept, ..body };
        Core::submit_waiting(&mut all, vec![Record::Target(body)], Vec::new(), Effect::Target)
    };
    core.durable(receiver).await
}

/// Marks the target first, so that nothing new is taken; then finds its blocks, which takes a while
/// and stops nobody else; then removes it.
pub(crate) async fn remove(core: Arc<Core>, target: TargetId) -> Result<()> {
    let _changes = core.target_changes.lock().await;
    {
        // Alone: changes of the target that are under way end first.
        let _gate = core.gate.write().await;
        core.state.lock().any_target(target)?.removing = true;
    }
    let removed = remove_marked(&core, target).await;
    if removed.is_err()
        && let Some(target) = core.state.lock().targets.get_mut(&target)
    {
        target.removing = false;
    }
    removed
}

async fn remove_marked(core: &Core, target: TargetId) -> Result<()> {
    core.barrier().await?;
    let data = core.all_extents(target).await?;
    let receiver = {
        let mut state = core.state.lock();
        state.check()?;
        let effect = Effect::TargetRemoved { target, data };
        Core::submit_waiting(&mut state, vec![Record::RemoveTarget { target }], Vec::new(), effect)
    };
    core.durable(receiver).await
}
