//! Reading stored chunks only to verify them.

use crate::service::ChunkService;
use crate::target::Target;
use kiln_chunk_store::{Store, Which};
use kiln_config::ScrubConfig;
use kiln_env::{Env, Task};
use kiln_telemetry::metrics;
use kiln_types::{BLOCK_BYTES, ChunkId, Code, Deadline, Error, Result, TargetId, TruncateEpoch};
use kiln_wire::{Damaged, LIST_LIMIT_MAX, List, Scrubbed};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Bytes that an operator's request reads before it answers, give or take a chunk.
pub(crate) const BYTES_MAX: u64 = 64 << 20;
/// Bytes that the background reads between two pauses.
const BURST: u64 = 4 << 20;
/// How long it waits before it begins: a server that starts has other things to do.
const BREATH: Duration = Duration::from_secs(120);
/// How often it looks whether the next pass is due.
const LOOK: Duration = Duration::from_secs(5);
/// How long one burst may take.
const BURST_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads the committed chunks of a page and verifies each of their blocks; the repair of damaged ones
/// begins. One chunk is in memory at a time.
///
/// # Errors
/// As [`Store::list`], and what [`Store::read`] says about the store as a whole.
pub(crate) async fn scrub(
    env: &Env,
    target: &Arc<Target>,
    list: &List,
    bytes_max: u64,
    deadline: Deadline,
) -> Result<Scrubbed> {
    let limit = list.limit.clamp(1, LIST_LIMIT_MAX) as usize;
    let (store, id) = (target.store(), target.id());
    let found = store.list(id, list.from, list.to, limit).await?;
    let more = found.len() == limit;
    let end = found.last().map(|(chunk, _)| *chunk).filter(|_| more);
    let mut done = Scrubbed { chunks: 0, bytes: 0, damaged: Vec::new(), last: end };
    for (chunk, stat) in found {
        if stat.damaged.is_some() {
            done.damaged.push(Damaged { chunk, offset: 0 });
            target.repair_soon(chunk);
        }
        let Some(committed) = stat.committed.filter(|stat| !stat.removed) else { continue };
        if let Some(offset) = first_damage(store, id, chunk, committed.length).await? {
            done.damaged.push(Damaged { chunk, offset });
            target.repair_soon(chunk);
        }
        done.chunks += 1;
        done.bytes += u64::from(committed.length);
        if done.bytes >= bytes_max || deadline.passed(env.now()) {
            done.last = Some(chunk);
            break;
        }
    }
    Ok(done)
}

/// Begins to scrub each disk of the server in the background, as `config` says at each time.
pub(crate) fn begin_scrubs(
    config: &watch::Receiver<ScrubConfig>,
    service: &Arc<ChunkService>,
    env: &Env,
) -> Vec<Task<()>> {
    let scrub = |store: &Arc<Store>| {
        let (service, store) = (Arc::clone(service), Arc::clone(store));
        env.spawn("scrub", scrub_disk(env.clone(), service, store, config.clone()))
    };
    service.stores().iter().map(scrub).collect()
}

/// Scrubs the targets of one disk for ever, each pass once in a while and no faster than the
/// configuration says.
async fn scrub_disk(
    env: Env,
    service: Arc<ChunkService>,
    store: Arc<Store>,
    mut config: watch::Receiver<ScrubConfig>,
) {
    loop {
        env.sleep(env.jittered(BREATH)).await;
        // Without a sender it stays as it is.
        if config.wait_for(|config| config.rate > 0).await.is_err() {
            return;
        }
        let begun = env.now();
        let mine = |target: &Arc<Target>| Arc::ptr_eq(target.store(), &store);
        let mut targets: Vec<_> = service.targets().into_iter().filter(mine).collect();
        // A server that restarts often gets to all of them nevertheless.
        let first = env.random_below(targets.len().max(1) as u64) as usize;
        let count = targets.len();
        targets.rotate_left(first.min(count));
        for target in targets {
            if let Err(error) = scrub_target(&env, &target, &config).await {
                tracing::warn!(target_id = %target.id(), %error, "the scrub of a target ended early");
            }
        }
        let mut passed = || config.borrow_and_update().every <= env.now().since(begun);
        while !passed() {
            env.sleep(LOOK).await;
        }
    }
}

async fn scrub_target(
    env: &Env,
    target: &Arc<Target>,
    config: &watch::Receiver<ScrubConfig>,
) -> Result<()> {
    let (mut chunks, mut damaged) = (0, 0);
    let mut from = ChunkId::MIN;
    loop {
        let list = List { chain: target.chain(), from, to: ChunkId::MAX, limit: LIST_LIMIT_MAX };
        let deadline = env.deadline_after(BURST_TIMEOUT);
        let done = scrub(env, target, &list, BURST, deadline).await?;
        chunks += u64::from(done.chunks);
        damaged += done.damaged.len();
        metrics::STORAGE_SCRUBBED.add(done.bytes);
        metrics::STORAGE_DAMAGED.add(done.damaged.len() as u64);
        // A pause also for chunks without bytes.
        let cost = done.bytes + u64::from(done.chunks) * BLOCK_BYTES as u64;
        let rate = config.borrow().rate.max(1);
        env.sleep(Duration::from_secs_f64(cost as f64 / rate as f64)).await;
        let Some(last) = done.last else { break };
        from = last.next();
    }
    tracing::debug!(target_id = %target.id(), chunks, damaged, "scrubbed");
    Ok(())
}

/// The offset of a chunk's first block that is not what was written. A chunk that is gone by now has
/// none.
async fn first_damage(
    store: &Store,
    target: TargetId,
    chunk: ChunkId,
    length: u32,
) -> Result<Option<u32>> {
    if is_intact(store, target, chunk, (0, u32::MAX)).await? {
        return Ok(None);
    }
    let block = BLOCK_BYTES as u32;
    for offset in (0..length.max(1)).step_by(BLOCK_BYTES) {
        if !is_intact(store, target, chunk, (offset, block)).await? {
            return Ok(Some(offset));
        }
    }
    // It was replaced meanwhile.
    Ok(None)
}

async fn is_intact(
    store: &Store,
    target: TargetId,
    chunk: ChunkId,
    (offset, length): (u32, u32),
) -> Result<bool> {
    let floor = TruncateEpoch(0);
    match store.read(target, chunk, Which::Committed, offset, length, floor).await {
        Ok(_) => Ok(true),
        Err(error) => judge(error),
    }
}

/// What an error says about one chunk; others end the scrub.
fn judge(error: Error) -> Result<bool> {
    match error.code() {
        Code::ChunkNotFound => Ok(true),
        Code::ChecksumMismatch | Code::Corrupt | Code::DiskFailed => {
            tracing::warn!(%error, "a damaged chunk was found");
            Ok(false)
        }
        _ => Err(error),
    }
}
