//! Which blocks are in use, and the search for free ones.
//!
//! The disk is cut into zones of the size of a log segment. Small requests fill zones that are in
//! use already, so that whole free zones are left for large chunks, log segments and discards.
//!
//! A file on a file system may have less space than its size. So a zone is *backed* before it is
//! used: whoever takes the first blocks of one takes its space from the file system.

use super::bits::Bits;
use crate::extent::Extent;
use kiln_types::{Error, Result};

/// Used zones that are searched for one whole run before an empty zone is begun.
const ZONES_SEARCHED: usize = 32;

/// Zones that are named as one extent.
const ZONES_IN_RUN: usize = 1024;

pub(crate) struct Map {
    used: Bits,
    zone_blocks: u64,
    free: u64,
    /// Free blocks of each zone.
    zone_free: Vec<u16>,
    /// Zones without a used block.
    empty: Bits,
    /// Zones with used and free blocks.
    partial: Bits,
    /// Zones that have their space on the file system: in use since they were last given back to
    /// the disk.
    backed: Bits,
    /// Free blocks of the other zones.
    bare_blocks: u64,
    /// Backed zones that have been empty for a while.
    aged: Bits,
    /// Where the last search ended, in zones.
    cursor: u64,
}

/// Blocks that were taken.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) extents: Vec<Extent>,
    /// Zones of them that were not backed, and are from now on.
    pub(crate) bare: Vec<Extent>,
}

impl Map {
    /// All `blocks`, whole zones, free.
    pub(crate) fn new(blocks: u64, zone_blocks: u32) -> Self {
        let zone_blocks = u64::from(zone_blocks);
        let zones = blocks / zone_blocks;
        let mut map = Self {
            used: Bits::new(zones * zone_blocks),
            zone_blocks,
            free: zones * zone_blocks,
            zone_free: vec![zone_blocks as u16; zones as usize],
            empty: Bits::new(zones),
            partial: Bits::new(zones),
            backed: Bits::new(zones),
            bare_blocks: zones * zone_blocks,
            aged: Bits::new(zones),
            cursor: 0,
        };
        map.empty.put_range(0, zones, true);
        map
    }

    pub(crate) fn free_blocks(&self) -> u64 {
        self.free
    }

    /// Free blocks that need nothing of the file system.
    pub(crate) fn backed_free_blocks(&self) -> u64 {
        self.free - self.bare_blocks
    }

    pub(crate) fn used_bits(&self) -> &Bits {
        &self.used
    }

    fn zones(&self) -> u64 {
        self.zone_free.len() as u64
    }

    fn set(&mut self, start: u64, count: u64, used: bool) {
        self.used.put_range(start, count, used);
        let (mut at, end) = (start, start + count);
        while at < end {
            let zone = at / self.zone_blocks;
            let n = ((zone + 1) * self.zone_blocks).min(end) - at;
            let free = &mut self.zone_free[zone as usize];
            if !self.backed.contains(zone) {
                self.bare_blocks -= u64::from(*free);
                self.backed.put(zone, true);
            }
            if used {
                *free -= n as u16
            } else {
                *free += n as u16
            }
            let free = u64::from(*free);
            self.empty.put(zone, free == self.zone_blocks);
            self.partial.put(zone, free > 0 && free < self.zone_blocks);
            self.aged.put(zone, false);
            at += n;
        }
        self.free = if used { self.free - count } else { self.free + count };
    }

    /// Takes exactly these blocks, as recovery does.
    ///
    /// # Errors
    /// `Corrupt` when one is taken already or lies beyond the end.
    pub(crate) fn take_exactly(&mut self, extent: Extent) -> Result<()> {
        let within = extent.end() <= self.zones() * self.zone_blocks;
        if !within || self.used.find(true, extent.start, extent.end()).is_some() {
            return Err(Error::corrupt(format!(
                "the blocks {}..{} belong to two owners or lie beyond the disk",
                extent.start,
                extent.end()
            )));
        }
        self.set(extent.start, u64::from(extent.count), true);
        Ok(())
    }

    pub(crate) fn give(&mut self, extent: Extent) {
        debug_assert_eq!(self.used.find(false, extent.start, extent.end()), None, "freed twice");
        self.set(extent.start, u64::from(extent.count), false);
    }

    fn grab(&mut self, start: u64, count: u64, out: &mut Taken) {
        let zones = start / self.zone_blocks..(start + count).div_ceil(self.zone_blocks);
        for zone in zones.filter(|zone| !self.backed.contains(*zone)) {
            out.bare.push(self.zone(zone));
        }
        self.set(start, count, true);
        match out.extents.last_mut() {
            Some(last) if last.end() == start => last.count += count as u32,
            _ => out.extents.push(Extent::new(start, count as u32)),
        }
    }

    fn zone(&self, zone: u64) -> Extent {
        Extent::new(zone * self.zone_blocks, self.zone_blocks as u32)
    }

