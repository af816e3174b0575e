//! What was written to one file and is not durable: which extents there are, and which may be sent now.
//! Pure: no I/O, no clock, no waiting.
//!
//! The file is cut into **pieces** (chunks, or parts of large chunks). An extent never crosses a border
//! between them, and one **flight** at most is under way in a piece, so that what is written later also
//! arrives later. While bytes fly they are still seen by readers; what is written over them meanwhile is
//! an extent of its own, which flies afterwards.
//!
//! Every write has a **stamp**, counting up, and an extent has that of its oldest write. An extent may
//! fly when its stamp is at most `wanted`, or when it is complete: it reaches its piece's end and is
//! worth a request. To flush is to raise `wanted` to the present and to wait until nothing that is
//! pending has an older stamp; as stamps of extents never rise, later writers cannot hold that up.

use super::extent::{Extent, memory_of};
use super::overlay::Overlay;
use kiln_memory::{Bytes, Pool};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The largest piece.
const PIECE_BYTES_MAX: u64 = 1 << 20;

/// Flights of one file that are under way at a time.
const FLIGHTS: usize = 16;

/// The dirty bytes of one file.
pub(super) struct Dirty {
    piece_bytes: u64,
    /// By offset in the file; never overlapping.
    extents: BTreeMap<u64, Extent>,
    /// By piece.
    flights: BTreeMap<u64, Flight>,
    /// Pieces in which a write that goes through waits for its turn or flies, and how many do.
    claims: BTreeMap<u64, u32>,
    /// (rank, offset) of the extents in pieces that are neither flown over nor claimed.
    ready: BTreeSet<(u64, u64)>,
    /// (stamp, offset) of everything that is not durable, flights too.
    pending: BTreeSet<(u64, u64)>,
    stamp: u64,
    wanted: u64,
    frozen: bool,
    usage: Usage,
}

/// Bytes on their way to the backing.
struct Flight {
    offset: u64,
    stamp: u64,
    bytes: Bytes,
    memory: u64,
    /// By a writer that waits for it, and has claimed the piece.
    through: bool,
}

/// Memory that dirty bytes hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Usage {
    /// All of it.
    pub(super) held: u64,
    /// Of that, what is not flying.
    pub(super) waiting: u64,
}

/// What a write makes of the extents that it touches: one, from `start` to `end`.
struct Merge {
    start: u64,
    end: u64,
    /// Offsets of the touched extents.
    touched: Vec<u64>,
    form: Form,
}

enum Form {
    /// The written bytes as they are.
    Given,
    /// The first touched extent has room for all.
    Grown,
    /// A new buffer of so many bytes.
    New(usize),
}

impl Dirty {
    /// Nothing is dirty, in a file of chunks of so many bytes.
    pub(super) fn new(chunk_bytes: u32) -> Self {
        Self {
            piece_bytes: u64::from(chunk_bytes).min(PIECE_BYTES_MAX),
            extents: BTreeMap::new(),
            flights: BTreeMap::new(),
            claims: BTreeMap::new(),
            ready: BTreeSet::new(),
            pending: BTreeSet::new(),
            stamp: 0,
            wanted: 0,
            frozen: false,
            usage: Usage::default(),
        }
    }

    /// The largest unit of a request; divides the chunk.
    pub(super) fn piece_bytes(&self) -> u64 {
        self.piece_bytes
    }

    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// How much memory a write inside one piece would take.
    pub(super) fn need(&self, offset: u64, length: usize) -> u64 {
        let merge = self.merge(offset, length);
        let memory = |start: &u64| self.extents[start].memory();
        let before: usize = merge.touched.iter().map(memory).sum();
        let after = match merge.form {
            Form::Given => length,
            Form::Grown => merge.touched.first().map_or(0, memory),
            Form::New(capacity) => memory_of(capacity),
        };
        after.saturating_sub(before) as u64
    }

    /// Takes in a write that lies inside one piece.
    pub(super) fn write(&mut self, offset: u64, bytes: &Bytes, buffers: &Pool) {
        self.stamp += 1;
        let Merge { start, end, touched, form } = self.merge(offset, bytes.len());
        let mut taken: Vec<_> = touched.into_iter().map(|at| (at, self.remove(at))).collect();
        let oldest = taken.iter().map(|(_, extent)| extent.stamp).min();
        let stamp = oldest.unwrap_or(self.stamp);
        let mut extent = match form {
            Form::Given => Extent::given(stamp, bytes.clone()),
            Form::Grown => taken.remove(0).1,
            Form::New(capacity) => {
                let mut extent = Extent::with_capacity(stamp, capacity, buffers);
                if let Some((_, first)) = taken.first().filter(|(at, _)| *at < offset) {
                    extent.put(0, first.bytes());
                }
                extent
            }
        };
        extent.stamp = stamp;
        if !matches!(form, Form::Given) {
            extent.put((offset - start) as usize, bytes);
            let written = offset + bytes.len() as u64;
            if let Some((at, last)) = taken.last().filter(|_| end > written) {
                let tail = &last.bytes()[(written - at) as usize..];
                extent.put((written - start) as usize, tail);
            }
        }
        self.insert(start, extent);
    }

