//! Formatting a disk, and opening it: after the replay of the log, the use of every block is worked
//! out.

use crate::api::{Identity, Options};
use crate::batch::{BatchBuilder, BatchHeader, for_each_record};
use crate::cache::Cache;
use crate::clean::Cleaner;
use crate::committer::Writer;
use crate::core::{Core, Shape};
use crate::damage;
use crate::extent::{BLOCK, Extent, Position, blocks_of};
use crate::locks::KeyedLocks;
use crate::record::{Key, Part, Record};
use crate::replay::{Replayed, replay};
use crate::space::{Map, Space};
use crate::state::{Pending, State};
use crate::superblock::{SUPERBLOCKS, Superblock};
use kiln_disk::Disk;
use kiln_env::Env;
use kiln_memory::{Buffer, Pool};
use kiln_types::{BLOCK_BYTES, Code, Error, Result};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::{Notify, RwLock};

/// How much of the log is read at once.
const SCAN_BLOCKS: u32 = 256;

/// Writes an empty store: its first batch, then both superblocks.
pub(crate) async fn format(disk: &Arc<dyn Disk>, identity: Identity) -> Result<()> {
    if Superblock::read(disk).await?.is_some() {
        return Err(Error::new(Code::Exists, "the disk holds a chunk store already")
            .with_hint("to use it anew, zero its first 8 KiB; its chunks are lost then"));
    }
    if disk.capacity() < Shape::BYTES_MIN {
        return Err(Error::invalid(format!("a disk of {} bytes is too small", disk.capacity()))
            .with_hint("the smallest is 4 MiB"));
    }
    let shape = Shape::for_disk(disk.capacity());
    let zone = u64::from(shape.zone_blocks);
    let (head, next) =
        (Extent::new(zone, shape.zone_blocks), Extent::new(2 * zone, shape.zone_blocks));
    let header =
        BatchHeader { disk: identity.disk, sequence: 1, durable: 0, previous_crc: 0, next };
    // Written whole, so that the file system has room for them.
    for segment in [head, next] {
        let zeros = Buffer::zeroed(segment.bytes() as usize);
        disk.write(segment.offset(), zeros.freeze()).await?;
    }
    let batch = BatchBuilder::new(Buffer::zeroed(BLOCK_BYTES), head.start);
    disk.write(head.offset(), batch.finish(&header).0).await?;
    disk.sync().await?;
    let mut superblock = Superblock {
        sequence: 0,
        identity,
        blocks: shape.blocks,
        zone_blocks: shape.zone_blocks,
        head,
        head_sequence: 1,
    };
    superblock.write(disk).await
}

/// An open store without its tasks.
pub(crate) struct Opened {
    pub(crate) core: Arc<Core>,
    pub(crate) writer: Writer,
    pub(crate) cleaner: Cleaner,
}

pub(crate) async fn open(
    disk: Arc<dyn Disk>,
    env: Env,
    pool: Pool,
    options: Options,
) -> Result<Opened> {
    let (mut superblock, both) = Superblock::read_copies(&disk).await?.ok_or_else(|| {
        Error::new(Code::NotFound, "the disk holds no chunk store").with_hint("format it first")
    })?;
    if disk.capacity() < superblock.blocks * BLOCK {
        return Err(Error::corrupt("the disk is smaller than when it was formatted"));
    }
    if !both {
        tracing::warn!(disk = %disk.describe(), "one superblock is damaged or old: written anew");
        superblock.write(&disk).await?;
    }
    let replayed = replay(&disk, &pool, &superblock).await?;
    // What was read may still be only in the disk's cache: from here on the log says that it is
    // durable.
    disk.sync().await?;
    let Replayed { state, last, batches } = replayed;
    let damaged = !state.lost.is_empty();
    let core = Arc::new(core(disk, env, pool, options, &superblock, state));
    if damaged {
        damage::settle(&core, &batches, last.found.header.next).await?;
    }
    take_structures(&core, last.found.header.next)?;
    take_data(&core, &batches).await?;
    let mut writer = Writer {
        segment: last.segment.extent,
        at: (last.start - last.segment.extent.start) as u32 + last.found.blocks,
        next: last.found.header.next,
        sequence: last.found.header.sequence + 1,
        previous_crc: last.found.crc,
        durable: last.found.header.sequence,
        unproven: false,
        rolled: None,
        short_since: None,
    };
    // A copy of the file may have left out what was zero.
    for zones in core.space.backed_zones() {
        if let Err(error) = core.disk.reserve(zones.offset(), zones.bytes()).await {
            tracing::warn!(disk = %core.disk.describe(), %error, "some zones may lack space");
        }
    }
    // Overwrites what recovery may have cut off, so that it is never seen again.
    writer.cycle(&core).await?;
    if damaged {
        writer.leave_segment(&core).await?;
    }
    Ok(Opened { core, writer, cleaner: Cleaner::new(superblock) })
}

