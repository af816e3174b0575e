//! Holes of files. File systems differ in how finely they tell them apart, so what is compared is what
//! holds for any of them that has blocks of 4 KiB.

use super::op::{Outcome, Seen};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fstat, seek};
use rustix::io::{Errno, pread};
use std::os::fd::OwnedFd;

const BLOCK: u64 = 4096;

/// The first byte from `at` on that is stored, or is not; `None` when none follows.
fn look(fd: &OwnedFd, at: u64, to: fn(u64) -> SeekFrom) -> Result<Option<u64>, Errno> {
    let place = seek(fd, SeekFrom::Current(0))?;
    let found = match seek(fd, to(at)) {
        Err(Errno::NXIO) => Ok(None),
        found => found.map(Some),
    };
    seek(fd, SeekFrom::Start(place))?;
    found
}

fn size(fd: &OwnedFd) -> Result<u64, Errno> {
    Ok(u64::try_from(fstat(fd)?.st_size).unwrap_or(0))
}

/// Allocates, zeros or punches. Where blocks were punched a hole has to be.
pub(crate) fn allocate(fd: &OwnedFd, how: FallocateFlags, at: u64, length: u64) -> Outcome {
    fallocate(fd, how, at, length)?;
    let (first, end) = (at.next_multiple_of(BLOCK), (at + length) / BLOCK * BLOCK);
    let end = end.min(size(fd)?);
    if how.contains(FallocateFlags::PUNCH_HOLE) && first < end {
        let data = look(fd, first, SeekFrom::Data)?;
        if data.is_some_and(|data| data < end) {
            return Ok(Seen::Names(vec![format!("data at {data:?} in the hole {first}..{end}")]));
        }
    }
    Ok(Seen::Done)
}

/// Walks through data and holes: what lies in none of the data has to read as zeros.
pub(crate) fn holes(fd: &OwnedFd) -> Outcome {
    let (mut at, size) = (0, size(fd)?);
    let mut wrong = Vec::new();
    while at < size {
        let data = look(fd, at, SeekFrom::Data)?.unwrap_or(size);
        let mut bytes = vec![0; (data.min(size) - at) as usize];
        match pread(fd, &mut bytes[..], at) {
            // Open for writing only.
            Err(Errno::BADF) => {}
            read if read? == bytes.len() && bytes.iter().all(|byte| *byte == 0) => {}
            _ => wrong.push(format!("no zeros at {at}..{data}")),
        }
        if data >= size {
            break;
        }
        match look(fd, data, SeekFrom::Hole)? {
            Some(hole) if hole > data && hole <= size => at = hole,
            hole => {
                return Ok(Seen::Names(vec![format!("behind data at {data} a hole at {hole:?}")]));
            }
        }
    }
    wrong.extend(
        look(fd, size, SeekFrom::Hole)?.map(|at| format!("a hole at {at}, behind the end")),
    );
    Ok(if wrong.is_empty() { Seen::Done } else { Seen::Names(wrong) })
}
