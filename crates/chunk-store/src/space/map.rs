//! Which blocks are in use, and the search for free ones.
//!
//! The disk is cut into zones of the size of a log segment. Small requests fill zones that are in
//! use already, so that whole free zones are left for large chunks, log segments and discards.

use super::bits::Bits;
use crate::extent::Extent;
use kiln_types::{Error, Result};

/// Used zones that are searched for one whole run before an empty zone is begun.
const ZONES_SEARCHED: usize = 32;

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
    /// Zones that were in use since they were last given back to the disk.
    stale: Bits,
    /// Stale zones that have been empty for a while.
    aged: Bits,
    /// Where the last search ended, in zones.
    cursor: u64,
}

impl Map {
    /// All `blocks` free.
    pub(crate) fn new(blocks: u64, zone_blocks: u32) -> Self {
        let zone_blocks = u64::from(zone_blocks);
        let zones = blocks.div_ceil(zone_blocks);
        let mut map = Self {
            used: Bits::new(zones * zone_blocks),
            zone_blocks,
            free: zones * zone_blocks,
            zone_free: vec![zone_blocks as u16; zones as usize],
            empty: Bits::new(zones),
            partial: Bits::new(zones),
            stale: Bits::new(zones),
            aged: Bits::new(zones),
            cursor: 0,
        };
        map.empty.put_range(0, zones, true);
        map.set(blocks, zones * zone_blocks - blocks, true);
        map.stale.put_range(0, zones, false);
        map
    }

