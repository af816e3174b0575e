//! The disk's space: who may use which block, and when a dropped block may be used again.
//!
//! A reader works without a lock, on blocks that may be dropped meanwhile. It holds a [`Lease`];
//! what is dropped later is free again only when every reader that began before is gone.

mod bits;
mod map;

pub(crate) use bits::Bits;
pub(crate) use map::Map;

use crate::extent::{Extent, blocks_of};
use kiln_types::{Code, Error, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use tokio::sync::Notify;

/// Log segments that are kept ready.
pub(crate) const SPARES: usize = 4;

/// Freed log segments stay with the log up to this many: whole free zones may be rare.
const SPARES_MAX: usize = 8;

/// What is left for those who make space when writers are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Keeps the reserve.
    Writer,
    /// May take all: truncations, repairs of the log.
    Maker,
}

/// The shared allocator of a disk.
pub(crate) struct Space {
    inner: Arc<Mutex<Inner>>,
    reserve_blocks: u64,
    /// Wakes the maintenance: something became free, or a spare segment was taken.
    pub(crate) changed: Arc<Notify>,
}

struct Inner {
    map: Map,
    /// Log segments that are ready: allocated, and with space on the file system.
    spares: Vec<Extent>,
    /// The last attempt to get a spare segment failed.
    starved: bool,
    /// What is neither data nor free, by start: segments of the log, spares, zones that are being
    /// given back.
    owned: BTreeMap<u64, Extent>,
    /// Dropped blocks that a reader may still look at.
    retired: u64,
    current: Arc<Node>,
}

/// A reader's claim on everything that was not dropped when it began.
pub(crate) struct Lease {
    _node: Arc<Node>,
}

/// A link in the chain of readers' generations: what was dropped at its end waits for the readers
/// that hold it, and for all links before it, which hold it too.
struct Node {
    space: OnceLock<(Weak<Mutex<Inner>>, Arc<Notify>)>,
    dropped: OnceLock<Dropped>,
    next: Mutex<Option<Arc<Self>>>,
}

/// What nobody will look for any more.
#[derive(Debug, Default)]
pub(crate) struct Dropped {
    pub(crate) data: Vec<Extent>,
    pub(crate) segment: Option<Extent>,
}

impl Dropped {
    fn blocks(&self) -> u64 {
        blocks_of(&self.data) + self.segment.map_or(0, |s| u64::from(s.count))
    }
}

impl Space {
    pub(crate) fn new(map: Map, reserve_blocks: u64) -> Self {
        let inner = Inner {
            map,
            spares: Vec::new(),
            owned: BTreeMap::new(),
            starved: false,
            retired: 0,
            current: Arc::new(Node::new()),
        };
        let changed = Arc::new(Notify::new());
        Self { inner: Arc::new(Mutex::new(inner)), reserve_blocks, changed }
    }

    /// Takes blocks for data.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn take(
        &self,
        count: u32,
        hint: Option<u64>,
        priority: Priority,
    ) -> Result<Vec<Extent>> {
        let mut inner = self.inner.lock();
        let keep = if priority == Priority::Writer { self.reserve_blocks } else { 0 };
        let no_log = priority == Priority::Writer && inner.starved && inner.spares.len() < 2;
        let taken = if no_log { None } else { inner.map.take(count, hint, keep) };
        taken.ok_or_else(|| {
            Error::new(Code::NoSpace, "the disk is full").with_hint("remove files or add disks")
        })
    }

    /// Gives back blocks that nobody has seen.
    pub(crate) fn give(&self, extents: &[Extent]) {
        let mut inner = self.inner.lock();
        extents.iter().filter(|e| !e.is_hole()).for_each(|e| inner.map.give(*e));
    }

    /// Begins a read: call it in the same critical section in which the place to read is looked up.
    pub(crate) fn lease(&self) -> Lease {
        Lease { _node: Arc::clone(&self.inner.lock().current) }
    }

    /// Gives back what has just become invisible to new readers, once the present ones are gone.
    pub(crate) fn retire(&self, dropped: Dropped) {
        if dropped.blocks() == 0 {
            return;
        }
        let next = Arc::new(Node::new());
        let mut inner = self.inner.lock();
        inner.retired += dropped.blocks();
        let old = std::mem::replace(&mut inner.current, Arc::clone(&next));
        let way_back = (Arc::downgrade(&self.inner), Arc::clone(&self.changed));
        let fresh = old.space.set(way_back).is_ok() && old.dropped.set(dropped).is_ok();
        debug_assert!(fresh, "a link ends once");
        *old.next.lock() = Some(next);
        drop(inner);
        drop(old);
    }

    /// A log segment that is ready to be written.
    pub(crate) fn take_spare(&self) -> Option<Extent> {
        let spare = self.inner.lock().spares.pop();
        self.changed.notify_one();
        spare
    }

    pub(crate) fn put_spare(&self, segment: Extent) {
        let mut inner = self.inner.lock();
        inner.spares.push(segment);
        inner.starved = false;
    }

    pub(crate) fn spares(&self) -> Vec<Extent> {
        self.inner.lock().spares.clone()
    }

    /// Takes space for a new log segment; when there is none, writers are refused until there is.
    pub(crate) fn take_segment(&self) -> Option<Extent> {
        let mut inner = self.inner.lock();
        let segment = inner.map.take_segment();
        inner.starved = segment.is_none();
        inner.owned.extend(segment.map(|segment| (segment.start, segment)));
        segment
    }

    /// Gives back a segment that the file system has no room for.
    pub(crate) fn refuse_segment(&self, segment: Extent) {
        let mut inner = self.inner.lock();
        inner.give_owned(segment);
        inner.starved = true;
    }

    /// See [`Map::age`].
    pub(crate) fn age(&self) {
        self.inner.lock().map.age();
    }

    /// See [`Map::has_stale`].
    pub(crate) fn has_stale(&self) -> bool {
        self.inner.lock().map.has_stale()
    }

    /// See [`Map::take_aged`].
    pub(crate) fn take_aged(&self) -> Option<Extent> {
        let mut inner = self.inner.lock();
        let zone = inner.map.take_aged();
        inner.owned.extend(zone.map(|zone| (zone.start, zone)));
        zone
    }

    /// See [`Map::take_exactly`].
    pub(crate) fn take_exactly(&self, extent: Extent) -> Result<()> {
        self.inner.lock().map.take_exactly(extent)
    }

    /// Takes a segment of the log as recovery finds it.
    pub(crate) fn take_log(&self, segment: Extent) -> Result<()> {
        let mut inner = self.inner.lock();
        inner.map.take_exactly(segment)?;
        inner.owned.insert(segment.start, segment);
        Ok(())
    }

    pub(crate) fn give_clean(&self, zone: Extent) {
        let mut inner = self.inner.lock();
        inner.owned.remove(&zone.start);
        inner.map.give_clean(zone);
    }

    /// Free blocks, and dropped ones that will soon be free.
    pub(crate) fn free_blocks(&self) -> u64 {
        let inner = self.inner.lock();
        inner.map.free_blocks() + inner.retired
    }

    /// Free blocks that a writer may take.
    pub(crate) fn writable_blocks(&self) -> u64 {
        self.free_blocks().saturating_sub(self.reserve_blocks)
    }

    /// Which blocks are in use, and which of them are not data; `None` while readers hold dropped
    /// ones.
    pub(crate) fn snapshot(&self) -> Option<(Bits, Vec<Extent>)> {
        let inner = self.inner.lock();
        let owned = inner.owned.values().copied().collect();
        (inner.retired == 0).then(|| (inner.map.used_bits().clone(), owned))
    }
}