    fn merge(&self, offset: u64, length: usize) -> Merge {
        let written = offset + length as u64;
        let piece = self.span(self.piece_of(offset));
        let reach = written.min(piece.end - 1);
        let reaches = |&(start, extent): &(&u64, &Extent)| start + extent.len() as u64 >= offset;
        let found = self.extents.range(piece.start..=reach).rev().take_while(reaches);
        let mut touched: Vec<u64> = found.map(|(start, _)| *start).collect();
        touched.reverse();
        let end_of = |start: &u64| start + self.extents[start].len() as u64;
        let start = touched.first().map_or(offset, |first| offset.min(*first));
        let end = touched.last().map_or(written, |last| written.max(end_of(last)));
        let room = touched.first().filter(|first| **first == start);
        let room = room.map_or(0, |first| self.extents[first].capacity());
        let whole = (end - start) as usize;
        let form = if whole == length && length as u64 >= self.large() {
            Form::Given
        } else if whole <= room {
            Form::Grown
        } else {
            Form::New(self.capacity(whole).min((piece.end - start) as usize))
        };
        Merge { start, end, touched, form }
    }

    /// What is allocated for an extent of `length` bytes: room to grow, and all of a piece once it
    /// looks like becoming one.
    fn capacity(&self, length: usize) -> usize {
        let piece = self.piece_bytes as usize;
        if length >= piece / 4 { piece } else { memory_of(length) }
    }

    /// What is worth a request of its own, and no copy.
    fn large(&self) -> u64 {
        self.piece_bytes / 16
    }

    /// The next bytes that are to be sent, and where to: from now on they fly, until [`Self::land`].
    pub(super) fn take_off(&mut self) -> Option<(u64, Bytes)> {
        let (rank, offset) = *self.ready.first()?;
        if self.frozen || self.flights.len() >= FLIGHTS || rank > self.wanted {
            return None;
        }
        let piece = self.piece_of(offset);
        let extent = self.remove(offset);
        let (stamp, memory) = (extent.stamp, extent.memory() as u64);
        let bytes = extent.freeze();
        self.pending.insert((stamp, offset));
        self.usage.held += memory;
        let flight = Flight { offset, stamp, bytes: bytes.clone(), memory, through: false };
        self.flights.insert(piece, flight);
        self.hold(piece);
        Some((offset, bytes))
    }

    /// A write that goes through wants the piece at `offset`: no other flight starts there before it.
    pub(super) fn claim(&mut self, offset: u64) {
        let piece = self.piece_of(offset);
        *self.claims.entry(piece).or_default() += 1;
        self.hold(piece);
    }

    /// Starts the flight of a write that goes through and has claimed its piece. `false`: another one is
    /// still under way there.
    pub(super) fn lift(&mut self, offset: u64, bytes: &Bytes) -> bool {
        let piece = self.piece_of(offset);
        if self.frozen || self.flights.contains_key(&piece) {
            return false;
        }
        self.carve(offset..offset + bytes.len() as u64);
        self.stamp += 1;
        let (stamp, bytes) = (self.stamp, bytes.clone());
        self.pending.insert((stamp, offset));
        self.flights.insert(piece, Flight { offset, stamp, bytes, memory: 0, through: true });
        true
    }

    /// The flight in the piece at `offset` has ended, well or not.
    pub(super) fn land(&mut self, offset: u64) {
        let piece = self.piece_of(offset);
        let Some(flight) = self.flights.remove(&piece) else { return };
        self.pending.remove(&(flight.stamp, flight.offset));
        self.usage.held -= flight.memory;
        if flight.through {
            self.unclaim(piece);
        }
        if !self.busy(piece) {
            let ready = self.extents.range(self.span(piece));
            let ready: Vec<_> = ready.map(|(at, extent)| (self.rank(*at, extent), *at)).collect();
            self.ready.extend(ready);
        }
    }

    /// Everything that is dirty now is to be sent. Returns what [`Self::settled`] wants.
    pub(super) fn want_all(&mut self) -> u64 {
        self.wanted = self.stamp;
        self.stamp
    }

    /// Whether everything up to this stamp has landed.
    pub(super) fn settled(&self, stamp: u64) -> bool {
        self.pending.first().is_none_or(|(oldest, _)| *oldest > stamp)
    }

