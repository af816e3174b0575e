//! Neighbouring bytes that wait to be written.

use kiln_memory::{ALIGNMENT, Bytes, Pool};
use std::ops::Range;

/// Bytes without a gap. Appending to them copies each byte a bounded number of times.
pub(super) struct Extent {
    /// When the oldest of the bytes came, in writes of the file.
    pub(super) stamp: u64,
    data: Data,
}

enum Data {
    /// A large write, as it came.
    Given(Bytes),
    /// Memory of ours that has room to grow: `length` bytes of the buffer are filled, and it counts as
    /// `memory` bytes.
    Own { buffer: kiln_memory::Buffer, length: usize, memory: usize },
}

/// The memory that a pool takes for a buffer.
pub(super) fn memory_of(capacity: usize) -> usize {
    capacity.max(ALIGNMENT).next_power_of_two()
}

impl Extent {
    /// A large write, kept without a copy.
    pub(super) fn given(stamp: u64, bytes: Bytes) -> Self {
        Self { stamp, data: Data::Given(bytes) }
    }

    /// Nothing yet, in a buffer of `capacity` bytes.
    pub(super) fn with_capacity(stamp: u64, capacity: usize, buffers: &Pool) -> Self {
        let memory = memory_of(capacity);
        Self { stamp, data: Data::Own { buffer: buffers.take(capacity), length: 0, memory } }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes().len()
    }

    /// Bytes of memory that it holds.
    pub(super) fn memory(&self) -> usize {
        match &self.data {
            Data::Given(bytes) => bytes.len(),
            Data::Own { memory, .. } => *memory,
        }
    }

    /// How long it can get where it is.
    pub(super) fn capacity(&self) -> usize {
        match &self.data {
            Data::Given(_) => 0,
            Data::Own { buffer, .. } => buffer.len(),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Given(bytes) => bytes,
            Data::Own { buffer, length, .. } => &buffer[..*length],
        }
    }

    /// Puts `bytes` at `at`, which is at most at the end.
    ///
    /// # Panics
    /// When they go beyond the capacity.
    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) {
        let Data::Own { buffer, length, .. } = &mut self.data else {
            unreachable!("invariant: only memory of ours is written to")
        };
        debug_assert!(at <= *length, "extents have no gaps");
        buffer[at..at + bytes.len()].copy_from_slice(bytes);
        *length = (*length).max(at + bytes.len());
    }

    /// Cuts it in two at `at`, without a copy: `self` keeps the first part.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        let data = match &mut self.data {
            Data::Given(bytes) => {
                let rest = bytes.slice(at..bytes.len());
                *bytes = bytes.slice(0..at);
                Data::Given(rest)
            }
            Data::Own { buffer, length, memory } => {
                let rest = (buffer.split_off(at), *length - at, memory.saturating_sub(at));
                (*length, *memory) = (at, *memory - rest.2);
                Data::Own { buffer: rest.0, length: rest.1, memory: rest.2 }
            }
        };
        Self { stamp: self.stamp, data }
    }

    /// A part of the bytes; shared where they cannot change any more, else a copy.
    pub(super) fn part(&self, range: Range<usize>) -> Bytes {
        match &self.data {
            Data::Given(bytes) => bytes.slice(range),
            Data::Own { .. } => Bytes::copy_of(&self.bytes()[range]),
        }
    }

    /// All the bytes, not to be changed any more.
    pub(super) fn freeze(self) -> Bytes {
        match self.data {
            Data::Given(bytes) => bytes,
            Data::Own { mut buffer, length, .. } => {
                buffer.truncate(length);
                buffer.freeze()
            }
        }
    }
}
