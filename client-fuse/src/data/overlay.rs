//! What memory knows of a range that is read.

use kiln_memory::Bytes;
use std::ops::Range;

/// Parts of a range, later ones over earlier ones.
#[derive(Default)]
pub(super) struct Overlay {
    parts: Vec<(u64, Bytes)>,
}

impl Overlay {
    /// Adds what `length` bytes at `start` have in common with `range`; `part` gives a part of them.
    pub(super) fn add(
        &mut self,
        range: &Range<u64>,
        start: u64,
        length: usize,
        part: impl FnOnce(Range<usize>) -> Bytes,
    ) {
        let from = range.start.max(start);
        let to = range.end.min(start + length as u64);
        if from < to {
            self.parts.push((from, part((from - start) as usize..(to - start) as usize)));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// All of `range`, where one part is just that.
    pub(super) fn whole(&self, range: &Range<u64>) -> Option<Bytes> {
        match self.parts.as_slice() {
            [(start, bytes)] if *start == range.start && covers(bytes, range) => {
                Some(bytes.clone())
            }
            _ => None,
        }
    }

    /// The shortest range outside which all of `range` is known; empty when all is.
    pub(super) fn missing(&self, range: &Range<u64>) -> Range<u64> {
        let mut spans: Vec<_> =
            self.parts.iter().map(|(start, bytes)| (*start, start + bytes.len() as u64)).collect();
        spans.sort_unstable();
        let known_to = |to: u64, span: &(u64, u64)| if span.0 <= to { to.max(span.1) } else { to };
        let from = spans.iter().fold(range.start, known_to);
        spans.sort_unstable_by_key(|span| std::cmp::Reverse(span.1));
        let known_from =
            |from: u64, span: &(u64, u64)| if span.1 >= from { from.min(span.0) } else { from };
        let to = spans.iter().fold(range.end, known_from);
        from..to.max(from)
    }

    /// Puts what is known over `buffer`, which begins at `offset` of the file.
    pub(super) fn apply(&self, offset: u64, buffer: &mut [u8]) {
        for (start, bytes) in &self.parts {
            let at = (start - offset) as usize;
            buffer[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
}

fn covers(bytes: &Bytes, range: &Range<u64>) -> bool {
    bytes.len() as u64 == range.end - range.start
}