    /// Takes `count` blocks in as few runs as a short search finds, best right at `hint`; of backed
    /// zones only if `only_backed`. `None` when there are not as many.
    pub(crate) fn take(
        &mut self,
        count: u32,
        hint: Option<u64>,
        only_backed: bool,
    ) -> Option<Taken> {
        let mut left = u64::from(count);
        let there = if only_backed { self.backed_free_blocks() } else { self.free };
        if there < left {
            return None;
        }
        let mut out = Taken::default();
        if let Some(hint) = hint
            && let Some(run) = self.run_at(hint, left, only_backed)
        {
            self.grab(hint, run, &mut out);
            left -= run;
        }
        while left >= self.zone_blocks {
            let Some(zone) = self.empty_zone(only_backed) else { break };
            self.grab(zone * self.zone_blocks, self.zone_blocks, &mut out);
            self.cursor = zone;
            left -= self.zone_blocks;
        }
        if left > 0
            && left < self.zone_blocks
            && let Some(start) = self.find_run(left, only_backed)
        {
            self.grab(start, left, &mut out);
            self.cursor = start / self.zone_blocks;
            left = 0;
        }
        self.gather(left, only_backed, &mut out);
        Some(out)
    }

    /// How many blocks from `hint` on are free, at most `most`; `None` for none.
    fn run_at(&self, hint: u64, most: u64, only_backed: bool) -> Option<u64> {
        let zone = hint / self.zone_blocks;
        let end = match only_backed {
            _ if zone >= self.zones() => return None,
            true if !self.backed.contains(zone) => return None,
            true => (zone + 1) * self.zone_blocks,
            false => self.zones() * self.zone_blocks,
        };
        let end = end.min(hint + most);
        let run = self.used.find(true, hint, end).unwrap_or(end) - hint;
        (run > 0).then_some(run)
    }

    /// An empty zone, best one that is backed.
    fn empty_zone(&self, only_backed: bool) -> Option<u64> {
        let backed = self.empty.next_round_in_both(&self.backed, self.cursor);
        backed.or_else(|| self.empty.next_round(self.cursor).filter(|_| !only_backed))
    }

    /// A free run of `count` blocks, less than a zone: in a zone that is in use, or an empty one.
    fn find_run(&self, count: u64, only_backed: bool) -> Option<u64> {
        let mut from = self.cursor;
        for _ in 0..ZONES_SEARCHED {
            let Some(zone) = self.partial.next_round(from) else { break };
            if u64::from(self.zone_free[zone as usize]) >= count
                && let Some(start) = self.run_in_zone(zone, count)
            {
                return Some(start);
            }
            from = zone + 1;
        }
        self.empty_zone(only_backed).map(|zone| zone * self.zone_blocks)
    }

    fn run_in_zone(&self, zone: u64, count: u64) -> Option<u64> {
        let (mut at, end) = (zone * self.zone_blocks, (zone + 1) * self.zone_blocks);
        while let Some(start) = self.used.find(false, at, end) {
            let stop = self.used.find(true, start, end).unwrap_or(end);
            if stop - start >= count {
                return Some(start);
            }
            at = stop;
        }
        None
    }

    /// Takes any free blocks, zone by zone; the caller knows that there are enough.
    fn gather(&mut self, mut left: u64, only_backed: bool, out: &mut Taken) {
        while left > 0 {
            let partial = self.partial.next_round(self.cursor);
            let Some(zone) = partial.or_else(|| self.empty_zone(only_backed)) else { return };
            let (mut at, end) = (zone * self.zone_blocks, (zone + 1) * self.zone_blocks);
            while left > 0 {
                let Some(start) = self.used.find(false, at, end) else { break };
                let stop = self.used.find(true, start, end.min(start + left));
                let stop = stop.unwrap_or(end.min(start + left));
                self.grab(start, stop - start, out);
                left -= stop - start;
                at = stop;
            }
            self.cursor = zone;
        }
    }

    /// A log segment: a whole zone, or at least half of one.
    pub(crate) fn take_segment(&mut self, only_backed: bool) -> Option<Extent> {
        let whole = self.empty_zone(only_backed).map(|zone| self.zone(zone));
        let half = self.zone_blocks / 2;
        let found = whole.or_else(|| {
            let fits = |zone: &u64| {
                self.partial.contains(*zone) && u64::from(self.zone_free[*zone as usize]) >= half
            };
            let zone_with_run = (0..self.zones()).filter(fits);
            let start = zone_with_run.filter_map(|zone| self.run_in_zone(zone, half)).next()?;
            Some(Extent::new(start, half as u32))
        })?;
        self.set(found.start, u64::from(found.count), true);
        Some(found)
    }

    /// The backed zones, neighbours together.
    pub(crate) fn backed_zones(&self) -> Vec<Extent> {
        let mut runs = Vec::new();
        let mut at = 0;
        while let Some(first) = self.backed.find(true, at, self.zones()) {
            at = self.backed.find(false, first, self.zones()).unwrap_or(self.zones());
            // An extent's count is limited.
            runs.extend((first..at).step_by(ZONES_IN_RUN).map(|from| {
                let to = at.min(from + ZONES_IN_RUN as u64);
                Extent::new(from * self.zone_blocks, ((to - from) * self.zone_blocks) as u32)
            }));
        }
        runs
    }