impl Inner {
    fn give_owned(&mut self, extent: Extent) {
        self.owned.remove(&extent.start);
        self.map.give(extent);
    }
}

impl Node {
    fn new() -> Self {
        Self { space: OnceLock::new(), dropped: OnceLock::new(), next: Mutex::new(None) }
    }

    /// Frees what was dropped at the end of this link; returns the next one.
    fn release(&mut self) -> Option<Arc<Self>> {
        let dropped = self.dropped.take()?;
        let next = self.next.get_mut().take();
        let (inner, changed) = self.space.take()?;
        if let Some(inner) = inner.upgrade() {
            let mut inner = inner.lock();
            inner.retired -= dropped.blocks();
            dropped.data.iter().filter(|e| !e.is_hole()).for_each(|e| inner.map.give(*e));
            match dropped.segment {
                Some(segment) if inner.spares.len() < SPARES_MAX => {
                    inner.spares.push(segment);
                    inner.starved = false;
                }
                Some(segment) => inner.give_owned(segment),
                None => {}
            }
            changed.notify_one();
        }
        next
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A loop, since a slow reader may have held up a chain of any length.
        let mut next = self.release();
        while let Some(node) = next.take().and_then(Arc::into_inner) {
            let mut node = node;
            next = node.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_blocks_wait_for_the_readers_that_began_before() {
        let space = Space::new(Map::new(640, 64), 0);
        space.take_exactly(Extent::new(0, 64)).expect("free");
        let take = || space.take(64, None, Priority::Writer).expect("there is space");
        let (first, second, third) = (take(), take(), take());
        let retire = |data| space.retire(Dropped { data, segment: None });
        let early = space.lease();
        retire(first);
        let late = space.lease();
        retire(second);
        assert_eq!(space.snapshot().map(|_| ()), None);
        drop(early);
        assert_eq!(space.inner.lock().retired, 64, "the second waits for the late reader");
        retire(third);
        assert_eq!(space.inner.lock().retired, 128);
        drop(late);
        assert_eq!(space.inner.lock().map.free_blocks(), 640 - 64);
    }

    #[test]
    fn a_long_chain_is_released_without_recursion() {
        let space = Space::new(Map::new(640, 64), 0);
        let reader = space.lease();
        for _ in 0..200_000 {
            let data = space.take(1, None, Priority::Writer);
            let Ok(data) = data else { break };
            space.retire(Dropped { data, segment: None });
        }
        for _ in 0..200_000 {
            let link = Dropped { data: vec![Extent::new(1, 0)], segment: None };
            let next = Arc::new(Node::new());
            let mut inner = space.inner.lock();
            let old = std::mem::replace(&mut inner.current, Arc::clone(&next));
            assert!(old.dropped.set(link).is_ok());
            let way_back = (Arc::downgrade(&space.inner), Arc::clone(&space.changed));
            assert!(old.space.set(way_back).is_ok());
            *old.next.lock() = Some(next);
        }
        drop(reader);
        assert_eq!(space.inner.lock().retired, 0);
    }

    #[test]
    fn the_reserve_is_for_those_who_make_space() {
        let space = Space::new(Map::new(640, 64), 100);
        let code = |result: Result<Vec<Extent>>| result.map_err(|e| e.code()).map(|_| ());
        assert_eq!(code(space.take(541, None, Priority::Writer)), Err(Code::NoSpace));
        assert_eq!(code(space.take(540, None, Priority::Writer)), Ok(()));
        assert_eq!(code(space.take(1, None, Priority::Writer)), Err(Code::NoSpace));
        assert_eq!(code(space.take(100, None, Priority::Maker)), Ok(()));
    }
}
