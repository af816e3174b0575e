//! Aligned, pooled buffers that disk and net both move.
//!
//! A payload enters the process once: from a socket or a disk into a [`Buffer`], the only owner of its
//! bytes. [`Buffer::freeze`] turns it into a [`Bytes`], of which any number of cheap clones and slices
//! may be checksummed, written and forwarded at once. The last one to go gives the memory back to its
//! [`Pool`]. All memory is aligned to [`ALIGNMENT`], so that direct I/O and registration take it as is.
//!
//! Invariant: while a [`Buffer`] covers a range, nothing else can see that range.

mod block;
mod buffer;
mod pool;

pub use block::ALIGNMENT;
pub use buffer::{Buffer, Bytes};
pub use pool::Pool;
