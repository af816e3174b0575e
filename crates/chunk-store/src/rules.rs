//! What may follow what: the decisions about a new version, pure.

use crate::api::{Change, Held, Install, Update};
use crate::record::Head;
use kiln_types::{
    BLOCK_BYTES, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, ChunkId, ChunkVersion, Code, Error, Result,
    TruncateEpoch, crc32c,
};

/// What to do with an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is there already.
    Done,
    /// It is pending and only has to be committed.
    Commit,
    /// It follows what is there.
    Proceed,
}

/// Checks an update against the chunk's versions.
///
/// # Errors
/// `VersionMismatch`, `StaleEpoch`.
pub(crate) fn judge(
    committed: Option<&Head>,
    pending: Option<ChunkVersion>,
    update: &Update,
) -> Result<Verdict> {
    let known = committed.map_or(ChunkVersion::NONE, |head| head.version);
    let mismatch = |why: String| {
        let message = format!("chunk {} version {}: {why}", update.chunk, update.version);
        Err(Error::new(Code::VersionMismatch, message))
    };
    if pending == Some(update.version) {
        return Ok(if update.commit { Verdict::Commit } else { Verdict::Done });
    }
    if known == update.version && known != ChunkVersion::NONE {
        return Ok(Verdict::Done);
    }
    if let Some(pending) = pending {
        return mismatch(format!("version {pending} is pending"));
    }
    if update.version <= known {
        return mismatch(format!("version {known} is committed"));
    }
    let base = committed.filter(|h| !h.removed).map_or(ChunkVersion::NONE, |head| head.version);
    if update.previous != base {
        return mismatch(format!("it follows version {}, but {base} is here", update.previous));
    }
    let epoch = committed.map_or(TruncateEpoch::default(), |head| head.epoch);
    if update.epoch < epoch {
        return Err(Error::new(
            Code::StaleEpoch,
            format!("chunk {}: epoch {} is older than {epoch}", update.chunk, update.epoch),
        ));
    }
    Ok(Verdict::Proceed)
}

/// Checks an install against what is here.
///
/// # Errors
/// `VersionMismatch`.
pub(crate) fn judge_install(held: Held, install: &Install) -> Result<Verdict> {
    let committed = install.copy.as_ref().map_or(ChunkVersion::NONE, |copy| copy.version);
    if held == (Held { committed, pending: None }) {
        return Ok(Verdict::Done);
    }
    if held == install.expected { Ok(Verdict::Proceed) } else { Err(other(install.chunk, held)) }
}

/// What is here is not what the caller believes.
pub(crate) fn other(chunk: ChunkId, held: Held) -> Error {
    let pending = held.pending.map_or(String::new(), |version| format!(", pending {version}"));
    let message = format!("chunk {chunk}: committed {}{pending} is here", held.committed);
    Error::new(Code::VersionMismatch, message)
}

/// Checks what does not depend on the chunk: limits, and the caller's checksums.
///
/// # Errors
/// `Invalid`, `ChecksumMismatch`.
pub(crate) fn check(update: &Update) -> Result<()> {
    let limit = update.chunk_bytes;
    let allowed = CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX;
    if !limit.is_power_of_two() || !allowed.contains(&limit) {
        return Err(Error::invalid(format!("{limit} is not a chunk size")));
    }
    if update.version == ChunkVersion::NONE {
        return Err(Error::invalid("a new version needs a number"));
    }
    let (offset, bytes, checksums) = match &update.change {
        Change::Write { offset, bytes, checksums } => (*offset, bytes, checksums),
        Change::Replace { bytes, checksums } => (0, bytes, checksums),
        Change::Truncate { length } if *length > limit => {
            return Err(Error::invalid(format!("{length} bytes in a chunk of {limit}")));
        }
        Change::Zero { offset, length } if offset.saturating_add(*length) > limit => {
            return Err(Error::invalid(format!("{length} at {offset} in a chunk of {limit}")));
        }
        Change::Truncate { .. } | Change::Zero { .. } | Change::Remove => return Ok(()),
    };
    if u64::from(offset) + bytes.len() as u64 > u64::from(limit) {
        return Err(Error::invalid(format!(
            "{} bytes at offset {offset} in a chunk of {limit}",
            bytes.len()
        )));
    }
    let pieces = grid(offset, bytes);
    if pieces.len() != checksums.len() {
        return Err(Error::invalid(format!(
            "{} checksums for {} blocks",
            checksums.len(),
            pieces.len()
        )));
    }
    match pieces.iter().zip(checksums).find(|(piece, crc)| crc32c(piece) != **crc) {
        None => Ok(()),
        Some((piece, _)) => Err(Error::new(
            Code::ChecksumMismatch,
            format!(
                "chunk {}: the data at offset {} changed on its way",
                update.chunk,
                offset as usize + (piece.as_ptr().addr() - bytes.as_ptr().addr())
            ),
        )),
    }
}

/// Cuts bytes that lie at `offset` in a chunk at the chunk's 4 KiB grid.
pub(crate) fn grid(offset: u32, bytes: &[u8]) -> Vec<&[u8]> {
    let first = (BLOCK_BYTES - offset as usize % BLOCK_BYTES).min(bytes.len());
    let (head, rest) = bytes.split_at(first);
    let head = Some(head).filter(|head| !head.is_empty());
    head.into_iter().chain(rest.chunks(BLOCK_BYTES)).collect()
}
