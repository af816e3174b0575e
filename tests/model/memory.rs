//! Aligned memory, and memory that is a part of a file.

use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
use std::os::fd::AsFd;

const PAGE: usize = 4096;

/// Bytes that begin at a page's border, as O_DIRECT needs them.
pub(crate) struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// `bytes`, and zeros behind them up to `length`.
    pub(crate) fn of(bytes: &[u8], length: usize) -> Self {
        let memory = vec![0; length + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        let mut aligned = Self { memory, start, length };
        aligned.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
        aligned
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// A shared mapping of a part of a file.
struct Mapping {
    start: *mut u8,
    length: usize,
    /// How far behind the mapping's start the wanted bytes are.
    skip: usize,
}

impl Mapping {
    /// Maps `length` bytes from `at` on; the file must reach that far while the mapping is used.
    fn new(file: impl AsFd, at: u64, length: usize, protection: ProtFlags) -> Result<Self, Errno> {
        let skip = (at % PAGE as u64) as usize;
        let (offset, length) = (at - skip as u64, length + skip);
        // SAFETY: the kernel chooses the place of a new mapping; nothing else lies there.
        let start = unsafe {
            mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, file, offset)?
        };
        Ok(Self { start: start.cast(), length, skip })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and length are those of the mapping, and no reference into it is left.
        let _ = unsafe { munmap(self.start.cast(), self.length) };
    }
}

/// Reads through a mapping.
pub(crate) fn read_mapped(file: impl AsFd, at: u64, length: usize) -> Result<Vec<u8>, Errno> {
    let mapping = Mapping::new(file, at, length, ProtFlags::READ)?;
    let mut bytes = vec![0; length];
    // SAFETY: the mapping has `length` bytes behind `skip`, and the file reaches that far.
    unsafe {
        let source = mapping.start.add(mapping.skip);
        std::ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), length);
    }
    Ok(bytes)
}

/// Writes through a mapping, and to the disk.
pub(crate) fn write_mapped(file: impl AsFd, at: u64, bytes: &[u8]) -> Result<(), Errno> {
    let mapping = Mapping::new(file, at, bytes.len(), ProtFlags::READ | ProtFlags::WRITE)?;
    // SAFETY: the mapping has that many bytes behind `skip`, and the file reaches that far.
    unsafe {
        let target = mapping.start.add(mapping.skip);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        msync(mapping.start.cast(), mapping.length, MsyncFlags::SYNC)
    }
}
