//! A directory in which operations are done.

use super::memory;
use super::op::{Attr, Op, Outcome, Seen, Sync, Time};
use super::sparse;
use super::user::as_user;
use rustix::fs::{
    self as sys, AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timestamps, Uid,
};
use rustix::io::{Errno, pread, pwrite, read, write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// How many files can be open at a time.
pub(crate) const SLOTS: usize = 6;

/// What an aligned read or write (O_DIRECT) is a multiple of.
pub(crate) const ALIGNMENT: u64 = 4096;

/// Names of attributes fit into this.
const NAMES: usize = 4096;

/// An open file or directory.
pub(crate) struct Open {
    fd: OwnedFd,
    direct: bool,
    is_dir: bool,
}

/// A tree, the files that are open in it, and who uses it.
pub(crate) struct World {
    root: PathBuf,
    slots: [Option<Open>; SLOTS],
    user: usize,
    /// What is done in the place of an operation, to see that a defect is found.
    planted: Option<Defect>,
}

/// Does something else than what was asked.
pub(crate) type Defect = fn(&Op) -> Option<Op>;

impl World {
    /// The tree `root` below `base`; what lies outside of the tree, and can be reached by `..`, is in
    /// `base`. Both may be used by everybody.
    pub(crate) fn new(base: &Path) -> Self {
        let root = base.join("root");
        for dir in [base, &root] {
            std::fs::create_dir(dir).expect("a new directory");
            sys::chmod(dir, Mode::from_raw_mode(0o777)).expect("one's own directory");
        }
        Self { root, slots: Default::default(), user: 0, planted: None }
    }

    /// The same with a defect.
    pub(crate) fn with(self, planted: Option<Defect>) -> Self {
        Self { planted, ..self }
    }

    /// The same world elsewhere: another mount of the same tree.
    pub(crate) fn at(base: &Path) -> Self {
        let root = base.join("root");
        Self { root, slots: Default::default(), user: 0, planted: None }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn slots(&self) -> &[Option<Open>; SLOTS] {
        &self.slots
    }

    pub(crate) fn close_all(&mut self) {
        self.slots = Default::default();
    }

    /// Does it and says what came of it.
    pub(crate) fn apply(&mut self, op: &Op) -> Outcome {
        let other = self.planted.and_then(|planted| planted(op));
        let op = other.as_ref().unwrap_or(op);
        if let Op::Become(user) = op {
            self.user = *user;
            return Ok(Seen::Done);
        }
        as_user(self.user, || match op {
            Op::Open { slot, path, flags, mode } => self.open(*slot, path, *flags, *mode),
            Op::Close { slot } => {
                Ok(self.slots[*slot].take().map_or(Seen::Nothing, |_| Seen::Done))
            }
            _ => self.through_slot(op).unwrap_or_else(|| self.by_name(op)),
        })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn open(&mut self, slot: usize, path: &str, flags: OFlags, mode: u32) -> Outcome {
        self.slots[slot] = None;
        let fd = sys::open(self.path(path), flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode))?;
        let is_dir = FileType::from_raw_mode(sys::fstat(&fd)?.st_mode) == FileType::Directory;
        self.slots[slot] = Some(Open { fd, direct: flags.contains(OFlags::DIRECT), is_dir });
        Ok(Seen::Done)
    }

    /// Operations on an open file; `None` for others.
    fn through_slot(&mut self, op: &Op) -> Option<Outcome> {
        let slot = match op {
            Op::CopyRange { from, to, length } => {
                return Some(self.copy_range(*from, *to, *length));
            }
            Op::Read { slot, .. }
            | Op::Write { slot, .. }
            | Op::ReadAt { slot, .. }
            | Op::WriteAt { slot, .. }
            | Op::Seek { slot, .. }
            | Op::MapRead { slot, .. }
            | Op::MapWrite { slot, .. }
            | Op::Allocate { slot, .. }
            | Op::Holes { slot }
            | Op::Sync { slot, .. }
            | Op::SetLength { slot, .. }
            | Op::Attr { slot }
            | Op::SetMode { slot, .. }
            | Op::SetOwner { slot, .. }
            | Op::SetTimes { slot, .. } => *slot,
            _ => return None,
        };
        let Some(open) = &self.slots[slot] else { return Some(Ok(Seen::Nothing)) };
        Some(open.content(op).unwrap_or_else(|| open.attributes(op)))
    }

    fn copy_range(&self, from: (usize, u64), to: (usize, u64), length: usize) -> Outcome {
        let (Some(source), Some(target)) = (&self.slots[from.0], &self.slots[to.0]) else {
            return Ok(Seen::Nothing);
        };
        if source.direct || target.direct {
            return Ok(Seen::Nothing);
        }
        let (mut read_at, mut write_at, mut left) = (from.1, to.1, length);
        while left > 0 {
            let (read_at, write_at) = (Some(&mut read_at), Some(&mut write_at));
            match sys::copy_file_range(&source.fd, read_at, &target.fd, write_at, left)? {
                0 => break,
                copied => left -= copied,
            }
        }
        Ok(Seen::Number((length - left) as u64))
    }

    /// Operations on what a name leads to.
    fn by_name(&self, op: &Op) -> Outcome {
        let path = |name: &str| self.path(name);
        match op {
            Op::Truncate { path: name, length } => {
                let file = sys::open(path(name), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
                sys::ftruncate(&file, *length)?;
            }
            Op::Stat { path: name, follow } => {
                let stat = sys::statat(CWD, path(name), following(*follow))?;
                return Ok(Seen::Attr(attr(&stat)));
            }
            Op::Access { path: name, mode } => {
                sys::access(path(name), sys::Access::from_bits_truncate(*mode))?;
            }
            Op::Chmod { path: name, mode } => sys::chmod(path(name), Mode::from_raw_mode(*mode))?,
            Op::Chown { path: name, follow, uid, gid } => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                sys::chownat(CWD, path(name), uid, gid, following(*follow))?;
            }
            Op::Times { path: name, follow, atime, mtime } => {
                let flags = following(*follow);
                sys::utimensat(CWD, path(name), &timestamps(*atime, *mtime), flags)?;
                let stat = sys::statat(CWD, path(name), flags)?;
                return Ok(Seen::Attr(attr_after(&stat, *atime)));
            }
            _ => return self.names(op).unwrap_or_else(|| self.xattrs(op)),
        }
        Ok(Seen::Done)
    }

    fn names(&self, op: &Op) -> Option<Outcome> {
        let path = |name: &str| self.path(name);
        let done = match op {
            Op::MakeDir { path: name, mode } => sys::mkdir(path(name), Mode::from_raw_mode(*mode)),
            Op::RemoveDir { path: name } => sys::rmdir(path(name)),
            Op::Unlink { path: name } => sys::unlink(path(name)),
            Op::Rename { from, to, flags } => {
                sys::renameat_with(CWD, path(from), CWD, path(to), *flags)
            }
            Op::Link { from, to, follow } => {
                let flags = if *follow { AtFlags::SYMLINK_FOLLOW } else { AtFlags::empty() };
                sys::linkat(CWD, path(from), CWD, path(to), flags)
            }
            Op::Symlink { target, path: name } => sys::symlink(target.as_str(), path(name)),
            Op::ReadLink { path: name } => {
                let target = sys::readlink(path(name), Vec::new());
                return Some(target.map(|target| Seen::Bytes(target.into_bytes())));
            }
            Op::List { path: name } => return Some(list(&path(name)).map(Seen::Names)),
            _ => return None,
        };
        Some(done.map(|()| Seen::Done))
    }

    fn xattrs(&self, op: &Op) -> Outcome {
        match op {
            Op::GetXattr { path, name } => {
                let mut value = vec![0; NAMES];
                let length = sys::lgetxattr(self.path(path), *name, value.as_mut_slice())?;
                value.truncate(length);
                Ok(Seen::Bytes(value))
            }
            Op::SetXattr { path, name, fill, flags } => {
                sys::lsetxattr(self.path(path), *name, &fill.bytes(), *flags)?;
                Ok(Seen::Done)
            }
            Op::ListXattrs { path } => Ok(Seen::Names(xattr_names(&self.path(path))?)),
            Op::RemoveXattr { path, name } => {
                sys::lremovexattr(self.path(path), *name)?;
                Ok(Seen::Done)
            }
            _ => unreachable!("every operation has its place: {op:?}"),
        }
    }
}

impl Open {
    /// Reading and writing; `None` for other operations.
    fn content(&self, op: &Op) -> Option<Outcome> {
        let outcome = match op {
            Op::Read { .. } | Op::Write { .. } if self.direct => Ok(Seen::Nothing),
            Op::Seek { .. } if self.is_dir => Ok(Seen::Nothing),
            Op::Read { length, .. } => {
                let mut bytes = vec![0; *length];
                read(&self.fd, bytes.as_mut_slice()).map(|read| taken(bytes, read))
            }
            Op::Write { fill, .. } => write(&self.fd, &fill.bytes()).map(number),
            Op::ReadAt { at, length, .. } => self.read_at(*at, *length),
            Op::WriteAt { at, fill, .. } => {
                let (at, length) = self.place(*at, fill.length);
                let bytes = memory::Aligned::of(&fill.bytes(), length);
                pwrite(&self.fd, bytes.as_slice(), at).map(number)
            }
            Op::Seek { to, .. } => sys::seek(&self.fd, *to).map(Seen::Number),
            Op::MapRead { at, length, .. } => {
                self.mapped(*at, *length).and_then(|there| match there {
                    true => memory::read_mapped(&self.fd, *at, *length).map(Seen::Bytes),
                    false => Ok(Seen::Nothing),
                })
            }
            Op::MapWrite { at, fill, .. } => {
                self.mapped(*at, fill.length).and_then(|there| match there {
                    true => memory::write_mapped(&self.fd, *at, &fill.bytes()).map(|()| Seen::Done),
                    false => Ok(Seen::Nothing),
                })
            }
            Op::Allocate { how, at, length, .. } => sparse::allocate(&self.fd, *how, *at, *length),
            Op::Holes { .. } if self.is_dir || self.direct => Ok(Seen::Nothing),
            Op::Holes { .. } => sparse::holes(&self.fd),
            _ => return None,
        };
        Some(outcome)
    }

    fn read_at(&self, at: u64, length: usize) -> Outcome {
        let (at, length) = self.place(at, length);
        let mut bytes = memory::Aligned::of(&[], length);
        let read = pread(&self.fd, bytes.as_mut_slice(), at)?;
        Ok(taken(bytes.as_slice().to_vec(), read))
    }

    /// Where an operation is done: aligned when it has to be.
    fn place(&self, at: u64, length: usize) -> (u64, usize) {
        if !self.direct {
            return (at, length);
        }
        let length = length.next_multiple_of(ALIGNMENT as usize);
        (at - at % ALIGNMENT, length)
    }

    /// Whether it is a file that has these bytes, so that a mapping of them can be touched.
    fn mapped(&self, at: u64, length: usize) -> Result<bool, Errno> {
        if self.is_dir {
            return Ok(false);
        }
        let size = u64::try_from(sys::fstat(&self.fd)?.st_size).unwrap_or(0);
        Ok(length > 0 && at + length as u64 <= size)
    }

    fn attributes(&self, op: &Op) -> Outcome {
        match op {
            Op::Sync { how: Sync::File, .. } => sys::fsync(&self.fd)?,
            Op::Sync { how: Sync::Data, .. } => sys::fdatasync(&self.fd)?,
            Op::Sync { how: Sync::FileSystem, .. } => sys::syncfs(&self.fd)?,
            Op::SetLength { length, .. } => sys::ftruncate(&self.fd, *length)?,
            Op::Attr { .. } => return Ok(Seen::Attr(attr(&sys::fstat(&self.fd)?))),
            Op::SetMode { mode, .. } => sys::fchmod(&self.fd, Mode::from_raw_mode(*mode))?,
            Op::SetOwner { uid, gid, .. } => {
                sys::fchown(&self.fd, uid.map(Uid::from_raw), gid.map(Gid::from_raw))?;
            }
            Op::SetTimes { atime, mtime, .. } => {
                sys::futimens(&self.fd, &timestamps(*atime, *mtime))?;
                return Ok(Seen::Attr(attr_after(&sys::fstat(&self.fd)?, *atime)));
            }
            _ => unreachable!("every operation has its place: {op:?}"),
        }
        Ok(Seen::Done)
    }
}

fn number(count: usize) -> Seen {
    Seen::Number(count as u64)
}

fn taken(mut bytes: Vec<u8>, count: usize) -> Seen {
    bytes.truncate(count);
    Seen::Bytes(bytes)
}

fn following(follow: bool) -> AtFlags {
    if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW }
}

fn timestamps(atime: Time, mtime: Time) -> Timestamps {
    let one = |time| match time {
        Time::At(tv_sec, nanos) => sys::Timespec { tv_sec, tv_nsec: nanos.into() },
        Time::Now => sys::Timespec { tv_sec: 0, tv_nsec: sys::UTIME_NOW },
        Time::Omit => sys::Timespec { tv_sec: 0, tv_nsec: sys::UTIME_OMIT },
    };
    Timestamps { last_access: one(atime), last_modification: one(mtime) }
}

/// The kind of what is there, in a word.
pub(crate) fn kind(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        _ => "something else",
    }
}

