//! Answers, as the kernel reads them.

use super::flags::opened_flags;
use super::request::{F_RDLCK, F_UNLCK, F_WRLCK, LAST_BYTE};
use crate::filesystem::{DirEntry, Known, Opened, Space};
use kiln_memory::Bytes;
use kiln_types::{Attr, Encoder, FileKind, Lock, LockMode, LockRange, MODE_PERMISSIONS};
use rustix::fs::FileType;
use std::time::Duration;

const HEADER_BYTES: usize = 16;
/// What a block of st_blocks is.
const STAT_BLOCK: u64 = 512;
/// The block that statfs counts in.
const STATFS_BLOCK: u32 = 4096;
const NAME_BYTES_MAX: u32 = 255;
/// What st_blksize recommends for reading and writing. cp copies in such pieces, and each piece becomes a
/// request; but buffered readers (Python) allocate it for each open file.
const IO_SIZE: u32 = 256 << 10;

/// What a request is answered with.
#[derive(Debug)]
pub(crate) enum Reply {
    Done,
    Fields(Vec<u8>),
    Data(Bytes),
    /// There is no such call here: the kernel does without, and asks no more.
    NoSuchCall,
}

/// The header of an answer with so many bytes behind it, or of an error.
pub(crate) fn answer_header(unique: u64, error: i32, body_bytes: usize) -> [u8; HEADER_BYTES] {
    let length = u32::try_from(HEADER_BYTES + body_bytes).unwrap_or(u32::MAX);
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4..8].copy_from_slice(&error.to_le_bytes());
    header[8..].copy_from_slice(&unique.to_le_bytes());
    header
}

impl Reply {
    fn fields(fill: impl FnOnce(&mut Encoder)) -> Self {
        let mut fields = Encoder::new();
        fill(&mut fields);
        Self::Fields(fields.finish())
    }

    pub(crate) fn entry(known: &Known) -> Self {
        Self::fields(|fields| entry(fields, known))
    }

    /// A name that leads nowhere, and how long that holds: inode 0, of which nothing else counts.
    pub(crate) fn no_entry(time: Duration) -> Self {
        Self::fields(|fields| {
            fields.u64(0).u64(0);
            times(fields, time, time);
            fields.raw(&[0; ATTRIBUTES_BYTES]);
        })
    }

    pub(crate) fn attributes(known: &Known) -> Self {
        Self::fields(|fields| {
            fields.u64(known.attr_for.as_secs()).u32(known.attr_for.subsec_nanos()).u32(0);
            attributes(fields, &known.attr);
        })
    }

    pub(crate) fn opened(opened: Opened) -> Self {
        Self::fields(|fields| handle(fields, opened))
    }

    pub(crate) fn created(known: &Known, opened: Opened) -> Self {
        Self::fields(|fields| {
            entry(fields, known);
            handle(fields, opened);
        })
    }

    /// How many bytes were written, or are in an extended attribute.
    pub(crate) fn count(bytes: usize) -> Self {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Self::fields(|fields| _ = fields.u32(bytes).u32(0))
    }

    /// A place in a file, or a number of bytes that may be large.
    pub(crate) fn place(offset: u64) -> Self {
        Self::fields(|fields| _ = fields.u64(offset))
    }

    /// A lock that is in the way, or that none is.
    pub(crate) fn lock(found: Option<&Lock>) -> Self {
        let (range, kind, pid) = match found {
            Some(lock) if lock.mode == LockMode::Shared => (lock.range, F_RDLCK, lock.pid),
            Some(lock) => (lock.range, F_WRLCK, lock.pid),
            None => (LockRange::ALL, F_UNLCK, 0),
        };
        let last = range.last.min(LAST_BYTE);
        Self::fields(|fields| _ = fields.u64(range.start).u64(last).u32(kind).u32(pid))
    }

    pub(crate) fn space(space: &Space) -> Self {
        let blocks = |bytes: u64| bytes / u64::from(STATFS_BLOCK);
        let (all, free) = (blocks(space.total_bytes), blocks(space.free_bytes));
        Self::fields(|fields| {
            // Without a quota of them inodes end when space does: one for each free block is told.
            let inodes = space.free_inodes.unwrap_or(free);
            fields.u64(all).u64(free).u64(free).u64(space.inodes + inodes).u64(inodes);
            fields.u32(STATFS_BLOCK).u32(NAME_BYTES_MAX).u32(STATFS_BLOCK).raw(&[0; 28]);
        })
    }
}

const ATTRIBUTES_BYTES: usize = 88;

fn attributes(fields: &mut Encoder, attr: &Attr) {
    let blocks = attr.length.div_ceil(STAT_BLOCK);
    fields.u64(attr.inode.0).u64(attr.length).u64(blocks);
    let [atime, mtime, ctime] = [attr.atime, attr.mtime, attr.ctime].map(|time| time.to_parts());
    for (seconds, _) in [atime, mtime, ctime] {
        fields.u64(seconds.cast_unsigned());
    }
    for (_, nanos) in [atime, mtime, ctime] {
        fields.u32(nanos);
    }
    let mode = file_type(attr.kind) | attr.mode & MODE_PERMISSIONS;
    fields
        .u32(mode)
        .u32(attr.links)
        .u32(attr.uid)
        .u32(attr.gid)
        .u32(attr.device)
        .u32(IO_SIZE)
        .u32(0);
}

fn entry(fields: &mut Encoder, known: &Known) {
    fields.u64(known.attr.inode.0).u64(known.generation);
    times(fields, known.name_for, known.attr_for);
    attributes(fields, &known.attr);
}

/// How long a name and its attributes hold.
fn times(fields: &mut Encoder, name: Duration, attr: Duration) {
    fields.u64(name.as_secs()).u64(attr.as_secs());
    fields.u32(name.subsec_nanos()).u32(attr.subsec_nanos());
}