    /// Whether there is something that nobody has wanted yet.
    pub(super) fn unwanted(&self) -> bool {
        self.pending.last().is_some_and(|(newest, _)| *newest > self.wanted)
    }

    /// No flight starts any more, until [`Self::thaw`]. `false`: somebody else has frozen it.
    pub(super) fn freeze(&mut self) -> bool {
        !std::mem::replace(&mut self.frozen, true)
    }

    pub(super) fn thaw(&mut self) {
        self.frozen = false;
    }

    /// Whether nothing flies.
    pub(super) fn grounded(&self) -> bool {
        self.flights.is_empty()
    }

    /// Drops what waits in a range.
    pub(super) fn carve(&mut self, range: Range<u64>) {
        self.split(range.start);
        self.split(range.end);
        let inside: Vec<u64> = self.extents.range(range).map(|(start, _)| *start).collect();
        for start in inside {
            self.remove(start);
        }
    }

    fn split(&mut self, at: u64) {
        let Some((&start, extent)) = self.extents.range(..at).next_back() else { return };
        if start + extent.len() as u64 > at {
            let mut extent = self.remove(start);
            let rest = extent.split_off((at - start) as usize);
            self.insert(start, extent);
            self.insert(at, rest);
        }
    }

    /// Adds what a reader of the range must see: what flies, and over that what waits.
    pub(super) fn overlay(&self, range: &Range<u64>, overlay: &mut Overlay) {
        if range.is_empty() {
            return;
        }
        let pieces = self.piece_of(range.start)..=self.piece_of(range.end - 1);
        for flight in self.flights.range(pieces).map(|(_, flight)| flight) {
            let part = |part| flight.bytes.slice(part);
            overlay.add(range, flight.offset, flight.bytes.len(), part);
        }
        let before = self.extents.range(..range.start).next_back();
        for (start, extent) in before.into_iter().chain(self.extents.range(range.clone())) {
            overlay.add(range, *start, extent.len(), |part| extent.part(part));
        }
    }

    /// Whether anything in the range is dirty.
    pub(super) fn touches(&self, range: &Range<u64>) -> bool {
        let inside = |start: u64, length: usize| {
            start < range.end && start + length as u64 > range.start && !range.is_empty()
        };
        let last = self.extents.range(..range.end).next_back();
        let pieces = self.piece_of(range.start)..=self.piece_of(range.end);
        last.is_some_and(|(start, extent)| inside(*start, extent.len()))
            || self
                .flights
                .range(pieces)
                .any(|(_, flight)| inside(flight.offset, flight.bytes.len()))
    }

    /// All that is dirty, in no order; what flies may overlap what was written over it.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let range = |start: u64, length: usize| start..start + length as u64;
        let flights = self.flights.values();
        let flights = flights.map(move |flight| range(flight.offset, flight.bytes.len()));
        flights.chain(self.extents.iter().map(move |(start, extent)| range(*start, extent.len())))
    }

    fn piece_of(&self, offset: u64) -> u64 {
        offset / self.piece_bytes
    }

    fn span(&self, piece: u64) -> Range<u64> {
        let start = piece * self.piece_bytes;
        start..start.saturating_add(self.piece_bytes)
    }

    fn busy(&self, piece: u64) -> bool {
        self.flights.contains_key(&piece) || self.claims.contains_key(&piece)
    }

    /// Complete extents first, then the oldest.
    fn rank(&self, start: u64, extent: &Extent) -> u64 {
        let length = extent.len() as u64;
        let complete = (start + length).is_multiple_of(self.piece_bytes) && length >= self.large();
        if complete { 0 } else { extent.stamp }
    }

    fn unclaim(&mut self, piece: u64) {
        let left = self.claims.remove(&piece).map_or(0, |count| count - 1);
        if left > 0 {
            self.claims.insert(piece, left);
        }
    }

    /// The piece has become busy: its extents are not ready.
    fn hold(&mut self, piece: u64) {
        for (start, extent) in self.extents.range(self.span(piece)) {
            self.ready.remove(&(self.rank(*start, extent), *start));
        }
    }

    fn insert(&mut self, start: u64, extent: Extent) {
        let memory = extent.memory() as u64;
        self.usage.held += memory;
        self.usage.waiting += memory;
        self.pending.insert((extent.stamp, start));
        if !self.busy(self.piece_of(start)) {
            self.ready.insert((self.rank(start, &extent), start));
        }
        self.extents.insert(start, extent);
    }

    fn remove(&mut self, start: u64) -> Extent {
        let extent = self.extents.remove(&start).expect("invariant: the caller has just seen it");
        let memory = extent.memory() as u64;
        self.usage.held -= memory;
        self.usage.waiting -= memory;
        self.pending.remove(&(extent.stamp, start));
        self.ready.remove(&(self.rank(start, &extent), start));
        extent
    }
}
