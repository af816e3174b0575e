//! What the kernel asks, from its bytes.

use super::flags::{is_exclusive, open_flags};
use super::init::Offer;
use super::operation::Operation;
use crate::filesystem::{Handle, SeekTo, SetAttr, SetTime, SetXattr, WriteAt};
use kiln_memory::Bytes;
use kiln_types::{
    Decoder, Error, InodeId, Lock, LockFamily, LockMode, LockOwner, LockRange, MODE_PERMISSIONS,
    Result, Timestamp,
};
use rustix::fs::{OFlags, XattrFlags};

const HEADER_BYTES: usize = 40;
/// A write's bytes lie behind so many others.
pub(crate) const WRITE_HEAD_BYTES: usize = HEADER_BYTES + 40;

mod opcode {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const READLINK: u32 = 5;
    pub(super) const SYMLINK: u32 = 6;
    pub(super) const MKNOD: u32 = 8;
    pub(super) const MKDIR: u32 = 9;
    pub(super) const UNLINK: u32 = 10;
    pub(super) const RMDIR: u32 = 11;
    pub(super) const RENAME: u32 = 12;
    pub(super) const LINK: u32 = 13;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const SETXATTR: u32 = 21;
    pub(super) const GETXATTR: u32 = 22;
    pub(super) const LISTXATTR: u32 = 23;
    pub(super) const REMOVEXATTR: u32 = 24;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const READDIR: u32 = 28;
    pub(super) const RELEASEDIR: u32 = 29;
    pub(super) const FSYNCDIR: u32 = 30;
    pub(super) const GETLK: u32 = 31;
    pub(super) const SETLK: u32 = 32;
    pub(super) const SETLKW: u32 = 33;
    pub(super) const CREATE: u32 = 35;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const FALLOCATE: u32 = 43;
    pub(super) const READDIRPLUS: u32 = 44;
    pub(super) const RENAME2: u32 = 45;
    pub(super) const LSEEK: u32 = 46;
    pub(super) const COPY_FILE_RANGE: u32 = 47;
    pub(super) const TMPFILE: u32 = 51;
    pub(super) const COPY_FILE_RANGE_64: u32 = 53;
}

/// What every request begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    opcode: u32,
    /// Its number, which no other one has.
    pub(crate) unique: u64,
    /// What it is about, where it is about an inode.
    pub(crate) inode: InodeId,
    /// Who asks.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The thread that asks; 0 where that is the kernel, or nobody whom this process may know.
    pub(crate) thread: u32,
}

/// Whether a message, of which the header is there, is a write, whose bytes are handed on by themselves.
pub(crate) fn has_payload(message: &[u8]) -> bool {
    message.get(4..8) == Some(&opcode::WRITE.to_le_bytes())
}

impl Header {
    /// The header of a message that is `length` bytes long, all in all.
    ///
    /// # Errors
    /// `Corrupt` when it cannot be one.
    pub(crate) fn decode(message: &[u8], length: usize) -> Result<Self> {
        let mut fields = Decoder::new("FUSE header", message);
        if fields.u32()? as usize != length || message.len() < HEADER_BYTES {
            return Err(Error::corrupt(format!("a FUSE message of {length} bytes is none")));
        }
        let (opcode, unique, inode) = (fields.u32()?, fields.u64()?, InodeId(fields.u64()?));
        let (uid, gid, thread) = (fields.u32()?, fields.u32()?, fields.u32()?);
        Ok(Self { opcode, unique, inode, uid, gid, thread })
    }
}