    pub(crate) fn free_blocks(&self) -> u64 {
        self.free
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
            if used {
                *free -= n as u16
            } else {
                *free += n as u16
            }
            let free = u64::from(*free);
            self.empty.put(zone, free == self.zone_blocks);
            self.partial.put(zone, free > 0 && free < self.zone_blocks);
            self.stale.put(zone, true);
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

    fn grab(&mut self, start: u64, count: u64, out: &mut Vec<Extent>) {
        self.set(start, count, true);
        match out.last_mut() {
            Some(last) if last.end() == start => last.count += count as u32,
            _ => out.push(Extent::new(start, count as u32)),
        }
    }

    /// Takes `count` blocks in as few runs as a short search finds, best right at `hint`; `None`
    /// when fewer than `keep` blocks would be left.
    pub(crate) fn take(&mut self, count: u32, hint: Option<u64>, keep: u64) -> Option<Vec<Extent>> {
        let mut left = u64::from(count);
        if self.free < left + keep {
            return None;
        }
        let mut out = Vec::new();
        if let Some(hint) = hint.filter(|hint| *hint < self.zones() * self.zone_blocks) {
            let end = self.used.find(true, hint, hint + left).unwrap_or(hint + left);
            let run = end.min(self.zones() * self.zone_blocks) - hint;
            if run > 0 {
                self.grab(hint, run, &mut out);
                left -= run;
            }
        }
        while left >= self.zone_blocks {
            let Some(zone) = self.empty_zone() else { break };
            self.grab(zone * self.zone_blocks, self.zone_blocks, &mut out);
            self.cursor = zone;
            left -= self.zone_blocks;
        }
        if left > 0
            && left < self.zone_blocks
            && let Some(start) = self.find_run(left)
        {
            self.grab(start, left, &mut out);
            self.cursor = start / self.zone_blocks;
            left = 0;
        }
        self.gather(left, &mut out);
        Some(out)
    }

    /// An empty zone, best one that has space on the file system already.
    fn empty_zone(&self) -> Option<u64> {
        let used_before = self.empty.next_round_in_both(&self.stale, self.cursor);
        used_before.or_else(|| self.empty.next_round(self.cursor))
    }

    /// A free run of `count` blocks, less than a zone: in a zone that is in use, or an empty one.
    fn find_run(&self, count: u64) -> Option<u64> {
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
        self.empty_zone().map(|zone| zone * self.zone_blocks)
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
    fn gather(&mut self, mut left: u64, out: &mut Vec<Extent>) {
        while left > 0 {
            let partial = self.partial.next_round(self.cursor);
            let Some(zone) = partial.or_else(|| self.empty.next_round(self.cursor)) else { return };
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
    pub(crate) fn take_segment(&mut self) -> Option<Extent> {
        let whole = self
            .empty
            .next_round(self.cursor)
            .map(|zone| Extent::new(zone * self.zone_blocks, self.zone_blocks as u32));
        let half = self.zone_blocks / 2;
        let found = whole.or_else(|| {
            let fits = |zone: &u64| u64::from(self.zone_free[*zone as usize]) >= half;
            let zone_with_run = (0..self.zones()).filter(fits);
            let start = zone_with_run.filter_map(|zone| self.run_in_zone(zone, half)).next()?;
            Some(Extent::new(start, half as u32))
        })?;
        self.set(found.start, u64::from(found.count), true);
        Some(found)
    }

    /// Marks the empty zones that were in use, so that those that still are empty at a later time
    /// can be given back to the disk.
    pub(crate) fn age(&mut self) {
        self.aged.become_both(&self.stale, &self.empty);
    }

    /// Whether there are empty zones that were in use.
    pub(crate) fn has_stale(&self) -> bool {
        self.stale.meets(&self.empty)
    }

    /// Takes a zone that was empty at the last [`Self::age`] and ever since.
    pub(crate) fn take_aged(&mut self) -> Option<Extent> {
        let zone = self.aged.next_round(0)?;
        let extent = Extent::new(zone * self.zone_blocks, self.zone_blocks as u32);
        self.set(extent.start, self.zone_blocks, true);
        Some(extent)
    }

    /// The inverse of [`Self::take_aged`], after the disk has taken the zone back.
    pub(crate) fn give_clean(&mut self, zone: Extent) {
        self.give(zone);
        self.stale.put(zone.start / self.zone_blocks, false);
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
            let mut map = Map::new(1000, 64);
            let mut held: Vec<Vec<Extent>> = Vec::new();
            map.take_exactly(Extent::new(0, 2)).expect("free");
            let mut used: BTreeSet<u64> = [0, 1].into();
            for _ in 0..400 {
                if random.bool() || held.is_empty() {
                    let (count, keep) = (random.u32(1..150), random.u64(..20));
                    let hint = random.bool().then(|| random.u64(..1100));
                    let taken = map.take(count, hint, keep);
                    let fits = 1000 - used.len() as u64 >= u64::from(count) + keep;
                    assert_eq!(taken.is_some(), fits, "seed {seed}");
                    for extent in taken.iter().flatten() {
                        for block in extent.start..extent.end() {
                            assert!(block < 1000 && used.insert(block), "seed {seed}: {block}");
                        }
                    }
                    assert!(taken.iter().all(|t| blocks_of(t) == u64::from(count)));
                    held.extend(taken);
                } else {
                    for extent in held.swap_remove(random.usize(..held.len())) {
                        map.give(extent);
                        (extent.start..extent.end()).for_each(|block| assert!(used.remove(&block)));
                    }
                }
                assert_eq!(map.free_blocks(), 1000 - used.len() as u64, "seed {seed}");
            }
        }
    }

    #[test]
    fn small_requests_leave_whole_zones() {
        let mut map = Map::new(64 * 10, 64);
        for _ in 0..32 {
            assert_eq!(map.take(4, None, 0).map(|e| e.len()), Some(1));
        }
        let large = map.take(64 * 8, None, 0).expect("eight zones are untouched");
        assert_eq!(large.len(), 1);
        assert_eq!(map.take(1, None, 0), None);
    }

    #[test]
    fn segments_and_stale_zones() {
        let mut map = Map::new(64 * 3, 64);
        let first = map.take_segment().expect("empty");
        assert_eq!(first.count, 64);
        map.take(40, None, 0).expect("fits");
        let data = map.take(64, None, 0).expect("fits");
        assert_eq!(map.take_segment(), None, "only 24 blocks are left");
        data.into_iter().for_each(|extent| map.give(extent));
        assert_eq!(map.take_aged(), None);
        map.age();
        let stale = map.take_aged().expect("was in use and is empty");
        map.give_clean(stale);
        assert!(!map.has_stale());
        map.give(first);
        map.age();
        assert_eq!(map.take_aged(), Some(first));
    }
}
