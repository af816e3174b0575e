//! Filling a replica from another one: a chunk is made here what it is there, in one step.
//!
//! An install is one submission to the log: the discard of what is pending, and the new version or
//! the drop of the chunk. So a crash leaves the old or the new.

use crate::api::{Change, ChunkCopy, Held, Install, Update};
use crate::core::{Core, Standing};
use crate::record::{Key, Record};
use crate::rules::{self, Verdict};
use crate::state::{Effect, Footprint};
use crate::write::{self, TRIES};
use kiln_types::{CHUNK_BYTES_MAX, ChunkId, ChunkVersion, Result, TargetId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// See [`crate::Store::install`].
pub(crate) async fn install(core: Arc<Core>, target: TargetId, install: Install) -> Result<()> {
    let judge = |held| rules::judge_install(held, &install);
    make(&core, Key { target, chunk: install.chunk }, install.copy.as_ref(), judge).await
}

/// See [`crate::Store::repair`].
pub(crate) async fn repair(
    core: Arc<Core>,
    target: TargetId,
    chunk: ChunkId,
    copy: ChunkCopy,
) -> Result<()> {
    let judge = |held: Held| match held == (Held { committed: copy.version, pending: None }) {
        true => Ok(Verdict::Proceed),
        false => Err(rules::other(chunk, held)),
    };
    make(&core, Key { target, chunk }, Some(&copy), judge).await
}

/// Makes a chunk what `copy` says if `judge` agrees with what is here.
async fn make(
    core: &Core,
    key: Key,
    copy: Option<&ChunkCopy>,
    judge: impl Fn(Held) -> Result<Verdict>,
) -> Result<()> {
    let update = copy.map(|copy| update(key.chunk, copy));
    update.iter().try_for_each(rules::check)?;
    for _ in 0..TRIES {
        let made = {
            let _gate = core.gate.read().await;
            let _chunk = core.chunks.lock(key).await;
            core.state.lock().target(key.target)?;
            let standing = core.any_standing(key).await?;
            let verdict = match judge(standing.held())? {
                Verdict::Done if standing.damaged.is_some() => Verdict::Proceed,
                verdict => verdict,
            };
            match (verdict, &update) {
                // What is here may be committed in memory only.
                (Verdict::Done | Verdict::Commit, _) => return core.barrier().await,
                (Verdict::Proceed, Some(update)) => {
                    write::put(core, key, &standing, update).await?
                }
                (Verdict::Proceed, None) => return drop_chunk(core, key, &standing).await,
            }
        };
        if made {
            return Ok(());
        }
        write::wait_for_space(core).await?;
    }
    Err(core.space.full())
}

/// The copy as a version that shares nothing with what is here.
fn update(chunk: ChunkId, copy: &ChunkCopy) -> Update {
    let change = match &copy.content {
        Some((bytes, checksums)) => {
            Change::Replace { bytes: bytes.clone(), checksums: checksums.clone() }
        }
        None => Change::Remove,
    };
    Update {
        chunk,
        version: copy.version,
        previous: ChunkVersion::NONE,
        epoch: copy.epoch,
        floor: copy.epoch,
        chunk_bytes: CHUNK_BYTES_MAX,
        change,
        retry: None,
        commit: true,
    }
}

/// Forgets a chunk, whose lock the caller holds.
async fn drop_chunk(core: &Core, key: Key, standing: &Standing) -> Result<()> {
    let mut records: Vec<Record> = standing.discard(key).into_iter().collect();
    records.push(Record::Drop { key });
    let footprint = match &standing.committed {
        Some((_, head)) => {
            let all = core.footprint(key, None, head, &BTreeMap::new(), &standing.lease).await?;
            let (dropped, dropped_log) = (all.added, all.added_log);
            Footprint { dropped, dropped_log, ..Footprint::default() }
        }
        None => Footprint::default(),
    };
    let pending = standing.held().pending;
    core.change(key, pending, records, Vec::new(), Effect::Dropped { footprint }).await
}
