//! Open flags, both ways.

use crate::filesystem::{OpenFlags, Opened};
use rustix::fs::OFlags;

const FOPEN_DIRECT_IO: u32 = 1 << 0;
const FOPEN_KEEP_CACHE: u32 = 1 << 1;
const FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

/// What open(2) was given.
pub(super) fn open_flags(flags: u32) -> OpenFlags {
    let set = OFlags::from_bits_retain(flags);
    let access = set & OFlags::RWMODE;
    OpenFlags {
        read: access != OFlags::WRONLY,
        write: access != OFlags::RDONLY,
        truncate: set.contains(OFlags::TRUNC),
        direct: set.contains(OFlags::DIRECT),
        sync: set.intersects(OFlags::SYNC | OFlags::DSYNC),
        append: set.contains(OFlags::APPEND),
    }
}

pub(super) fn is_exclusive(flags: u32) -> bool {
    OFlags::from_bits_retain(flags).contains(OFlags::EXCL)
}

/// How the kernel is to treat an opened file.
pub(super) fn opened_flags(opened: Opened) -> u32 {
    let mut how = 0;
    if opened.direct {
        how |= FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
    }
    if opened.keep_cache {
        how |= FOPEN_KEEP_CACHE;
    }
    how
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_flags_are_what_open_was_given() {
        let of = |flags: OFlags| open_flags(flags.bits());
        let reads = OpenFlags { read: true, ..OpenFlags::default() };
        assert_eq!(of(OFlags::RDONLY), reads);
        let writes = OpenFlags {
            write: true,
            truncate: true,
            direct: true,
            append: true,
            ..OpenFlags::default()
        };
        assert_eq!(of(OFlags::WRONLY | OFlags::TRUNC | OFlags::DIRECT | OFlags::APPEND), writes);
        assert!(of(OFlags::RDWR | OFlags::DSYNC).sync && of(OFlags::RDWR | OFlags::SYNC).sync);
        assert!(!of(OFlags::RDWR).sync);
    }
}
