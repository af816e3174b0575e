//! The disk's space: who may use which block, and when a dropped block may be used again.
//!
//! A reader works without a lock, on blocks that may be dropped meanwhile. It holds a [`Lease`];
//! what is dropped later is free again only when every reader that began before is gone.

mod bits;
mod map;

pub(crate) use bits::Bits;
pub(crate) use map::{Map, Taken};

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

/// Backed blocks that are left to makers of space when the file system beneath is full.
const MAKERS_BLOCKS: u64 = 16;

/// What is left for those who make space when writers are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Keeps the reserve.
    Writer,
    /// Replaces blocks, and gives as many back when it is committed: keeps a quarter of the reserve.
    Renewer,
    /// May take all: truncations, repairs of the log.
    Maker,
}

/// The shared allocator of a disk.
pub(crate) struct Space {
    inner: Arc<Mutex<Inner>>,
    /// Wakes the maintenance: something became free, or a spare segment was taken.
    pub(crate) changed: Arc<Notify>,
}

struct Inner {
    map: Map,
    reserve_blocks: u64,
    /// Log segments that are ready: allocated, and with space on the file system.
    spares: Vec<Extent>,
    /// The last attempt to get a spare segment failed.
    starved: bool,
    /// The file system beneath is full: only backed zones are used.
    tight: bool,
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
            reserve_blocks,
            spares: Vec::new(),
            owned: BTreeMap::new(),
            starved: false,
            tight: false,
            retired: 0,
            current: Arc::new(Node::new()),
        };
        let changed = Arc::new(Notify::new());
        Self { inner: Arc::new(Mutex::new(inner)), changed }
    }

    /// Takes blocks for data; the bare zones among them need space from the file system before they
    /// are written, see [`Self::give_bare`].
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn take(
        &self,
        count: u32,
        hint: Option<u64>,
        priority: Priority,
        only_backed: bool,
    ) -> Result<Taken> {
        let mut inner = self.inner.lock();
        let (keep, keep_backed) = match priority {
            Priority::Writer => (inner.reserve_blocks, inner.backed_keep()),
            Priority::Renewer => (inner.reserve_blocks / 4, MAKERS_BLOCKS),
            Priority::Maker => (0, 0),
        };
        let count_blocks = u64::from(count);
        let lacks_log = priority != Priority::Maker && inner.lacks_log();
        let lacks_backed =
            only_backed && inner.map.backed_free_blocks() < count_blocks + keep_backed;
        if lacks_log || inner.map.free_blocks() < count_blocks + keep {
            return Err(inner.full());
        }
        if lacks_backed && priority == Priority::Maker && inner.spares.len() > 2 {
            // What is kept for the log has its space.
            inner.spares.pop().into_iter().for_each(|spare| inner.give_owned(spare));
        } else if lacks_backed {
            return Err(inner.full());
        }
        inner.map.take(count, hint, only_backed).ok_or_else(|| inner.full())
    }

    /// Gives back what was taken, when the file system has no space for its bare zones: from now on
    /// only backed ones are used, until [`Self::relax`].
    pub(crate) fn give_bare(&self, taken: &Taken) {
        let mut inner = self.inner.lock();
        inner.give(&taken.extents);
        taken.bare.iter().for_each(|zone| inner.map.unback(*zone));
        inner.tight = true;
    }

    /// Whether the file system beneath was full when it was last asked for space.
    pub(crate) fn is_tight(&self) -> bool {
        self.inner.lock().tight
    }

    /// The file system beneath has space again.
    pub(crate) fn relax(&self) {
        self.inner.lock().tight = false;
    }

    /// Gives back blocks that nobody has seen.
    pub(crate) fn give(&self, extents: &[Extent]) {
        self.inner.lock().give(extents);
    }

    /// The refusal of a writer.
    pub(crate) fn full(&self) -> Error {
        self.inner.lock().full()
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

    /// A log segment that is ready to be written. The last one is for `cleaning`, which makes more.
    pub(crate) fn take_spare(&self, cleaning: bool) -> Option<Extent> {
        self.changed.notify_one();
        let mut inner = self.inner.lock();
        let last = inner.spares.len() <= 1 && !cleaning;
        if last { None } else { inner.spares.pop() }
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
        let tight = inner.tight;
        let segment = inner.map.take_segment(tight);
        inner.starved = segment.is_none();
        inner.owned.extend(segment.map(|segment| (segment.start, segment)));
        segment
    }

    /// Gives back a segment that the file system has no room for.
    pub(crate) fn refuse_segment(&self, segment: Extent) {
        let mut inner = self.inner.lock();
        inner.give_owned(segment);
        inner.map.unback(segment);
        (inner.starved, inner.tight) = (true, true);
    }

    /// See [`Map::backed_zones`].
    pub(crate) fn backed_zones(&self) -> Vec<Extent> {
        self.inner.lock().map.backed_zones()
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
        inner.give_owned(zone);
        inner.map.unback(zone);
    }

    /// Free blocks, and dropped ones that will soon be free.
    pub(crate) fn free_blocks(&self) -> u64 {
        let inner = self.inner.lock();
        inner.map.free_blocks() + inner.retired
    }

    /// Blocks that a writer may take when the file system beneath gives none.
    pub(crate) fn backed_writable_blocks(&self) -> u64 {
        let inner = self.inner.lock();
        (inner.map.backed_free_blocks() + inner.retired).saturating_sub(inner.backed_keep())
    }

    /// Free blocks that a writer may take; none while the log lacks space.
    pub(crate) fn writable_blocks(&self) -> u64 {
        let inner = self.inner.lock();
        if inner.lacks_log() {
            return 0;
        }
        (inner.map.free_blocks() + inner.retired).saturating_sub(inner.reserve_blocks)
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
    /// Backed blocks that writers leave to others when the file system beneath is full.
    fn backed_keep(&self) -> u64 {
        MAKERS_BLOCKS + self.reserve_blocks / 4
    }

    fn full(&self) -> Error {
        match self.tight {
            true => Error::new(Code::NoSpace, "the file system beneath the disk is full")
                .with_hint("free space on the file system that holds the disk, or remove files"),
            false => {
                Error::new(Code::NoSpace, "the disk is full").with_hint("remove files or add disks")
            }
        }
    }

    /// Whether writers are refused because the log has too little space, whatever the data has.
    fn lacks_log(&self) -> bool {
        self.starved && self.spares.len() < 3
    }

    /// How many freed segments the log may keep.
    fn spares_max(&self) -> usize {
        let short = self.tight || self.map.free_blocks() < 2 * self.reserve_blocks;
        if short { SPARES } else { SPARES_MAX }
    }

    fn give(&mut self, extents: &[Extent]) {
        extents.iter().filter(|e| !e.is_hole()).for_each(|e| self.map.give(*e));
    }

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
            inner.give(&dropped.data);
            match dropped.segment {
                Some(segment) if inner.spares.len() < inner.spares_max() => {
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
        let take =
            || space.take(64, None, Priority::Writer, false).expect("there is space").extents;
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
            let data = space.take(1, None, Priority::Writer, false);
            let Ok(Taken { extents: data, .. }) = data else { break };
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
        let code = |count, priority| {
            space.take(count, None, priority, false).map_err(|e| e.code()).map(|_| ())
        };
        assert_eq!(code(541, Priority::Writer), Err(Code::NoSpace));
        assert_eq!(code(540, Priority::Writer), Ok(()));
        assert_eq!(code(1, Priority::Writer), Err(Code::NoSpace));
        assert_eq!(code(76, Priority::Renewer), Err(Code::NoSpace));
        assert_eq!(code(75, Priority::Renewer), Ok(()));
        assert_eq!(code(25, Priority::Maker), Ok(()));
    }

    #[test]
    fn on_a_full_file_system_backed_zones_are_used_and_no_others() {
        let space = Space::new(Map::new(640, 64), 40);
        space.take_exactly(Extent::new(0, 2)).expect("free");
        let take = |count, priority, tight| space.take(count, None, priority, tight);
        let code = |count, priority| take(count, priority, true).map_err(|e| e.code()).map(|_| ());
        let large = take(128, Priority::Writer, false).expect("there is space");
        assert_eq!(large.bare.len(), 2);
        space.give_bare(&large);
        assert!(space.is_tight());
        // 62 blocks are backed; a quarter of the reserve is for renewals, 16 for makers of space.
        assert_eq!(code(37, Priority::Writer), Err(Code::NoSpace));
        assert_eq!(code(30, Priority::Writer), Ok(()));
        assert_eq!(code(17, Priority::Renewer), Err(Code::NoSpace));
        assert_eq!(code(16, Priority::Renewer), Ok(()));
        space.relax();
        let segments = [(); 4].map(|()| space.take_segment().expect("there is space"));
        segments.into_iter().for_each(|segment| space.put_spare(segment));
        space.give_bare(&Taken::default());
        assert_eq!(code(1, Priority::Renewer), Err(Code::NoSpace));
        assert_eq!(code(64, Priority::Maker), Ok(()), "one that was kept for the log");
        assert_eq!(code(64, Priority::Maker), Ok(()), "and another one");
        assert_eq!(code(17, Priority::Maker), Err(Code::NoSpace));
    }
}
