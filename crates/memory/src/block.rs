//! One allocation, and the way back to its pool.

use crate::pool::Shelf;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Weak;

/// Alignment and granularity of every allocation: what direct I/O and memory registration ask for.
pub const ALIGNMENT: usize = 4096;

/// Raw memory, without an owner's rights: [`crate::Buffer`] and [`crate::Bytes`] have those.
pub(crate) struct Memory {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: Memory is a plain allocation; access goes through Buffer (unique) and Bytes (shared, read-only).
unsafe impl Send for Memory {}
// SAFETY: as above: nothing in Memory itself reads or writes the bytes.
unsafe impl Sync for Memory {}

impl Memory {
    /// Zeroed memory of at least `bytes` bytes, rounded up to [`ALIGNMENT`].
    pub(crate) fn allocate(bytes: usize) -> Self {
        let bytes = bytes.max(1).next_multiple_of(ALIGNMENT);
        let layout = Self::layout(bytes);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        match NonNull::new(start) {
            Some(start) => Self { start, bytes },
            None => handle_alloc_error(layout),
        }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, ALIGNMENT).expect("invariant: sizes are bounded by callers")
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: start came from alloc_zeroed with this very layout, and is freed once.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.bytes)) }
    }
}

/// Memory that buffers share; goes back to its shelf when the last of them is gone.
pub(crate) struct Block {
    memory: Option<Memory>,
    shelf: Weak<Shelf>,
}

impl Block {
    pub(crate) fn new(memory: Memory, shelf: Weak<Shelf>) -> Self {
        Self { memory: Some(memory), shelf }
    }

    pub(crate) fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("invariant: memory leaves only in drop")
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let (Some(memory), Some(shelf)) = (self.memory.take(), self.shelf.upgrade()) {
            shelf.put_back(memory);
        }
    }
}
