//! Views of a block: one that may write, and any number that may read.

use crate::block::{Block, Memory};
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Weak};

/// A range of aligned memory that nobody else can see: read and write it.
pub struct Buffer {
    block: Arc<Block>,
    start: usize,
    length: usize,
}

/// A range of memory that nobody can write any more: read it, clone it, slice it.
#[derive(Clone)]
pub struct Bytes {
    block: Arc<Block>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// Zeroed memory outside any pool; prefer [`crate::Pool::take`] on hot paths.
    pub fn zeroed(length: usize) -> Self {
        Self::over(Arc::new(Block::new(Memory::allocate(length), Weak::new())), length)
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    pub(crate) fn over(block: Arc<Block>, length: usize) -> Self {
        assert!(length <= block.memory().bytes(), "a buffer lies inside its block");
        Self { block, start: 0, length }
    }

    /// Cuts the range in two at `at`: `self` keeps the first part, the second part is returned.
    ///
    /// # Panics
    /// When `at` is beyond the end.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.length, "split at {at} of {} bytes", self.length);
        let rest = Self {
            block: Arc::clone(&self.block),
            start: self.start + at,
            length: self.length - at,
        };
        self.length = at;
        rest
    }

    /// Joins `next` to the end if it is the part right behind `self` in the same memory; gives it back
    /// otherwise.
    ///
    /// # Errors
    /// The same buffer, when it is not adjacent.
    pub fn join(&mut self, next: Self) -> Result<(), Self> {
        if Arc::ptr_eq(&self.block, &next.block) && self.start + self.length == next.start {
            self.length += next.length;
            Ok(())
        } else {
            Err(next)
        }
    }

    /// Shortens the range to `length` bytes.
    ///
    /// # Panics
    /// When it is shorter already.
    pub fn truncate(&mut self, length: usize) {
        assert!(length <= self.length, "truncate to {length} of {} bytes", self.length);
        self.length = length;
    }

    /// Gives up the right to write, for good.
    pub fn freeze(self) -> Bytes {
        Bytes { block: self.block, start: self.start, length: self.length }
    }

    /// Whether the start lies on an [`crate::ALIGNMENT`] border, as direct I/O wants it.
    pub fn is_aligned(&self) -> bool {
        self.start.is_multiple_of(crate::ALIGNMENT)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies inside the block (checked when made), the memory is initialised (zeroed
        // at allocation), and no other view covers it.
        unsafe {
            let start = self.block.memory().start().as_ptr().add(self.start);
            std::slice::from_raw_parts(start, self.length)
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref; this view is the only one of the range and is borrowed mutably.
        unsafe {
            let start = self.block.memory().start().as_ptr().add(self.start);
            std::slice::from_raw_parts_mut(start, self.length)
        }
    }
}

impl Bytes {
    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        Buffer::copy_of(bytes).freeze()
    }

    /// No bytes.
    pub fn empty() -> Self {
        Buffer::zeroed(0).freeze()
    }

    /// A part of the range.
    ///
    /// # Panics
    /// When it reaches beyond the end.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.length, "slice inside the bytes");
        Self {
            block: Arc::clone(&self.block),
            start: self.start + range.start,
            length: range.end - range.start,
        }
    }

    /// Whether the start lies on an [`crate::ALIGNMENT`] border, as direct I/O wants it.
    pub fn is_aligned(&self) -> bool {
        self.start.is_multiple_of(crate::ALIGNMENT)
    }

    /// The right to write again, if this is the only view of the whole block.
    ///
    /// # Errors
    /// The same bytes, when others still see the block.
    pub fn try_into_buffer(mut self) -> Result<Buffer, Self> {
        if Arc::get_mut(&mut self.block).is_some() {
            Ok(Buffer { block: self.block, start: self.start, length: self.length })
        } else {
            Err(self)
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies inside the block and is initialised; a Bytes comes from a Buffer that gave
        // up its right to write this range, so nothing writes it while any view lives.
        unsafe {
            let start = self.block.memory().start().as_ptr().add(self.start);
            std::slice::from_raw_parts(start, self.length)
        }
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.length)
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes)", self.length)
    }
}