/// The attributes that are compared.
pub(crate) fn attr(stat: &Stat) -> Attr {
    let file_type = FileType::from_raw_mode(stat.st_mode);
    let is_dir = file_type == FileType::Directory;
    Attr {
        kind: kind(file_type),
        mode: format!("{:o}", stat.st_mode & 0o7777),
        owner: (stat.st_uid, stat.st_gid),
        links: (!is_dir).then_some(stat.st_nlink),
        size: (!is_dir).then_some(u64::try_from(stat.st_size).unwrap_or(u64::MAX)),
        mtime: long_ago(stat.st_mtime, stat.st_mtime_nsec),
        atime: None,
    }
}

/// The attributes right after the time of access was set: nothing else has changed that time since.
fn attr_after(stat: &Stat, set: Time) -> Attr {
    let atime = long_ago(stat.st_atime, stat.st_atime_nsec);
    Attr { atime: atime.filter(|_| matches!(set, Time::At(..))), ..attr(stat) }
}

/// Times that were set lie before 2017; the present is no time to compare.
fn long_ago(seconds: i64, nanos: u64) -> Option<(i64, u64)> {
    (seconds < 1_500_000_000).then_some((seconds, nanos))
}

/// Names and kinds of a directory's entries, sorted.
pub(crate) fn list(path: &Path) -> Result<Vec<String>, Errno> {
    let dir = sys::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::new(dir)? {
        let entry = entry?;
        names.push(format!("{} {}", entry.file_name().to_string_lossy(), kind(entry.file_type())));
    }
    names.sort();
    Ok(names)
}

/// The names of its `user.` attributes, sorted.
pub(crate) fn xattr_names(path: &Path) -> Result<Vec<String>, Errno> {
    let mut names = vec![0; NAMES];
    let length = sys::llistxattr(path, names.as_mut_slice())?;
    let text = String::from_utf8_lossy(&names[..length]).into_owned();
    let mut names: Vec<_> = text.split_terminator('\0').map(str::to_owned).collect();
    names.retain(|name| name.starts_with("user."));
    names.sort();
    Ok(names)
}