/// What a message asks for, from all its bytes but a write's payload.
///
/// # Errors
/// `Corrupt` or `Invalid` when it cannot be told.
pub(crate) fn operation(
    header: &Header,
    message: &[u8],
    payload: Option<Bytes>,
) -> Result<Operation> {
    use Operation as Op;
    let mut fields = Decoder::new("FUSE request", message);
    fields.raw(HEADER_BYTES)?;
    let fields = &mut fields;
    Ok(match header.opcode {
        opcode::LOOKUP => Op::Lookup { name: name(fields)? },
        opcode::FORGET => Op::Forget(vec![(header.inode, fields.u64()?)]),
        opcode::BATCH_FORGET => forgotten(fields)?,
        opcode::GETATTR => Op::GetAttr,
        opcode::SETATTR => set_attr(fields)?,
        opcode::READLINK => Op::ReadLink,
        opcode::SYMLINK => {
            let [name, target] = names(fields)?;
            Op::Symlink { name, target }
        }
        opcode::MKNOD => make_node(fields)?,
        opcode::MKDIR => make_dir(fields)?,
        opcode::UNLINK => Op::Unlink { name: name(fields)? },
        opcode::RMDIR => Op::RemoveDir { name: name(fields)? },
        opcode::RENAME => rename(fields, false)?,
        opcode::RENAME2 => rename(fields, true)?,
        opcode::LINK => Op::Link { inode: InodeId(fields.u64()?), name: name(fields)? },
        opcode::OPEN => Op::Open { flags: open_flags(fields.u32()?) },
        opcode::CREATE | opcode::TMPFILE => create(fields, header.opcode == opcode::TMPFILE)?,
        opcode::READ => {
            let (handle, offset, length) = piece(fields)?;
            Op::Read { handle, offset, length }
        }
        opcode::WRITE => write(fields, payload)?,
        opcode::STATFS => Op::StatFs,
        opcode::RELEASE => release(fields)?,
        opcode::FSYNC => Op::Fsync { handle: handle(fields)? },
        opcode::FLUSH => {
            let (handle, _) = (handle(fields)?, fields.u64()?);
            Op::Flush { handle, owner: LockOwner(fields.u64()?) }
        }
        opcode::SETXATTR => set_xattr(fields)?,
        opcode::GETXATTR => {
            let (room, _) = (fields.u32()? as usize, fields.u32()?);
            Op::GetXattr { name: name(fields)?, room }
        }
        opcode::LISTXATTR => Op::ListXattrs { room: fields.u32()? as usize },
        opcode::REMOVEXATTR => Op::RemoveXattr { name: name(fields)? },
        opcode::INIT => Op::Init(Offer::decode(fields)?),
        opcode::OPENDIR => Op::OpenDir,
        opcode::READDIR | opcode::READDIRPLUS => {
            let (handle, after, room) = piece(fields)?;
            let with_attributes = header.opcode == opcode::READDIRPLUS;
            Op::ReadDir { handle, after, room, with_attributes }
        }
        opcode::RELEASEDIR => Op::ReleaseDir { handle: handle(fields)? },
        opcode::FSYNCDIR => Op::FsyncDir,
        opcode::GETLK | opcode::SETLK | opcode::SETLKW => lock(header.opcode, fields)?,
        opcode::INTERRUPT => Op::Interrupt { unique: fields.u64()? },
        opcode::DESTROY => Op::Destroy,
        opcode::FALLOCATE => {
            let (handle, offset, length) = (handle(fields)?, fields.u64()?, fields.u64()?);
            Op::Fallocate { handle, mode: fields.u32()?, offset, length }
        }
        opcode::LSEEK => seek(fields)?,
        opcode::COPY_FILE_RANGE => copy_range(fields, false)?,
        opcode::COPY_FILE_RANGE_64 => copy_range(fields, true)?,
        _ => Op::Other,
    })
}

fn handle(fields: &mut Decoder<'_>) -> Result<Handle> {
    fields.u64().map(Handle)
}

/// A handle, an offset and a number of bytes.
fn piece(fields: &mut Decoder<'_>) -> Result<(Handle, u64, usize)> {
    Ok((handle(fields)?, fields.u64()?, fields.u32()? as usize))
}

fn name(fields: &mut Decoder<'_>) -> Result<Vec<u8>> {
    let [name] = names(fields)?;
    Ok(name)
}

/// Names, each with a 0 behind it. Nothing else follows.
fn names<const N: usize>(fields: &mut Decoder<'_>) -> Result<[Vec<u8>; N]> {
    let mut rest = fields.raw(fields.left())?;
    let mut names = [const { Vec::new() }; N];
    for name in &mut names {
        *name = until_zero(&mut rest)?.to_vec();
    }
    Ok(names)
}

