//! Reading stored chunks only to verify them.

use kiln_chunk_store::{Store, Which};
use kiln_env::Env;
use kiln_types::{BLOCK_BYTES, ChunkId, Code, Deadline, Error, Result, TargetId, TruncateEpoch};
use kiln_wire::{Damaged, LIST_LIMIT_MAX, List, Scrubbed};

/// Bytes that one request reads before it answers, give or take a chunk.
const BYTES_MAX: u64 = 64 << 20;

/// Reads the committed chunks of a page and verifies each of their blocks. One chunk is in memory at a
/// time.
///
/// # Errors
/// As [`Store::list`], and what [`Store::read`] says about the store as a whole.
pub(crate) async fn scrub(
    env: &Env,
    store: &Store,
    target: TargetId,
    list: &List,
    deadline: Deadline,
) -> Result<Scrubbed> {
    let limit = list.limit.clamp(1, LIST_LIMIT_MAX) as usize;
    let found = store.list(target, list.from, list.to, limit).await?;
    let more = found.len() == limit;
    let end = found.last().map(|(chunk, _)| *chunk).filter(|_| more);
    let mut done = Scrubbed { chunks: 0, bytes: 0, damaged: Vec::new(), last: end };
    for (chunk, stat) in found {
        let Some(committed) = stat.committed.filter(|stat| !stat.removed) else { continue };
        if let Some(offset) = first_damage(store, target, chunk, committed.length).await? {
            done.damaged.push(Damaged { chunk, offset });
        }
        done.chunks += 1;
        done.bytes += u64::from(committed.length);
        if done.bytes >= BYTES_MAX || deadline.passed(env.now()) {
            done.last = Some(chunk);
            break;
        }
    }
    Ok(done)
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
