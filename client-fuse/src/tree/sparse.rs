//! Space of open files that is allocated, freed, looked for and copied.

use crate::data::Stream;
use crate::filesystem::{Handle, SeekTo};
use crate::tree::Tree;
use crate::tree::files::push;
use crate::tree::handles::OpenFile;
use crate::tree::open_inode::bad_handle;
use kiln_types::{Code, Error, Result};
use rustix::fs::FallocateFlags;
use std::ops::Range;
use std::sync::Arc;

/// What one copy is cut into, and how many pieces are under way.
const PIECE: u64 = 1 << 20;
const PIECES: u64 = 8;
/// A hole of so many bytes becomes one in the copy.
const HOLE_MIN: u64 = 64 << 10;
/// The most that one call copies: programs ask again for the rest.
const COPY_MAX: u64 = 128 << 20;

fn end_of(offset: u64, length: u64) -> Result<u64> {
    let end = offset.checked_add(length).filter(|end| i64::try_from(*end).is_ok());
    end.ok_or_else(|| Error::new(Code::FileTooLarge, "no file goes beyond 2^63 - 1"))
}

fn writable(tree: &Tree, handle: Handle) -> Result<Arc<OpenFile>> {
    let file = tree.handles.file(handle)?;
    if !file.flags.write {
        return Err(bad_handle("writing"));
    }
    Ok(file)
}

/// See [`crate::FileSystem::fallocate`].
pub(crate) async fn fallocate(
    tree: &Tree,
    handle: Handle,
    mode: u32,
    offset: u64,
    length: u64,
) -> Result<()> {
    let file = writable(tree, handle)?;
    if length == 0 {
        return Err(Error::invalid("a range of no bytes"));
    }
    let range = offset..end_of(offset, length)?;
    let flags = FallocateFlags::from_bits_retain(mode);
    let keep_length = flags.contains(FallocateFlags::KEEP_SIZE);
    match flags - FallocateFlags::KEEP_SIZE {
        FallocateFlags::ZERO_RANGE => zero(tree, &file, range, keep_length).await,
        FallocateFlags::PUNCH_HOLE if keep_length => zero(tree, &file, range, true).await,
        rest if rest.is_empty() => allocate(tree, &file, range, keep_length).await,
        _ => Err(Error::new(Code::Unsupported, format!("fallocate of mode {mode:#x}"))),
    }
}

async fn zero(tree: &Tree, file: &OpenFile, range: Range<u64>, keep_length: bool) -> Result<()> {
    file.open.wrote(tree.env.wall());
    let nothing = keep_length && range.start >= file.open.content().length();
    match nothing {
        true => lengthen(tree, file, 0).await,
        false => file.open.content().zero(range, keep_length).await,
    }?;
    if file.flags.sync {
        return push(tree, file, &file.fsync_told).await;
    }
    Ok(())
}

/// Makes the file reach to `end` at least; in any case it counts as changed.
async fn lengthen(tree: &Tree, file: &OpenFile, end: u64) -> Result<()> {
    let attr = file.open.lengthen(end.max(file.open.content().length())).await?;
    tree.nodes.changed_here(&attr, true);
    Ok(())
}

/// Every write takes new blocks, so that none can be kept for a later one: what is allocated is the
/// length, if there is room now for what is not stored.
async fn allocate(
    tree: &Tree,
    file: &OpenFile,
    range: Range<u64>,
    keep_length: bool,
) -> Result<()> {
    if !keep_length {
        file.open.content().reserve(range.end).await?;
    }
    let free = tree.client.stat_fs().await?.free_bytes;
    if range.end - range.start > free && holes_exceed(file, &range, free).await? {
        let text =
            format!("{} bytes are to be allocated, {free} are free", range.end - range.start);
        return Err(Error::new(Code::NoSpace, text));
    }
    lengthen(tree, file, if keep_length { 0 } else { range.end }).await
}

/// Whether more than `free` bytes of a range are not stored.
async fn holes_exceed(file: &OpenFile, range: &Range<u64>, free: u64) -> Result<bool> {
    let content = file.open.content();
    let seek = async |at: u64, to| match content.seek(at, to).await {
        Err(error) if error.code() == Code::BeyondEnd => Ok(range.end),
        found => found.map(|at| at.min(range.end)),
    };
    let (mut at, mut holes) = (range.start, 0);
    while at < range.end && holes <= free {
        let data = seek(at, SeekTo::Data).await?;
        holes += data - at;
        at = if data < range.end { seek(data, SeekTo::Hole).await? } else { data };
    }
    Ok(holes > free)
}

/// How many bytes from `at` on are others than those.
async fn until(file: &OpenFile, at: u64, to: SeekTo) -> Result<u64> {
    match file.open.content().seek(at, to).await {
        Err(error) if error.code() == Code::BeyondEnd => Ok(u64::MAX >> 1),
        found => found.map(|found| found - at),
    }
}

/// See [`crate::FileSystem::copy_range`].
pub(crate) async fn copy_range(
    tree: &Tree,
    (from, from_offset): (Handle, u64),
    (to, to_offset): (Handle, u64),
    length: u64,
) -> Result<u64> {
    let (source, file) = (tree.handles.file(from)?, writable(tree, to)?);
    if !source.flags.read {
        return Err(bad_handle("reading"));
    }
    let there = source.open.content().length().saturating_sub(from_offset);
    let length = length.min(there).min(COPY_MAX);
    end_of(to_offset, length)?;
    let near = from_offset.abs_diff(to_offset) < length;
    if near && source.open.inode() == file.open.inode() {
        return Err(Error::invalid("the ranges of a copy within one file overlap"));
    }
    file.open.wrote(tree.env.wall());
    let mut copied = 0;
    while copied < length {
        let hole = until(&source, from_offset + copied, SeekTo::Data).await?.min(length - copied);
        if hole >= HOLE_MIN {
            let start = to_offset + copied;
            file.open.content().zero(start..start + hole, false).await?;
            copied += hole;
            continue;
        }
        let data = hole + until(&source, from_offset + copied + hole, SeekTo::Hole).await?;
        let batch_end = length.min(copied + data.clamp(PIECE, PIECE * PIECES));
        let mut pieces = Vec::new();
        for at in (copied..batch_end).step_by(PIECE as usize) {
            let (source, file) = (Arc::clone(&source), Arc::clone(&file));
            let (from, to) = (from_offset + at, to_offset + at);
            let bytes = PIECE.min(length - at) as usize;
            pieces.push(tree.env.spawn("copy", async move {
                let content = source.open.content();
                let bytes = content.read(&Stream::default(), from, bytes).await?;
                let length = bytes.len() as u64;
                file.open.content().write(to, bytes).await.map(|()| length)
            }));
        }
        // Only what lies before the first failure, or the end of a file that is cut meanwhile, counts.
        for piece in pieces {
            match piece.join().await? {
                Ok(bytes) if bytes == PIECE.min(length - copied) => copied += bytes,
                Ok(bytes) => return Ok(copied + bytes),
                Err(error) if copied == 0 => return Err(error),
                Err(_) => return Ok(copied),
            }
        }
    }
    if file.flags.sync {
        push(tree, &file, &file.fsync_told).await?;
    }
    Ok(copied)
}