fn until_zero<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8]> {
    let end = rest.iter().position(|byte| *byte == 0);
    let end = end.ok_or_else(|| Error::corrupt("FUSE request: a name without an end"))?;
    let name = &rest[..end];
    *rest = &rest[end + 1..];
    Ok(name)
}

fn forgotten(fields: &mut Decoder<'_>) -> Result<Operation> {
    let (count, _) = (fields.u32()?, fields.u32()?);
    let one = |_| Ok((InodeId(fields.u64()?), fields.u64()?));
    (0..count).map(one).collect::<Result<_>>().map(Operation::Forget)
}

fn set_attr(fields: &mut Decoder<'_>) -> Result<Operation> {
    const MODE: u32 = 1 << 0;
    const UID: u32 = 1 << 1;
    const GID: u32 = 1 << 2;
    const SIZE: u32 = 1 << 3;
    const ATIME: u32 = 1 << 4;
    const MTIME: u32 = 1 << 5;
    const FH: u32 = 1 << 6;
    const ATIME_NOW: u32 = 1 << 7;
    const MTIME_NOW: u32 = 1 << 8;
    let (valid, _) = (fields.u32()?, fields.u32()?);
    let (through, length, _lock_owner) = (handle(fields)?, fields.u64()?, fields.u64()?);
    let (atime, mtime, _ctime) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (atime_nanos, mtime_nanos, _) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (mode, _) = (fields.u32()?, fields.u32()?);
    let (uid, gid) = (fields.u32()?, fields.u32()?);
    let has = |flag: u32| valid & flag != 0;
    let time = |set, now, seconds: u64, nanos| {
        let at = SetTime::At(Timestamp::from_parts(seconds.cast_signed(), nanos));
        has(set).then_some(if has(now) { SetTime::Now } else { at })
    };
    let change = SetAttr {
        mode: has(MODE).then_some(mode & MODE_PERMISSIONS),
        uid: has(UID).then_some(uid),
        gid: has(GID).then_some(gid),
        length: has(SIZE).then_some(length),
        atime: time(ATIME, ATIME_NOW, atime, atime_nanos),
        mtime: time(MTIME, MTIME_NOW, mtime, mtime_nanos),
        layout: None,
    };
    Ok(Operation::SetAttr { change, through: has(FH).then_some(through) })
}

fn make_node(fields: &mut Decoder<'_>) -> Result<Operation> {
    let (mode, device, _umask_and_padding) = (fields.u32()?, fields.u32()?, fields.u64()?);
    Ok(Operation::MakeNode { name: name(fields)?, mode, device })
}

fn make_dir(fields: &mut Decoder<'_>) -> Result<Operation> {
    let (mode, _umask) = (fields.u32()? & MODE_PERMISSIONS, fields.u32()?);
    Ok(Operation::MakeDir { name: name(fields)?, mode })
}

fn rename(fields: &mut Decoder<'_>, has_flags: bool) -> Result<Operation> {
    let parent = InodeId(fields.u64()?);
    let flags = if has_flags { fields.u64()? as u32 } else { 0 };
    let [from, to] = names(fields)?;
    Ok(Operation::Rename { from, to: (parent, to), flags })
}

fn create(fields: &mut Decoder<'_>, is_temporary: bool) -> Result<Operation> {
    let (flags, mode) = (fields.u32()?, fields.u32()? & MODE_PERMISSIONS);
    if is_temporary {
        // Its name is one that nobody gave.
        return Ok(Operation::MakeTemporary { mode, flags: open_flags(flags) });
    }
    let (_umask, _open_flags) = (fields.u32()?, fields.u32()?);
    let (exclusive, flags) = (is_exclusive(flags), open_flags(flags));
    Ok(Operation::Create { name: name(fields)?, mode, exclusive, flags })
}

