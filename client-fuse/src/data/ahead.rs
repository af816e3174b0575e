//! What was read ahead of one file. Pure but for the [`Charge`] that comes with each piece and gives its
//! memory back to the budget when it goes.

use super::overlay::Overlay;
use super::pool::Charge;
use kiln_memory::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;

/// Pieces that were read ahead or are on their way, by offset; never overlapping.
#[derive(Default)]
pub(super) struct Ahead {
    pieces: BTreeMap<u64, Piece>,
}

struct Piece {
    /// The charge's number: names this piece, not one that takes its place.
    number: u64,
    /// The reader that it is meant for.
    reader: u64,
    length: u64,
    /// Bytes that nobody has read.
    unread: u64,
    arrived: Option<(Bytes, Charge)>,
}

impl Ahead {
    /// Bytes that pieces hold or will hold.
    pub(super) fn bytes(&self) -> u64 {
        self.pieces.values().map(|piece| piece.length).sum()
    }

    /// A piece is on its way. `false` where there is one already.
    pub(super) fn begin(&mut self, number: u64, reader: u64, range: &Range<u64>) -> bool {
        let free = self.within(range).next().is_none();
        if free {
            let length = range.end - range.start;
            let piece = Piece { number, reader, length, unread: length, arrived: None };
            self.pieces.insert(range.start, piece);
        }
        free
    }

    /// The piece at `start` has come, or not. Nothing happens if it was dropped meanwhile.
    pub(super) fn arrived(&mut self, start: u64, charge: Charge, bytes: Option<Bytes>) {
        let piece = self.pieces.get_mut(&start).filter(|piece| piece.number == charge.number());
        match (piece, bytes) {
            (Some(piece), Some(bytes)) => piece.arrived = Some((bytes, charge)),
            (Some(_), None) => drop(self.pieces.remove(&start)),
            (None, _) => {}
        }
    }

    /// Adds what a reader of the range may use. `false`: some of it is on its way, and worth waiting for.
    pub(super) fn overlay(&self, range: &Range<u64>, overlay: &mut Overlay) -> bool {
        for (start, piece) in self.within(range) {
            let Some((bytes, _)) = &piece.arrived else { return false };
            overlay.add(range, *start, bytes.len(), |part| bytes.slice(part));
        }
        true
    }

    /// The range was read: pieces that were read as a whole go.
    pub(super) fn consume(&mut self, range: &Range<u64>) {
        let starts: Vec<u64> = self.within(range).map(|(start, _)| *start).collect();
        for start in starts {
            let Some(piece) = self.pieces.get_mut(&start) else { continue };
            let read = range.end.min(start + piece.length) - range.start.max(start);
            piece.unread = piece.unread.saturating_sub(read);
            if piece.unread == 0 {
                self.pieces.remove(&start);
            }
        }
    }

    /// The range has changed: pieces that have a part of it go, also those on their way.
    pub(super) fn forget(&mut self, range: &Range<u64>) {
        let starts: Vec<u64> = self.within(range).map(|(start, _)| *start).collect();
        for start in starts {
            self.pieces.remove(&start);
        }
    }

    /// The reader has gone elsewhere.
    pub(super) fn forget_reader(&mut self, reader: u64) {
        self.pieces.retain(|_, piece| piece.reader != reader);
    }

    /// Drops the piece with this number, wherever it is.
    pub(super) fn forget_piece(&mut self, number: u64) {
        self.pieces.retain(|_, piece| piece.number != number);
    }

    fn within(&self, range: &Range<u64>) -> impl Iterator<Item = (&u64, &Piece)> {
        let start = range.start;
        let reaches = move |(at, piece): &(&u64, &Piece)| *at + piece.length > start;
        self.pieces.range(..range.end).rev().take_while(reaches)
    }
}
