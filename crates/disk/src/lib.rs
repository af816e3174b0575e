//! The Disk trait: io_uring, a plain fallback, and a simulated disk that loses power.
//!
//! Invariants: only this crate opens data files; after a failed sync a disk accepts no write and no
//! sync; the memory of an operation lives until the operation is over, whoever stops waiting for
//! it.
#![deny(unsafe_code)]

mod file;
mod file_disk;
mod kernel;
mod open;
mod operation;
mod range;
mod simulated;
mod sync_gate;
mod uring;

pub use open::{Engine, OpenOptions, open};
pub use simulated::{Fault, SimulatedDisk};

use async_trait::async_trait;
use kiln_memory::{Buffer, Bytes};
use kiln_types::Result;

/// The file system that gives a disk its space, as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beneath {
    /// The same for all disks on one file system, different for others.
    pub id: u128,
    /// Bytes that it has left for all of them.
    pub free_bytes: u64,
}

/// A file or block device of fixed size, in units of 4 KiB.
///
/// Offsets and lengths are multiples of [`kiln_types::BLOCK_BYTES`], and memory is aligned to it. A
/// write that has returned may still be lost with the power until a later [`Disk::sync`] has
/// returned; until then each of its sectors may be old or new. Dropping a future of read or write
/// does not stop the operation: its memory stays with the disk until it is done.
#[async_trait]
pub trait Disk: Send + Sync {
    /// Its size in bytes.
    fn capacity(&self) -> u64;

    /// Fills `buffer` from `offset` on. What was never written reads as zeros.
    ///
    /// # Errors
    /// `DiskFailed`; `Invalid` beyond the end or off the 4 KiB grid.
    async fn read(&self, offset: u64, buffer: Buffer) -> Result<Buffer>;

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// `NoSpace` when a sparse file's file system is full (the disk goes on), `DiskFailed`,
    /// `Invalid`.
    async fn write(&self, offset: u64, bytes: Bytes) -> Result<()>;

    /// Makes every write that has returned durable.
    ///
    /// # Errors
    /// `DiskFailed`: what was written since the last sync may be lost, and the disk refuses all
    /// further writes and syncs, because the system does not report such a loss twice.
    async fn sync(&self) -> Result<()>;

    /// Says that a range is not needed any more. Afterwards it reads as zeros or as before.
    ///
    /// # Errors
    /// `DiskFailed`, `Invalid`; a disk that cannot discard does nothing.
    async fn discard(&self, offset: u64, length: u64) -> Result<()>;

    /// Takes the space of a range from the file system beneath, so that writes find it there. What
    /// has its space already, and a disk that has all of its own, does nothing.
    ///
    /// # Errors
    /// `NoSpace`: the range has it in part or not at all. `DiskFailed`, `Invalid`.
    async fn reserve(&self, offset: u64, length: u64) -> Result<()>;

    /// The file system beneath; `None` for a disk that has all of its space.
    ///
    /// # Errors
    /// `DiskFailed` when the system does not say.
    async fn beneath(&self) -> Result<Option<Beneath>>;

    /// For operators: path, engine, direct or buffered.
    fn describe(&self) -> String;
}
