//! Whether one chunk's operations can have taken effect one after the other, each between its call and
//! its return: the search of Wing and Gong with Lowe's memory of what was tried.

use crate::content::{self, Content};
use crate::history::{Kind, Operation, Outcome};
use std::collections::{HashMap, HashSet};

/// Steps after which a search is given up. Correct histories take a few for each operation.
const STEPS_MAX: usize = 300_000;

/// What a search finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Linearizable,
    /// There is no such order; what the furthest attempt could not explain.
    Wrong(String),
    /// It would take too long to say.
    Unknown,
}

/// Looks for an order of one chunk's operations.
pub(crate) fn check(operations: &[Operation]) -> Verdict {
    let all: Vec<_> = operations.iter().collect();
    let useful: Vec<_> =
        all.iter().copied().filter(|operation| is_useful(operation, &all)).collect();
    // Most lost writes were never seen: leaving them out first keeps the search short.
    let left_out = useful.len() < all.len();
    let verdict = Search::new(useful).run();
    if verdict == Verdict::Linearizable || !left_out {
        return verdict;
    }
    match (Search::new(all).run(), verdict) {
        // What was never seen can hardly explain anything: only zeros before it.
        (Verdict::Unknown, Verdict::Wrong(text)) => Verdict::Wrong(text),
        (verdict, _) => verdict,
    }
}

/// Whether an operation returned, or what it wrote was seen, or it leaves no trace of its own.
fn is_useful(operation: &Operation, all: &[&Operation]) -> bool {
    let saw = |other: &&Operation| match (other.kind, &other.outcome) {
        (Kind::Read { offset, .. }, Outcome::Saw(bytes)) => {
            content::has_part_of(operation.tag, offset, bytes)
        }
        _ => false,
    };
    operation.returned != u64::MAX
        || matches!(operation.kind, Kind::Truncate { .. } | Kind::Remove | Kind::Replace { .. })
        || all.iter().any(|other| saw(other))
}

struct Search<'a> {
    operations: Vec<&'a Operation>,
    contents: Vec<Content>,
    numbers: HashMap<Content, u32>,
    tried: HashSet<(Box<[u64]>, u32)>,
    taken: Box<[u64]>,
    steps: usize,
    /// The most operations that an attempt took, and what it could not take then.
    furthest: (usize, String),
}

/// One step of an attempt: the change that led here and the reads that saw it, and what may come next.
struct Frame {
    took: Vec<usize>,
    content: u32,
    candidates: Vec<usize>,
    tried: usize,
}

impl<'a> Search<'a> {
    fn new(operations: Vec<&'a Operation>) -> Self {
        let words = operations.len().div_ceil(64);
        Self {
            operations,
            contents: vec![Content::default()],
            numbers: HashMap::from([(Content::default(), 0)]),
            tried: HashSet::new(),
            taken: vec![0; words].into(),
            steps: 0,
            furthest: (0, String::new()),
        }
    }

