//! Whether one chunk's operations can have taken effect one after the other, each between its call and
//! its return: the search of Wing and Gong with Lowe's memory of what was tried.

use crate::content::{self, Content};
use crate::history::{Kind, Operation, Outcome};
use std::collections::HashMap;

/// Steps after which a search is given up. Correct histories take a few for each operation.
const STEPS_MAX: usize = 300_000;

/// What a search finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Linearizable,
    /// There is no such order; what the furthest attempt could not explain.
    Wrong(String),
    /// It would take too long to say; what the furthest attempt could not explain.
    Unknown(String),
}

/// Which of the writes that did not return an attempt may take.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Those that were seen by reads that are still to be explained.
    Seen,
    /// Those, and others that a server was seen to order: they may have made a chunk longer, before it was
    /// cut.
    Ordered,
    /// All.
    All,
}

/// Looks for an order of one chunk's operations.
pub(crate) fn check(operations: &[Operation]) -> Verdict {
    // Most lost writes never took effect: leaving them out first keeps the search short.
    let mut verdict = Verdict::Linearizable;
    for scope in [Scope::Seen, Scope::Ordered, Scope::All] {
        verdict = match (Search::new(operations, scope).run(), verdict) {
            (Verdict::Linearizable, _) => return Verdict::Linearizable,
            // What was neither seen nor ordered can hardly explain anything.
            (Verdict::Unknown(_), Verdict::Wrong(text)) if scope == Scope::All => {
                Verdict::Wrong(text)
            }
            (verdict, _) => verdict,
        };
    }
    verdict
}

/// The reads that may have seen a write that did not return, as far as they tell.
fn witnesses(operation: &Operation, all: &[Operation]) -> Vec<usize> {
    let zeros = match operation.kind {
        Kind::Zero { offset, length } => offset..offset + length,
        _ => 0..0,
    };
    let saw = |read: &Operation| match (read.kind, &read.outcome) {
        (Kind::Read { offset, .. }, Outcome::Saw(bytes)) if !zeros.is_empty() => {
            (offset..).zip(bytes).any(|(at, byte)| *byte == 0 && zeros.contains(&at))
        }
        (Kind::Read { offset, .. }, Outcome::Saw(bytes)) => {
            content::has_part_of(operation.tag, offset, bytes)
        }
        (Kind::Extents { offset, length }, Outcome::Stored(data)) => {
            let (from, to) = (offset.max(zeros.start), (offset + length).min(zeros.end));
            from < to && !data.iter().any(|data| data.start <= from && to <= data.end)
        }
        _ => false,
    };
    (0..all.len()).filter(|read| saw(&all[*read])).collect()
}

/// A set of operations.
type Set = Box<[u64]>;

struct Search<'a> {
    operations: &'a [Operation],
    /// For each write that did not return and leaves no other trace: the reads that saw it. It is taken
    /// only while one of them is left.
    witnesses: Vec<Option<Vec<usize>>>,
    /// Those that returned.
    returned: Set,
    contents: Vec<Content>,
    numbers: HashMap<Content, u32>,
    /// For what was taken of those that returned, and the content: what else was taken. More of that
    /// leads to nothing that less of it does not lead to.
    tried: HashMap<(Set, u32), Vec<Set>>,
    taken: Set,
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
    fn new(operations: &'a [Operation], scope: Scope) -> Self {
        let mut returned: Set = vec![0; operations.len().div_ceil(64)].into();
        let mut all = Vec::new();
        for (i, operation) in operations.iter().enumerate() {
            let is_open = operation.returned == u64::MAX;
            if !is_open {
                returned[i / 64] |= 1 << (i % 64);
            }
            let is_write = matches!(operation.kind, Kind::Write { .. } | Kind::Zero { .. });
            let limited = match scope {
                Scope::Seen => true,
                Scope::Ordered => operation.order == u128::MAX,
                Scope::All => false,
            };
            let limited = limited && is_open && is_write;
            all.push(limited.then(|| witnesses(operation, operations)));
        }
        Self {
            operations,
            witnesses: all,
            taken: vec![0; returned.len()].into(),
            returned,
            contents: vec![Content::default()],
            numbers: HashMap::from([(Content::default(), 0)]),
            tried: HashMap::new(),
            steps: 0,
            furthest: (0, String::new()),
        }
    }

    /// Whether nothing was tried that leads at least as far as what is taken now, with `content`.
    fn is_new(&mut self, content: u32) -> bool {
        let parts = |of: fn(u64, u64) -> u64| -> Set {
            self.taken.iter().zip(&self.returned).map(|(taken, mask)| of(*taken, *mask)).collect()
        };
        let (returned, open) =
            (parts(|taken, mask| taken & mask), parts(|taken, mask| taken & !mask));
        let tried = self.tried.entry((returned, content)).or_default();
        let within = |small: &Set, large: &Set| small.iter().zip(large).all(|(s, l)| s & !l == 0);
        if tried.iter().any(|before| within(before, &open)) {
            return false;
        }
        tried.retain(|before| !within(&open, before));
        tried.push(open);
        true
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
                return Verdict::Unknown(self.furthest.1);
            }
            let Some(content) = self.apply(content, next) else { continue };
            self.flip(next);
            let Some(frame) = self.frame(vec![next], content) else { return Verdict::Linearizable };
            if self.is_new(content) {
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
                let is_read = self.operations[*operation].kind.is_read();
                if is_read && self.apply(content, *operation).is_some() {
                    self.flip(*operation);
                    took.push(*operation);
                }
            }
            if took.len() == before {
                self.note(content, &candidates);
                let changes = |o: &usize| !self.operations[*o].kind.is_read();
                let mut candidates: Vec<_> = candidates.into_iter().filter(changes).collect();
                let next = self.next_read();
                candidates.sort_by_key(|operation| self.promise(*operation, next));
                return Some(Frame { took, content, candidates, tried: 0 });
            }
        }
    }

    /// The read that has to be explained first.
    fn next_read(&self) -> Option<usize> {
        let is_read = |o: &usize| self.operations[*o].kind.is_read();
        let left = (0..self.operations.len()).filter(|o| is_read(o) && !self.is_taken(*o));
        left.min_by_key(|read| self.operations[*read].returned)
    }

    /// How likely it is that a change comes next; less is likelier.
    fn promise(&self, operation: usize, next_read: Option<usize>) -> (u128, bool) {
        let saw = |reads: &Vec<usize>| next_read.is_some_and(|read| reads.contains(&read));
        (self.operations[operation].order, !self.witnesses[operation].as_ref().is_some_and(saw))
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
        let may = |operation: &usize| {
            let seen = self.witnesses[*operation].as_ref();
            self.operations[*operation].called < first_return
                && seen.is_none_or(|reads| reads.iter().any(|read| !self.is_taken(*read)))
        };
        Some(left.into_iter().filter(may).collect())
    }

    fn apply(&mut self, content: u32, operation: usize) -> Option<u32> {
        let operation = &self.operations[operation];
        let before = &self.contents[content as usize];
        if operation.kind.is_read() {
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