    /// Marks the empty zones that were in use, so that those that still are empty at a later time
    /// can be given back to the disk.
    pub(crate) fn age(&mut self) {
        self.aged.become_both(&self.backed, &self.empty);
    }

    /// Whether there are empty zones that are backed.
    pub(crate) fn has_stale(&self) -> bool {
        self.backed.meets(&self.empty)
    }

    /// Takes a zone that was empty at the last [`Self::age`] and ever since.
    pub(crate) fn take_aged(&mut self) -> Option<Extent> {
        let zone = self.aged.next_round(0)?;
        let extent = Extent::new(zone * self.zone_blocks, self.zone_blocks as u32);
        self.set(extent.start, self.zone_blocks, true);
        Some(extent)
    }

    /// Takes note that a zone has no space on the file system. One that others use meanwhile is
    /// taken to have it.
    pub(crate) fn unback(&mut self, zone: Extent) {
        let zone = zone.start / self.zone_blocks;
        if self.empty.contains(zone) && self.backed.contains(zone) {
            self.backed.put(zone, false);
            self.bare_blocks += self.zone_blocks;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::blocks_of;
    use std::collections::BTreeSet;

    #[test]
    fn agrees_with_a_set_of_blocks() {
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut map = Map::new(1024, 64);
            let mut held: Vec<Vec<Extent>> = Vec::new();
            map.take_exactly(Extent::new(0, 2)).expect("free");
            let mut used: BTreeSet<u64> = [0, 1].into();
            let mut bare: BTreeSet<u64> = (1..16).collect();
            for _ in 0..400 {
                let backed = |used: &BTreeSet<u64>, bare: &BTreeSet<u64>| {
                    1024 - used.len() as u64 - bare.len() as u64 * 64
                };
                if random.bool() || held.is_empty() {
                    let (count, only_backed) = (random.u32(1..150), random.bool());
                    let hint = random.bool().then(|| random.u64(..1100));
                    let taken = map.take(count, hint, only_backed);
                    let free = 1024 - used.len() as u64;
                    let there = if only_backed { backed(&used, &bare) } else { free };
                    assert_eq!(taken.is_some(), there >= u64::from(count), "seed {seed}");
                    let Some(taken) = taken else { continue };
                    for extent in &taken.extents {
                        for block in extent.start..extent.end() {
                            assert!(block < 1024 && used.insert(block), "seed {seed}: {block}");
                        }
                    }
                    for zone in &taken.bare {
                        assert!(!only_backed && bare.remove(&(zone.start / 64)), "seed {seed}");
                    }
                    let zones = |extent: &Extent| extent.start / 64..=(extent.end() - 1) / 64;
                    let mut zones = taken.extents.iter().flat_map(zones);
                    assert!(zones.all(|zone| !bare.contains(&zone)), "seed {seed}");
                    assert_eq!(blocks_of(&taken.extents), u64::from(count));
                    held.push(taken.extents);
                } else {
                    for extent in held.swap_remove(random.usize(..held.len())) {
                        map.give(extent);
                        (extent.start..extent.end()).for_each(|block| assert!(used.remove(&block)));
                    }
                    let zone = random.u64(1..16);
                    map.unback(Extent::new(zone * 64, 64));
                    if (zone * 64..(zone + 1) * 64).all(|block| !used.contains(&block)) {
                        bare.insert(zone);
                    }
                }
                assert_eq!(map.free_blocks(), 1024 - used.len() as u64, "seed {seed}");
                assert_eq!(map.backed_free_blocks(), backed(&used, &bare), "seed {seed}");
            }
        }
    }

    #[test]
    fn small_requests_leave_whole_zones() {
        let mut map = Map::new(64 * 10, 64);
        for _ in 0..32 {
            assert_eq!(map.take(4, None, false).map(|taken| taken.extents.len()), Some(1));
        }
        assert_eq!(map.take(1, None, true), None, "the two zones in use are full");
        let large = map.take(64 * 8, None, false).expect("eight zones are untouched");
        assert_eq!((large.extents.len(), large.bare.len()), (1, 8));
        assert_eq!(map.take(1, None, false), None);
    }

    #[test]
    fn segments_and_stale_zones() {
        let mut map = Map::new(64 * 3, 64);
        assert_eq!(map.take_segment(true), None, "nothing is backed");
        let first = map.take_segment(false).expect("empty");
        assert_eq!(first.count, 64);
        map.take(40, None, false).expect("fits");
        let data = map.take(64, None, false).expect("fits");
        assert_eq!(map.take_segment(false), None, "only 24 blocks are left");
        data.extents.into_iter().for_each(|extent| map.give(extent));
        assert_eq!(map.take_aged(), None);
        map.age();
        let stale = map.take_aged().expect("was in use and is empty");
        map.give(stale);
        map.unback(stale);
        assert!(!map.has_stale());
        map.give(first);
        map.age();
        assert_eq!(map.take_aged(), Some(first));
    }
}