    fn run(mut self) -> Verdict {
        let Some(first) = self.frame(Vec::new(), 0) else { return Verdict::Linearizable };
        let mut frames = vec![first];
        while let Some(frame) = frames.last_mut() {
            let Some(next) = frame.candidates.get(frame.tried).copied() else {
                let took = frames.pop().map(|frame| frame.took).unwrap_or_default();
                took.into_iter().for_each(|operation| self.flip(operation));
                continue;
            };
            frame.tried += 1;
            let content = frame.content;
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return Verdict::Unknown;
            }
            let Some(content) = self.apply(content, next) else { continue };
            self.flip(next);
            let Some(frame) = self.frame(vec![next], content) else { return Verdict::Linearizable };
            if self.tried.insert((self.taken.clone(), content)) {
                frames.push(frame);
            } else {
                frame.took.into_iter().for_each(|operation| self.flip(operation));
            }
        }
        Verdict::Wrong(self.furthest.1)
    }

    fn flip(&mut self, operation: usize) {
        self.taken[operation / 64] ^= 1 << (operation % 64);
    }

    fn is_taken(&self, operation: usize) -> bool {
        self.taken[operation / 64] >> (operation % 64) & 1 == 1
    }

    /// Takes the reads that `content` explains: they change nothing, so sooner is never worse than later.
    /// `None` when only operations without a return are left.
    fn frame(&mut self, mut took: Vec<usize>, content: u32) -> Option<Frame> {
        loop {
            let candidates = self.candidates()?;
            let before = took.len();
            for operation in &candidates {
                let is_read = matches!(self.operations[*operation].kind, Kind::Read { .. });
                if is_read && self.apply(content, *operation).is_some() {
                    self.flip(*operation);
                    took.push(*operation);
                }
            }
            if took.len() == before {
                self.note(content, &candidates);
                let changes = |o: &usize| !matches!(self.operations[*o].kind, Kind::Read { .. });
                let mut candidates: Vec<_> = candidates.into_iter().filter(changes).collect();
                candidates.sort_by_key(|operation| self.operations[*operation].order);
                return Some(Frame { took, content, candidates, tried: 0 });
            }
        }
    }

    /// The operations that may come next: called before any other that is left returned. `None` when
    /// only operations without a return are left.
    fn candidates(&self) -> Option<Vec<usize>> {
        let left = (0..self.operations.len()).filter(|operation| !self.is_taken(*operation));
        let left: Vec<_> = left.collect();
        let first_return =
            left.iter().map(|operation| self.operations[*operation].returned).min()?;
        if first_return == u64::MAX {
            return None;
        }
        let may = |operation: &usize| self.operations[*operation].called < first_return;
        Some(left.into_iter().filter(may).collect())
    }

    fn apply(&mut self, content: u32, operation: usize) -> Option<u32> {
        let operation = self.operations[operation];
        let before = &self.contents[content as usize];
        if matches!(operation.kind, Kind::Read { .. }) {
            return operation.apply(before).map(|_| content);
        }
        let after = operation.apply(before)?;
        if let Some(number) = self.numbers.get(&after) {
            return Some(*number);
        }
        let number = self.contents.len() as u32;
        self.contents.push(after.clone());
        self.numbers.insert(after, number);
        Some(number)
    }

    fn note(&mut self, content: u32, candidates: &[usize]) {
        let depth = self.taken.iter().map(|word| word.count_ones() as usize).sum();
        if depth < self.furthest.0 {
            return;
        }
        let left =
            candidates.iter().map(|operation| format!("\n  {}", self.operations[*operation]));
        let content = &self.contents[content as usize];
        let text = format!("after {depth} operations, with {content}, none of these leads on:");
        self.furthest = (depth, text + &left.collect::<String>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::bytes_of;

    fn operation(tag: u32, kind: Kind, times: (u64, u64), outcome: Outcome) -> Operation {
        let (called, returned) = times;
        Operation { tag, client: 0, chunk: 0, kind, called, returned, outcome, order: 0 }
    }

    fn write(tag: u32, times: (u64, u64)) -> Operation {
        operation(tag, Kind::Replace { length: 16 }, times, Outcome::Done)
    }

    fn read(of: u32, times: (u64, u64)) -> Operation {
        let bytes = if of == 0 { Vec::new() } else { bytes_of(of, 0..16) };
        operation(99, Kind::Read { offset: 0, length: 64 }, times, Outcome::Saw(bytes))
    }

    fn is_wrong(operations: &[Operation]) -> bool {
        matches!(check(operations), Verdict::Wrong(_))
    }

    #[test]
    fn orders_are_found_and_contradictions_too() {
        assert_eq!(check(&[write(1, (1, 2)), read(1, (3, 4))]), Verdict::Linearizable);
        assert!(is_wrong(&[write(1, (1, 2)), read(0, (3, 4))]), "a lost write");
        assert_eq!(check(&[write(1, (1, 5)), read(0, (2, 3))]), Verdict::Linearizable);
        let back = [write(1, (1, 8)), read(1, (2, 3)), read(0, (4, 5))];
        assert!(is_wrong(&back), "a read that a later one contradicts");
        let mut open = write(1, (1, u64::MAX));
        open.outcome = Outcome::Unknown;
        let late = [open.clone(), read(0, (2, 3)), write(2, (4, 5)), read(1, (6, 7))];
        assert_eq!(check(&late), Verdict::Linearizable);
        let twice = [open, read(1, (2, 3)), write(2, (4, 5)), read(2, (6, 7)), read(1, (8, 9))];
        assert!(is_wrong(&twice), "a write that was applied twice");
    }
}