fn write(fields: &mut Decoder<'_>, payload: Option<Bytes>) -> Result<Operation> {
    const KILL_SUIDGID: u32 = 1 << 2;
    let ((handle, offset, length), flags) = (piece(fields)?, fields.u32()?);
    let (_owner, open_flags) = (fields.u64()?, fields.u32()?);
    let bytes = payload.filter(|bytes| bytes.len() == length);
    let bytes = bytes.ok_or_else(|| Error::corrupt("FUSE request: a write of other bytes"))?;
    let append = OFlags::from_bits_retain(open_flags).contains(OFlags::APPEND);
    let at = WriteAt { offset, append };
    Ok(Operation::Write { handle, at, bytes, drop_set_ids: flags & KILL_SUIDGID != 0 })
}

/// The file system knows what locks there are through a handle.
fn release(fields: &mut Decoder<'_>) -> Result<Operation> {
    let handle = handle(fields)?;
    let (_open_flags, _flags, _owner) = (fields.u32()?, fields.u32()?, fields.u64()?);
    Ok(Operation::Release { handle })
}

fn set_xattr(fields: &mut Decoder<'_>) -> Result<Operation> {
    let (length, flags) = (fields.u32()? as usize, fields.u32()?);
    let mut rest = fields.raw(fields.left())?;
    let name = until_zero(&mut rest)?.to_vec();
    let value = rest.get(..length);
    let value = value.ok_or_else(|| Error::corrupt("FUSE request: a value without an end"))?;
    let flags = XattrFlags::from_bits_retain(flags);
    let how = if flags.contains(XattrFlags::CREATE) {
        SetXattr::Create
    } else if flags.contains(XattrFlags::REPLACE) {
        SetXattr::Replace
    } else {
        SetXattr::Any
    };
    Ok(Operation::SetXattr { name, value: value.to_vec(), how })
}

/// The last byte that the kernel knows of, which stands for "to the end".
pub(super) const LAST_BYTE: u64 = i64::MAX.cast_unsigned();
pub(super) const F_RDLCK: u32 = 0;
pub(super) const F_WRLCK: u32 = 1;
pub(super) const F_UNLCK: u32 = 2;

fn lock(opcode: u32, fields: &mut Decoder<'_>) -> Result<Operation> {
    const FLOCK: u32 = 1 << 0;
    let (handle, owner) = (handle(fields)?, LockOwner(fields.u64()?));
    let (start, end) = (fields.u64()?, fields.u64()?);
    let (kind, pid, flags) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let family = if flags & FLOCK != 0 { LockFamily::Flock } else { LockFamily::Posix };
    let range = LockRange { start, last: if end >= LAST_BYTE { u64::MAX } else { end } };
    let mode = match (kind, opcode) {
        (F_RDLCK, _) => LockMode::Shared,
        (F_WRLCK, _) => LockMode::Exclusive,
        (F_UNLCK, opcode::SETLK | opcode::SETLKW) => {
            return Ok(Operation::Unlock { handle, owner, family, range });
        }
        _ => return Err(Error::invalid(format!("a lock of the kind {kind}"))),
    };
    let lock = Lock { family, mode, range, pid };
    Ok(match opcode {
        opcode::GETLK => Operation::GetLock { handle, owner, lock },
        _ => Operation::SetLock { handle, owner, lock, waits: opcode == opcode::SETLKW },
    })
}

fn seek(fields: &mut Decoder<'_>) -> Result<Operation> {
    const SEEK_DATA: u32 = 3;
    const SEEK_HOLE: u32 = 4;
    let (handle, offset) = (handle(fields)?, fields.u64()?);
    let to = match fields.u32()? {
        SEEK_DATA => SeekTo::Data,
        SEEK_HOLE => SeekTo::Hole,
        other => return Err(Error::invalid(format!("a seek of the kind {other}"))),
    };
    Ok(Operation::Seek { handle, offset, to })
}

fn copy_range(fields: &mut Decoder<'_>, wide: bool) -> Result<Operation> {
    let (from, to_inode) = ((handle(fields)?, fields.u64()?), InodeId(fields.u64()?));
    let (to, length) = ((handle(fields)?, fields.u64()?), fields.u64()?);
    Ok(Operation::CopyRange { from, to, to_inode, length, wide })
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
