//! What every engine asks of a request before it touches the disk.

use kiln_types::{BLOCK_BYTES, Error, Result};

/// One block, as offsets count.
pub(crate) const BLOCK: u64 = BLOCK_BYTES as u64;

/// Refuses ranges off the 4 KiB grid or beyond the end.
pub(crate) fn check_range(capacity: u64, offset: u64, length: u64) -> Result<()> {
    if !offset.is_multiple_of(BLOCK) || !length.is_multiple_of(BLOCK) {
        return Err(Error::invalid(format!(
            "{length} bytes at offset {offset}: a disk works in blocks of {BLOCK} bytes"
        )));
    }
    match offset.checked_add(length) {
        Some(end) if end <= capacity => Ok(()),
        _ => Err(Error::invalid(format!(
            "{length} bytes at offset {offset} reach beyond the disk's {capacity} bytes"
        ))),
    }
}

/// As [`check_range`], and refuses memory that is off the grid.
pub(crate) fn check_transfer(capacity: u64, offset: u64, memory: &[u8]) -> Result<()> {
    check_range(capacity, offset, memory.len() as u64)?;
    if !memory.as_ptr().addr().is_multiple_of(BLOCK_BYTES) {
        return Err(Error::invalid(format!(
            "memory for offset {offset} is not aligned to {BLOCK_BYTES} bytes"
        )));
    }
    Ok(())
}
