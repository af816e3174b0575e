//! The kernel's terms and ours.

use crate::filesystem::{OpenFlags, Opened, SetTime};
use fuser::{FileAttr, FileType, FopenFlags, INodeNo, OpenAccMode, Request, TimeOrNow};
use kiln_types::{Attr, Caller, FileKind, InodeId, Timestamp};
use rustix::fs::OFlags;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a block of st_blocks is.
const BLOCK: u64 = 512;

/// What st_blksize recommends for reading and writing. cp copies in such pieces, and each piece becomes a
/// request; but buffered readers (Python) allocate it for each open file.
const IO_SIZE: u32 = 256 << 10;

pub(super) fn inode(number: INodeNo) -> InodeId {
    InodeId(number.0)
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.inode.0),
        size: attr.length,
        blocks: attr.length.div_ceil(BLOCK),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: u16::try_from(attr.mode & 0o7777).unwrap_or(0),
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.device,
        blksize: IO_SIZE,
        flags: 0,
    }
}

/// What the kernel is told of a name that leads nowhere: inode 0, and nothing else of it counts.
pub(super) fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// What mknod(2) with this mode makes; `None` when the mode names nothing that it can make.
pub(super) fn node_kind(mode: u32) -> Option<FileKind> {
    use rustix::fs::FileType;
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Some(FileKind::File),
        FileType::Fifo => Some(FileKind::Fifo),
        FileType::Socket => Some(FileKind::Socket),
        FileType::CharacterDevice => Some(FileKind::CharDevice),
        FileType::BlockDevice => Some(FileKind::BlockDevice),
        _ => None,
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let distance = Duration::from_nanos(time.0.unsigned_abs());
    if time.0 >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => parts(after.as_secs(), after.subsec_nanos(), 1),
            // fuser takes the nanoseconds of a time before 1970 away where they are to be added.
            Err(before) => {
                let before = before.duration();
                parts(before.as_secs(), before.subsec_nanos(), -1)
            }
        }),
    }
}

fn parts(seconds: u64, nanos: u32, sign: i64) -> Timestamp {
    Timestamp::from_parts(i64::try_from(seconds).unwrap_or(i64::MAX) * sign, nanos)
}

pub(super) fn open_flags(flags: fuser::OpenFlags) -> OpenFlags {
    let set = OFlags::from_bits_retain(flags.0.cast_unsigned());
    let mode = flags.acc_mode();
    OpenFlags {
        read: mode != OpenAccMode::O_WRONLY,
        write: mode != OpenAccMode::O_RDONLY,
        truncate: set.contains(OFlags::TRUNC),
        direct: set.contains(OFlags::DIRECT),
        sync: set.intersects(OFlags::SYNC | OFlags::DSYNC),
    }
}

/// How the kernel is to treat an opened file.
pub(super) fn fopen_flags(opened: Opened, flags: OpenFlags) -> FopenFlags {
    let mut how = FopenFlags::empty();
    if opened.direct {
        how |= FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
    }
    if opened.keep_cache {
        how |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    // Closing a writer tells the errors of its writes; a reader has none to tell.
    if !flags.write {
        how |= FopenFlags::FOPEN_NOFLUSH;
    }
    how
}

/// Who asks. The protocol carries no supplementary groups; the kernel shows those of a thread that waits
/// for its answer.
pub(super) fn caller(request: &Request) -> Caller {
    let groups = if request.uid() == 0 { Vec::new() } else { groups_of(request.pid()) };
    Caller { uid: request.uid(), gid: request.gid(), groups }
}

fn groups_of(thread: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    groups_in(&status)
}

fn groups_in(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_on_both_sides_of_1970() {
        for nanos in [0, 1, 1_500_000_000, -1, -1_700_000_000, i64::MAX, -9_000_000_000_000_000_001]
        {
            let (seconds, rest) = Timestamp(nanos).to_parts();
            // As fuser reads it from a request.
            let distance = Duration::new(seconds.unsigned_abs(), rest);
            let time = if seconds >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance };
            let expected = SetTime::At(Timestamp(nanos));
            assert_eq!(set_time(TimeOrNow::SpecificTime(time)), expected, "{nanos}");
        }
        assert_eq!(system_time(Timestamp(-5)), UNIX_EPOCH - Duration::from_nanos(5));
    }

    #[test]
    fn open_flags_are_what_open_was_given() {
        let of = |flags: OFlags| open_flags(fuser::OpenFlags(flags.bits().cast_signed()));
        let reads = OpenFlags { read: true, ..OpenFlags::default() };
        assert_eq!(of(OFlags::RDONLY), reads);
        let writes =
            OpenFlags { write: true, truncate: true, direct: true, ..OpenFlags::default() };
        assert_eq!(of(OFlags::WRONLY | OFlags::TRUNC | OFlags::DIRECT | OFlags::APPEND), writes);
        assert!(of(OFlags::RDWR | OFlags::DSYNC).sync && of(OFlags::RDWR | OFlags::SYNC).sync);
        assert!(!of(OFlags::RDWR).sync);
    }

    #[test]
    fn supplementary_groups_are_found() {
        assert_eq!(groups_in("Name:\tx\nGroups:\t4 27 1000 \nVmRSS: 1 kB\n"), [4, 27, 1000]);
        assert_eq!(groups_in("Groups:\t \n"), [] as [u32; 0]);
        assert_eq!(groups_of(u32::MAX), [] as [u32; 0]);
    }
}
