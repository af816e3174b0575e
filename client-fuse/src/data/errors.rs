//! Errors of writing back, each told once to everybody who asks.

use kiln_types::Error;

/// How far somebody has heard of a file's write-back errors. A handle has two: one for fsync, one for
/// close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ErrorMark(u64);

/// The write-back errors of one file: the last one, and how many there were.
#[derive(Default)]
pub(super) struct Errors {
    count: u64,
    last: Option<Error>,
}

impl Errors {
    pub(super) fn record(&mut self, error: Error) {
        self.count += 1;
        self.last = Some(error);
    }

    pub(super) fn mark(&self) -> ErrorMark {
        ErrorMark(self.count)
    }

    /// The last error, if there was one since the mark, which moves on.
    pub(super) fn since(&self, mark: &mut ErrorMark) -> Option<Error> {
        let news = mark.0 < self.count;
        mark.0 = self.count;
        self.last.clone().filter(|_| news)
    }
}