fn handle(fields: &mut Encoder, opened: Opened) {
    fields.u64(opened.handle.0).u32(opened_flags(opened)).u32(0);
}

fn file_type(kind: FileKind) -> u32 {
    let kind = match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::Fifo,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharacterDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    };
    kind.as_raw_mode()
}

/// Entries of a directory, as many as there is room for.
pub(crate) struct Listing {
    fields: Encoder,
    left: usize,
}

impl Listing {
    pub(crate) fn new(room: usize) -> Self {
        Self { fields: Encoder::new(), left: room }
    }

    /// Whether there was room for it.
    pub(crate) fn add(&mut self, found: &DirEntry, with_attributes: bool) -> bool {
        let ahead = if with_attributes { 40 + ATTRIBUTES_BYTES } else { 0 };
        let bytes = (ahead + 24 + found.name.len()).next_multiple_of(8);
        if bytes > self.left {
            return false;
        }
        self.left -= bytes;
        let fields = &mut self.fields;
        match (with_attributes, found.bare) {
            (true, false) => entry(fields, &found.known),
            // Inode 0: the kernel takes in the name alone.
            (true, true) => drop(fields.raw(&[0; 40 + ATTRIBUTES_BYTES])),
            (false, _) => {}
        }
        let length = u32::try_from(found.name.len()).unwrap_or(u32::MAX);
        let kind = file_type(found.known.attr.kind) >> 12;
        fields.u64(found.known.attr.inode.0).u64(found.cookie).u32(length).u32(kind);
        fields.raw(&found.name).raw(&[0; 8][..bytes - ahead - 24 - found.name.len()]);
        true
    }

    pub(crate) fn finish(mut self) -> Reply {
        Reply::Fields(self.fields.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_types::{InodeId, Timestamp, TruncateEpoch};

    fn known() -> Known {
        let attr = Attr {
            inode: InodeId(7),
            kind: FileKind::CharDevice,
            mode: 0o644,
            uid: 1,
            gid: 2,
            links: 3,
            length: 1025,
            dense_end: 0,
            device: 0x0703,
            atime: Timestamp(-1),
            mtime: Timestamp(5),
            ctime: Timestamp(0),
            btime: Timestamp(0),
            epoch: TruncateEpoch(0),
            floors: Vec::new(),
            layout: None,
        };
        Known {
            attr,
            attr_for: Duration::from_millis(1500),
            name_for: Duration::from_secs(2),
            generation: 5,
        }
    }

    fn fields(reply: Reply) -> Vec<u8> {
        match reply {
            Reply::Fields(fields) => fields,
            other => panic!("{other:?}"),
        }
    }

    fn word(fields: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(fields[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn answers_have_the_lengths_that_the_kernel_insists_on() {
        let opened = Opened { handle: crate::Handle(9), keep_cache: true, direct: false };
        let space =
            Space { total_bytes: 1 << 30, free_bytes: 1 << 20, inodes: 4, free_inodes: None };
        let lengths = [
            (Reply::entry(&known()), 128),
            (Reply::no_entry(Duration::ZERO), 128),
            (Reply::attributes(&known()), 104),
            (Reply::opened(opened), 16),
            (Reply::created(&known(), opened), 144),
            (Reply::count(4096), 8),
            (Reply::place(4096), 8),
            (Reply::lock(None), 24),
            (Reply::space(&space), 80),
        ];
        for (reply, length) in lengths {
            let shown = format!("{reply:?}");
            assert_eq!(fields(reply).len(), length, "{shown}");
        }
        assert_eq!(answer_header(5, -2, 8)[..8], [24, 0, 0, 0, 254, 255, 255, 255]);
    }

    #[test]
    fn attributes_stand_where_the_kernel_looks_for_them() {
        let entry = fields(Reply::entry(&known()));
        assert_eq!((word(&entry, 0), word(&entry, 16), word(&entry, 24)), (7, 2, 1));
        assert_eq!((word(&entry, 32), word(&entry, 36)), (0, 500_000_000));
        let attr = &entry[40..];
        assert_eq!((word(attr, 8), word(attr, 16)), (1025, 3));
        // A nanosecond before 1970 is the last one of the second before.
        assert_eq!((word(attr, 24), word(attr, 28)), (u32::MAX, u32::MAX));
        assert_eq!((word(attr, 48), word(attr, 52)), (999_999_999, 5));
        let rest: Vec<_> = (0..6).map(|at| word(attr, 60 + at * 4)).collect();
        assert_eq!(rest, [0o020_644, 3, 1, 2, 0x0703, IO_SIZE]);
    }

    #[test]
    fn a_listing_ends_where_its_room_does() {
        let entry = |name: &str| {
            let (name, known) = (name.into(), known());
            DirEntry { name, cookie: 3, known, bare: false }
        };
        let mut listing = Listing::new(160 + 32);
        assert!(listing.add(&entry("12345678"), true));
        assert!(listing.add(&entry("1"), false));
        assert!(!listing.add(&entry(""), false));
        let bytes = fields(listing.finish());
        assert_eq!((bytes.len(), word(&bytes, 128 + 8), word(&bytes, 128 + 16)), (192, 3, 8));
        assert_eq!((word(&bytes, 128 + 20), &bytes[128 + 24..160]), (2, &b"12345678"[..]));
        assert_eq!(bytes[160 + 24..], *b"1\0\0\0\0\0\0\0");

        let mut listing = Listing::new(160);
        assert!(listing.add(&DirEntry { bare: true, ..entry("1") }, true));
        let bytes = fields(listing.finish());
        assert_eq!((&bytes[..128], word(&bytes, 128)), (&[0; 128][..], 7), "no attributes");
    }
}
