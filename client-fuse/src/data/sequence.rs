//! Tells sequential reading from random reading, and how far to read ahead of it.

use std::ops::Range;

/// Requests of one reader are in work at the same time, so that they come a little out of order: this many
/// of them before or behind the expected place still count as sequential.
const SLACK: u64 = 8;

/// What one reader has read lately.
#[derive(Default)]
pub(super) struct Sequence {
    /// Where the next read is expected.
    next: u64,
    /// Bytes read in sequence; 0 before the first read.
    run: u64,
    /// Up to where it was read ahead; 0 when it was not.
    ahead: u64,
}

/// What a read tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing to do.
    Stay,
    /// The reader went elsewhere: what was read ahead for it is of no use.
    Seek,
    /// This should be read ahead.
    Ahead(Range<u64>),
}

impl Sequence {
    /// The reader wants this range of a file of `length` bytes. At most `max` bytes are read ahead of it,
    /// to the end of a piece.
    pub(super) fn read(&mut self, range: Range<u64>, length: u64, piece: u64, max: u64) -> Step {
        let slack = SLACK * (range.end - range.start);
        let near = range.start <= self.next.saturating_add(slack)
            && range.end.saturating_add(slack) >= self.next;
        if self.run == 0 || !near {
            let had = self.ahead > 0;
            *self = Self { next: range.end, run: range.end - range.start, ahead: 0 };
            return if had { Step::Seek } else { Step::Stay };
        }
        if range.end <= self.next || max == 0 {
            return Step::Stay;
        }
        self.run = self.run.saturating_add(range.end - self.next);
        self.next = range.end;
        // As far again as was read so far: who stops early has cost little.
        let window = self.run.saturating_mul(2).min(max);
        let target = self.next.saturating_add(window).div_ceil(piece).saturating_mul(piece);
        let wanted = self.ahead.max(self.next)..target.min(length);
        if wanted.is_empty() {
            return Step::Stay;
        }
        self.ahead = wanted.end;
        Step::Ahead(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 1 << 20;
    const LENGTH: u64 = 100 << 20;

    fn read(sequence: &mut Sequence, start: u64, bytes: u64) -> Step {
        sequence.read(start..start + bytes, LENGTH, PIECE, 8 << 20)
    }

    #[test]
    fn a_sequential_reader_is_read_ahead_of_without_gaps_and_further_with_time() {
        let mut sequence = Sequence::default();
        let (bytes, mut ahead, mut furthest) = (128 << 10, None, 0);
        for start in (0..LENGTH).step_by(bytes as usize) {
            if let Step::Ahead(range) = read(&mut sequence, start, bytes) {
                assert_eq!(range.start, ahead.unwrap_or(2 * bytes));
                assert!(range.end % PIECE == 0 || range.end == LENGTH);
                ahead = Some(range.end);
            }
            furthest = furthest.max(ahead.unwrap_or(0).saturating_sub(start + bytes));
        }
        assert_eq!(ahead, Some(LENGTH));
        assert!((8 << 20..=9 << 20).contains(&furthest), "{furthest}");
    }

    #[test]
    fn a_little_disorder_is_still_sequential() {
        let mut sequence = Sequence::default();
        let order = [0, 2, 1, 4, 3, 6, 7, 5].map(|at| at * 4096);
        let steps: Vec<_> = order.into_iter().map(|at| read(&mut sequence, at, 4096)).collect();
        assert!(!steps.contains(&Step::Seek));
        assert!(steps.iter().any(|step| matches!(step, Step::Ahead(_))));
    }

    #[test]
    fn random_strided_and_repeated_reads_are_not_read_ahead_of() {
        let mut sequence = Sequence::default();
        for at in [50, 3, 77, 20, 21, 90].map(|at| at << 20) {
            assert_eq!(read(&mut sequence, at, 4096), Step::Stay);
        }
        for at in 0..50 {
            assert_eq!(read(&mut sequence, at * 65_536, 4096), Step::Stay);
        }
        for _ in 0..50 {
            assert_eq!(read(&mut sequence, 4096, 4096), Step::Stay);
        }
    }

    #[test]
    fn a_reader_who_leaves_is_noticed_once() {
        let mut sequence = Sequence::default();
        for at in 0..4 {
            read(&mut sequence, at << 17, 1 << 17);
        }
        assert!(sequence.ahead > 0);
        assert_eq!(read(&mut sequence, 60 << 20, 4096), Step::Seek);
        assert_eq!(read(&mut sequence, 10 << 20, 4096), Step::Stay);
    }
}
