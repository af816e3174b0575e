//! One sweep of a chain as pages of listings and chunks to remove: no I/O.

use crate::chunks::Removal;
use kiln_types::{ChunkId, Code, Error, Result};
use kiln_wire::Listing;
use std::ops::Range;

/// Removals on one chain, and how each went so far.
pub(crate) struct Sweep<'a> {
    removals: &'a [Removal],
    /// To be listed, the next one last.
    runs: Vec<Run>,
    /// To be removed.
    doomed: Vec<Doomed>,
    outcomes: Vec<Result<()>>,
}

/// What to do next.
pub(crate) enum Step {
    /// List a page of each.
    List(Vec<Run>),
    /// Remove these chunks.
    Remove(Vec<Doomed>),
    Done,
}

/// Chunk ids that are listed together: of one removal, or of whole files whose inodes follow each
/// other, as those of a directory that was filled and is emptied often do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    removals: Range<usize>,
    pub(crate) from: ChunkId,
    pub(crate) to: ChunkId,
}

/// A chunk that has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Doomed {
    /// Of which removal.
    pub(crate) removal: usize,
    /// Its index in the file.
    pub(crate) index: u64,
}

impl<'a> Sweep<'a> {
    pub(crate) fn new(removals: &'a [Removal]) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for (at, removal) in removals.iter().enumerate() {
            match runs.last_mut() {
                Some(run) if follows(&removals[at - 1], removal) => {
                    run.removals.end = at + 1;
                    run.to = chunk(removal, removal.range.end);
                }
                _ => runs.push(Run::of(removals, at)),
            }
        }
        runs.reverse();
        Self { removals, runs, doomed: Vec::new(), outcomes: vec![Ok(()); removals.len()] }
    }

    /// The next requests, at most `limit`: what was listed is removed first.
    pub(crate) fn next(&mut self, limit: usize) -> Step {
        if !self.doomed.is_empty() {
            let rest = self.doomed.len().saturating_sub(limit);
            return Step::Remove(self.doomed.split_off(rest));
        }
        let runs: Vec<_> = std::iter::from_fn(|| self.runs.pop()).take(limit).collect();
        if runs.is_empty() { Step::Done } else { Step::List(runs) }
    }

    /// Takes in a page.
    pub(crate) fn listed(&mut self, run: Run, listing: Result<Listing>) {
        let listing = match listing {
            Ok(listing) => listing,
            Err(error) => return self.not_listed(run, error),
        };
        let removals = &self.removals[run.removals.clone()];
        let doomed = listing.chunks.iter().filter_map(|listed| {
            let (_, inode, index) = listed.chunk.as_file()?;
            let at = removals.binary_search_by_key(&inode, |removal| removal.file.inode).ok()?;
            let removal = run.removals.start + at;
            (listed.epoch < removals[at].below).then_some(Doomed { removal, index })
        });
        self.doomed.extend(doomed);
        let last = listing.last.and_then(|last| last.as_file());
        if let Some((tree, inode, index)) = last {
            self.runs.push(Run { from: ChunkId::file(tree, inode, index + 1), ..run });
        }
    }

    /// One file that cannot be listed keeps none of the others, unless the chain does not answer.
    fn not_listed(&mut self, run: Run, error: Error) {
        if error.code() == Code::DeadlineExceeded {
            self.give_up(&error);
        } else if run.removals.len() > 1 {
            return self.runs.extend(run.removals.rev().map(|at| Run::of(self.removals, at)));
        }
        self.outcomes[run.removals].fill(Err(error));
    }

    /// Takes in how the removal of a chunk went.
    pub(crate) fn removed(&mut self, doomed: Doomed, outcome: Result<()>) {
        let Err(error) = outcome else { return };
        if error.code() == Code::DeadlineExceeded {
            self.give_up(&error);
        }
        self.outcomes[doomed.removal] = Err(error);
    }

    /// The chain does not answer.
    fn give_up(&mut self, error: &Error) {
        for doomed in self.doomed.drain(..) {
            self.outcomes[doomed.removal] = Err(error.clone());
        }
        for run in self.runs.drain(..) {
            self.outcomes[run.removals].fill(Err(error.clone()));
        }
    }

    /// How each removal went.
    pub(crate) fn outcomes(self) -> Vec<Result<()>> {
        self.outcomes
    }
}

impl Run {
    fn of(removals: &[Removal], at: usize) -> Self {
        let removal = &removals[at];
        let (from, to) = (chunk(removal, removal.range.start), chunk(removal, removal.range.end));
        Self { removals: at..at + 1, from, to }
    }
}

fn chunk(removal: &Removal, index: u64) -> ChunkId {
    ChunkId::file(removal.file.tree, removal.file.inode, index)
}

/// Whether no other inode's chunks lie between those of two removals.
fn follows(before: &Removal, removal: &Removal) -> bool {
    let (one, two) = (&before.file, &removal.file);
    one.tree == two.tree
        && one.inode.0.checked_add(1) == Some(two.inode.0)
        && before.range.end == u64::MAX
        && removal.range.start == 0
}

#[cfg(test)]
#[path = "removal_tests.rs"]
mod tests;