fn core(
    disk: Arc<dyn Disk>,
    env: Env,
    pool: Pool,
    options: Options,
    superblock: &Superblock,
    state: State,
) -> Core {
    let shape = Shape { blocks: superblock.blocks, zone_blocks: superblock.zone_blocks };
    let reserve = shape.reserve_blocks(&options);
    Core {
        identity: superblock.identity,
        shape,
        space: Space::new(Map::new(shape.blocks, shape.zone_blocks), reserve),
        state: Mutex::new(state),
        cache: Cache::new(options.cache_bytes),
        chunks: KeyedLocks::new(),
        gate: RwLock::new(()),
        target_changes: tokio::sync::Mutex::new(()),
        committer: Notify::new(),
        disk,
        env,
        pool,
        options,
    }
}

/// Takes the blocks of superblocks and log.
fn take_structures(core: &Core, next: Extent) -> Result<()> {
    core.space.take_exactly(Extent::new(0, SUPERBLOCKS as u32))?;
    let segments: Vec<Extent> = core.state.lock().segments.iter().map(|s| s.extent).collect();
    segments.into_iter().try_for_each(|segment| core.space.take_log(segment))?;
    core.space.take_log(next)
}

/// Takes the blocks of all versions, and counts what each target needs of disk and log.
async fn take_data(core: &Core, batches: &[(u64, u32)]) -> Result<()> {
    for target in core.state.lock().targets.values_mut() {
        target.live = target.position.cost();
    }
    let mut parts = Vec::new();
    scan(core, batches, |position, record| {
        let Record::Put { key, head, .. } = record else { return Ok(()) };
        let mut state = core.state.lock();
        let Some(target) = state.targets.get_mut(&key.target) else { return Ok(()) };
        if target.index.get(&key.chunk).is_some_and(|slot| slot.position == position) {
            target.live += position.cost();
            parts.extend(head.stored());
            for part in &head.parts {
                if let Part::Inline(group) = part {
                    take_extents(core, group.extents())?;
                    target.blocks += blocks_of(group.extents());
                }
            }
        }
        Ok(())
    })
    .await?;
    if !parts.is_empty() {
        parts.sort_unstable();
        scan(core, batches, |position, record| {
            let Record::Part { key, group, .. } = record else { return Ok(()) };
            if parts.binary_search(&position).is_ok() {
                take_extents(core, group.extents())?;
                if let Some(target) = core.state.lock().targets.get_mut(&key.target) {
                    target.live += position.cost();
                    target.blocks += blocks_of(group.extents());
                }
            }
            Ok(())
        })
        .await?;
    }
    take_pending(core).await
}

fn take_extents(core: &Core, extents: &[Extent]) -> Result<()> {
    let mapped = extents.iter().filter(|extent| !extent.is_hole());
    mapped.into_iter().try_for_each(|extent| core.space.take_exactly(*extent))
}

/// Takes the blocks that only pending versions have.
async fn take_pending(core: &Core) -> Result<()> {
    let pending: Vec<(Key, Pending)> = {
        let state = core.state.lock();
        let targets = state.targets.iter();
        let keyed = targets.flat_map(|(target, found)| {
            let pending = found.pending.iter();
            pending.map(|(chunk, p)| (Key { target: *target, chunk: *chunk }, p.clone()))
        });
        keyed.collect()
    };
    for (key, pending) in pending {
        let standing = core.any_standing(key).await?.whole()?;
        let old = standing.committed.as_ref().map(|(_, head)| head.as_ref());
        let none = std::collections::BTreeMap::new();
        let footprint = core.footprint(key, old, &pending.head, &none, &standing.lease).await?;
        take_extents(core, &footprint.added)?;
        let mut state = core.state.lock();
        let target = state.any_target(key.target)?;
        target.blocks += blocks_of(&footprint.added);
        target.live += pending.position.cost() + footprint.added_log;
        if let Some(pending) = target.pending.get_mut(&key.chunk) {
            pending.footprint = footprint;
        }
    }
    Ok(())
}

/// Reads batches again, neighbours together, and calls `each` for every record.
pub(crate) async fn scan(
    core: &Core,
    batches: &[(u64, u32)],
    mut each: impl FnMut(Position, Record) -> Result<()>,
) -> Result<()> {
    let mut rest = batches;
    while let Some(&(start, _)) = rest.first() {
        let (mut end, mut count) = (start, 0);
        for &(next, blocks) in rest {
            if next != end || end + u64::from(blocks) - start > u64::from(SCAN_BLOCKS) && count > 0
            {
                break;
            }
            end += u64::from(blocks);
            count += 1;
        }
        let bytes = core.read_runs(&[Extent::new(start, (end - start) as u32)]).await?;
        for &(first, blocks) in &rest[..count] {
            let from = (first - start) as usize * BLOCK_BYTES;
            let batch = &bytes[from..from + blocks as usize * BLOCK_BYTES];
            for_each_record(batch, first, &mut each)?;
        }
        rest = &rest[count..];
    }
    Ok(())
}
