//! What clients did, and what they were told.

use crate::content::{self, Content};
use parking_lot::Mutex;
use std::ops::Range;

/// An operation on one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read { offset: u32, length: u32 },
    Extents { offset: u32, length: u32 },
    Write { offset: u32, length: u32 },
    Replace { length: u32 },
    Truncate { length: u32 },
    Zero { offset: u32, length: u32 },
    Remove,
}

impl Kind {
    /// Whether it changes nothing.
    pub(crate) fn is_read(self) -> bool {
        matches!(self, Self::Read { .. } | Self::Extents { .. })
    }
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Not known: it may take effect at any time from its call on, or never.
    Unknown,
    /// It took effect before it returned.
    Done,
    /// It saw these bytes; fewer than asked for at the end of the chunk.
    Saw(Vec<u8>),
    /// These ranges were stored, and the others of what was asked for were not.
    Stored(Vec<Range<u32>>),
}

/// An operation. Times are places in the order of all calls and returns.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// Its number: what it writes carries that.
    pub(crate) tag: u32,
    pub(crate) client: usize,
    pub(crate) chunk: usize,
    pub(crate) kind: Kind,
    pub(crate) called: u64,
    pub(crate) returned: u64,
    pub(crate) outcome: Outcome,
    /// Where in the order of changes it is likely to be.
    pub(crate) order: u128,
}

impl Operation {
    /// The content after this operation took effect; `None` when it cannot have seen `content`.
    pub(crate) fn apply(&self, content: &Content) -> Option<Content> {
        match (self.kind, &self.outcome) {
            (Kind::Read { offset, length }, Outcome::Saw(bytes)) => {
                content.shows(offset, length, bytes).then(|| content.clone())
            }
            (Kind::Extents { offset, length }, Outcome::Stored(data)) => {
                content.stores_at_most(offset, length, data).then(|| content.clone())
            }
            (Kind::Read { .. } | Kind::Extents { .. }, _) => Some(content.clone()),
            (Kind::Write { offset, length }, _) => Some(content.write(self.tag, offset, length)),
            (Kind::Replace { length }, _) => Some(Content::of(self.tag, length)),
            (Kind::Truncate { length }, _) => Some(content.cut(length)),
            (Kind::Zero { offset, length }, _) => Some(content.zero(offset, length)),
            (Kind::Remove, _) => Some(Content::default()),
        }
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { tag, client, chunk, kind, called, returned, outcome, .. } = self;
        write!(f, "{called:>6}..")?;
        match returned {
            &u64::MAX => write!(f, "      ")?,
            returned => write!(f, "{returned:<6}")?,
        }
        write!(f, " client {client} chunk {chunk} #{tag} {kind:?}")?;
        match (kind, outcome) {
            (Kind::Read { offset, .. }, Outcome::Saw(bytes)) => {
                write!(f, " saw {} bytes: {}", bytes.len(), content::describe(*offset, bytes))
            }
            (_, outcome) if self.order == u128::MAX => write!(f, " {outcome:?}"),
            (_, outcome) => {
                write!(f, " {outcome:?} version {}.{}", self.order >> 64, self.order as u64)
            }
        }
    }
}

/// The record of all operations.
#[derive(Default)]
pub(crate) struct History {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    clock: u64,
    operations: Vec<Operation>,
}

impl State {
    fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

impl History {
    /// An operation begins; returns its number. Unless it [`ends`](Self::end), its outcome is unknown.
    pub(crate) fn begin(&self, client: usize, chunk: usize, kind: Kind) -> u32 {
        let mut state = self.state.lock();
        let called = state.now();
        let tag = state.operations.len() as u32 + 1;
        let (returned, outcome, order) = (u64::MAX, Outcome::Unknown, u128::MAX);
        let new = Operation { tag, client, chunk, kind, called, returned, outcome, order };
        state.operations.push(new);
        tag
    }

    /// An operation has returned.
    pub(crate) fn end(&self, tag: u32, outcome: Outcome) {
        let mut state = self.state.lock();
        let now = state.now();
        let operation = &mut state.operations[tag as usize - 1];
        if outcome != Outcome::Unknown {
            operation.returned = now;
        }
        operation.outcome = outcome;
    }

    /// An operation was seen to be at this place in the order of changes.
    pub(crate) fn ordered(&self, tag: u32, order: u128) {
        if let Some(operation) = self.state.lock().operations.get_mut(tag as usize - 1) {
            operation.order = order;
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.state.lock().operations.len()
    }

    /// How many were successful.
    pub(crate) fn successes(&self) -> usize {
        let good = |o: &&Operation| o.outcome != Outcome::Unknown;
        self.state.lock().operations.iter().filter(good).count()
    }

    /// The operations on one chunk that had or may have had an effect, or saw something.
    pub(crate) fn of_chunk(&self, chunk: usize) -> Vec<Operation> {
        let state = self.state.lock();
        let counts = |operation: &&Operation| {
            let is_read = operation.kind.is_read();
            operation.chunk == chunk
                && match operation.outcome {
                    Outcome::Unknown => !is_read,
                    Outcome::Done | Outcome::Saw(_) | Outcome::Stored(_) => true,
                }
        };
        state.operations.iter().filter(counts).cloned().collect()
    }
}
