//! The values of the schema. Every record begins with its type u16, its version u16 and the length
//! u32 of what follows, little-endian; fields follow in the order of the struct, those of later
//! versions at the end. Records of older versions are read, and written anew in the latest.

use crate::store::trash::TRASHED;
use kiln_types::{
    Code, Decoder, Encoder, Error, FileKind, InodeId, Layout, LayoutWish, MODE_PERMISSIONS,
    Redundancy, Result, Timestamp, TruncateEpoch,
};
use kiln_wire::CREDENTIAL_NAME_BYTES_MAX;

mod lost;
mod moving;
mod quota;
mod reply;
mod trash;

pub(crate) use lost::LostIds;
pub(crate) use moving::Moving;
pub(crate) use quota::Recount;
pub(crate) use reply::{Answer, Reply};
pub(crate) use trash::{Item, Trash};

/// The most truncations of one file whose cut-off chunks wait for removal.
pub const FLOORS_MAX: usize = 64;
/// The longest symlink target, in bytes.
pub const TARGET_BYTES_MAX: usize = 4095;
/// The largest extended attribute, in bytes.
pub const XATTR_BYTES_MAX: usize = 64 << 10;

/// A value with a type and a version.
pub(crate) trait Record: Sized {
    const TYPE: u16;
    /// What is written; older ones are read too.
    const VERSION: u16 = 1;
    const WHAT: &'static str;
    fn write(&self, to: &mut Encoder);
    /// Reads the fields of a version up to [`VERSION`](Self::VERSION).
    fn read(from: &mut Decoder<'_>, version: u16) -> Result<Self>;

    fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::new();
        self.write(&mut body);
        let mut record = Encoder::new();
        record.u16(Self::TYPE).u16(Self::VERSION).bytes(&body.finish());
        record.finish()
    }

    /// # Errors
    /// `Corrupt` for anything but what [`encode`](Self::encode) makes; `ProtocolMismatch` for a
    /// version that this build does not know.
    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut header = Decoder::new(Self::WHAT, bytes);
        let (kind, version) = (header.u16()?, header.u16()?);
        if kind != Self::TYPE {
            let text = format!("{}: a record of type {kind}, not {}", Self::WHAT, Self::TYPE);
            return Err(Error::corrupt(text));
        }
        if version == 0 || version > Self::VERSION {
            let (what, newest) = (Self::WHAT, Self::VERSION);
            let text = format!("{what}: version {version}, this build knows up to {newest}");
            return Err(Error::new(Code::ProtocolMismatch, text)
                .with_hint("start the version of kiln that wrote it"));
        }
        let body = header.bytes(bytes.len())?;
        header.finish()?;
        let mut fields = Decoder::new(Self::WHAT, body);
        let record = Self::read(&mut fields, version)?;
        fields.finish()?;
        Ok(record)
    }
}

/// What is fixed when a tree is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    /// The key of the name hash.
    pub(crate) hash_key: [u64; 2],
}

/// An inode. Of a directory, the number of subdirectories and the time of the last change of its
/// entries are keys of their own, so that changes in one directory do not conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) id: InodeId,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// A directory's parent. Of others, the directory of one of the names; 0: not known. Of what was removed, see
    /// `DETACHED` and `TRASHED`.
    pub(crate) parent: InodeId,
    /// Names; not used for directories.
    pub(crate) links: u32,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    pub(crate) btime: Timestamp,
    pub(crate) body: Body,
    /// The nearest directory with a quota above it, or itself if it has one; 0: none.
    pub(crate) quota: InodeId,
    /// It counts for its accounts: what a version before quotas wrote does not until it is written anew. Not
    /// in the record.
    pub(crate) counted: bool,
}

/// What kinds of inodes do not have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    File(File),
    Directory(Directory),
    Symlink { target: Vec<u8> },
    Special(Special),
}

/// A fifo, a socket or a device: a name for something that is in a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Special {
    /// See [`FileKind::is_special`].
    pub(crate) kind: FileKind,
    /// See [`Attr::device`].
    pub(crate) device: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) length: u64,
    pub(crate) epoch: TruncateEpoch,
    /// See [`Attr::floors`]; each has a garbage record of its epoch.
    pub(crate) floors: Vec<(u64, TruncateEpoch)>,
    /// What the last truncation has yet to cut off, under the file's epoch.
    pub(crate) cut: Option<Cut>,
    pub(crate) layout: Layout,
    /// When somebody who could write let go of it last: until the capability has ended, too, writes
    /// may still arrive.
    pub(crate) writer_left: Timestamp,
    /// See [`Attr::dense_end`].
    pub(crate) dense_end: u64,
    /// It was made without a name, and has had none.
    pub(crate) nameless: bool,
}

/// The chunk that a truncation goes through, and the bytes of it that stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) index: u64,
    pub(crate) length: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    /// Changes of entries after this moment are later than the inode's `mtime`, which was set then.
    pub(crate) mtime_set: Timestamp,
    /// What new files and directories below get.
    pub(crate) wish: LayoutWish,
}

/// One place of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Of the first slot of a hash: others may follow. The first slot stays, empty, while others
    /// follow, so that one read tells whether a name exists.
    pub(crate) more: bool,
    pub(crate) entry: Option<Dentry>,
}

/// A directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dentry {
    pub(crate) name: Vec<u8>,
    pub(crate) inode: InodeId,
    pub(crate) kind: FileKind,
}

/// An open file of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle {
    pub(crate) inode: InodeId,
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Handle {
    /// An open for reading only.
    pub(crate) fn to_read(inode: InodeId) -> Self {
        Self { inode, read: true, write: false }
    }
}

/// A client incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// It lives; requests under its id come with the credential that used it first. Whether it has ever asked what
    /// others change: it may have something in a cache.
    Active { credential: String, watches: bool },
    /// It changes nothing any more. Its open files end once its capabilities have: at once if it
    /// said goodbye itself.
    Retired { at: Timestamp, goodbye: bool },
}

/// Chunks to remove: those from `first` to `end` with an epoch below the key's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Garbage {
    pub(crate) layout: Layout,
    pub(crate) first: u64,
    /// Exclusive; `u64::MAX`: not known.
    pub(crate) end: u64,
    /// Until then someone may hold a capability to write such chunks: they are removed at once, and
    /// once more after that.
    pub(crate) writable_until: Timestamp,
}

/// The epoch in the key of a removed file's garbage record: above every epoch.
pub(crate) const REMOVED: TruncateEpoch = TruncateEpoch(u64::MAX);

impl Inode {
    pub(crate) fn kind(&self) -> FileKind {
        match self.body {
            Body::File(_) => FileKind::File,
            Body::Directory(_) => FileKind::Directory,
            Body::Symlink { .. } => FileKind::Symlink,
            Body::Special(special) => special.kind,
        }
    }

    /// Whether it stays without a session.
    pub(crate) fn is_kept(&self) -> bool {
        self.links > 0 || self.parent == TRASHED
    }

    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }

    /// The file in it.
    ///
    /// # Errors
    /// `IsDirectory` for a directory, `Invalid` for what is no file.
    pub(crate) fn file_mut(&mut self) -> Result<&mut File> {
        match &mut self.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Error::new(Code::IsDirectory, "it is a directory")),
            Body::Symlink { .. } => Err(Error::invalid("it is a symlink")),
            Body::Special(_) => Err(Error::invalid("it is a fifo, a socket or a device")),
        }
    }

    /// The file in it; see [`Self::file_mut`].
    pub(crate) fn file(&self) -> Result<&File> {
        match &self.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Error::new(Code::IsDirectory, "it is a directory")),
            Body::Symlink { .. } => Err(Error::invalid("it is a symlink")),
            Body::Special(_) => Err(Error::invalid("it is a fifo, a socket or a device")),
        }
    }

    /// The directory in it.
    ///
    /// # Errors
    /// `NotDirectory`.
    pub(crate) fn directory(&self) -> Result<&Directory> {
        match &self.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(Error::new(Code::NotDirectory, "it is not a directory")),
        }
    }

    pub(crate) fn directory_mut(&mut self) -> Result<&mut Directory> {
        match &mut self.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(Error::new(Code::NotDirectory, "it is not a directory")),
        }
    }
}

fn write_time(to: &mut Encoder, time: Timestamp) {
    to.u64(time.0 as u64);
}

fn read_time(from: &mut Decoder<'_>) -> Result<Timestamp> {
    Ok(Timestamp(from.u64()? as i64))
}

pub(crate) fn read_flag(from: &mut Decoder<'_>) -> Result<bool> {
    match from.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Error::corrupt(format!("a flag with the value {other}"))),
    }
}

fn read_kind(from: &mut Decoder<'_>) -> Result<FileKind> {
    let number = from.u8()?;
    FileKind::from_number(number)
        .ok_or_else(|| Error::corrupt(format!("file kind {number} is not known")))
}

fn write_layout(to: &mut Encoder, layout: &Layout) {
    to.u64(layout.table.0).u64(layout.table_version).u32(layout.chunk_bytes);
    to.u32(layout.stripe).u32(layout.base).u64(layout.seed).u8(layout.redundancy as u8);
}

fn read_layout(from: &mut Decoder<'_>) -> Result<Layout> {
    let layout = Layout {
        table: from.u64()?.into(),
        table_version: from.u64()?,
        chunk_bytes: from.u32()?,
        stripe: from.u32()?,
        base: from.u32()?,
        seed: from.u64()?,
        redundancy: match from.u8()? {
            0 => Redundancy::Replicated,
            other => return Err(Error::corrupt(format!("redundancy {other} is not known"))),
        },
    };
    layout.validate().map_err(|error| Error::corrupt(error.message()))?;
    Ok(layout)
}

fn write_floors(to: &mut Encoder, floors: &[(u64, TruncateEpoch)]) {
    to.u16(floors.len() as u16);
    for (first, epoch) in floors {
        to.u64(*first).u64(epoch.0);
    }
}

fn read_floors(from: &mut Decoder<'_>) -> Result<Vec<(u64, TruncateEpoch)>> {
    let count = usize::from(from.u16()?);
    if count > FLOORS_MAX {
        return Err(Error::corrupt(format!("{count} floors, at most {FLOORS_MAX} allowed")));
    }
    let floor = |_| Ok((from.u64()?, TruncateEpoch(from.u64()?)));
    let floors = (0..count).map(floor).collect::<Result<Vec<_>>>()?;
    if !floors.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1) {
        return Err(Error::corrupt("floors do not grow"));
    }
    Ok(floors)
}

impl Record for Format {
    const TYPE: u16 = 1;
    const WHAT: &'static str = "tree format";

    fn write(&self, to: &mut Encoder) {
        to.u64(self.hash_key[0]).u64(self.hash_key[1]);
    }

    fn read(from: &mut Decoder<'_>, _version: u16) -> Result<Self> {
        Ok(Self { hash_key: [from.u64()?, from.u64()?] })
    }
}

impl Record for Inode {
    const TYPE: u16 = 2;
    const VERSION: u16 = 5;
    const WHAT: &'static str = "inode record";

    fn write(&self, to: &mut Encoder) {
        to.u64(self.id.0).u8(self.kind() as u8).u32(self.mode).u32(self.uid).u32(self.gid);
        to.u64(self.parent.0).u32(self.links);
        for time in [self.atime, self.mtime, self.ctime, self.btime] {
            write_time(to, time);
        }
        match &self.body {
            Body::File(file) => {
                to.u64(file.length).u64(file.epoch.0);
                write_floors(to, &file.floors);
                to.u8(u8::from(file.cut.is_some()));
                if let Some(cut) = file.cut {
                    to.u64(cut.index).u32(cut.length);
                }
                write_layout(to, &file.layout);
                write_time(to, file.writer_left);
                to.u64(file.dense_end).u8(u8::from(file.nameless));
            }
            Body::Directory(directory) => {
                write_time(to, directory.mtime_set);
                to.u32(directory.wish.chunk_bytes).u32(directory.wish.stripe);
            }
            Body::Symlink { target } => {
                to.bytes(target);
            }
            Body::Special(special) => {
                to.u32(special.device);
            }
        }
        to.u64(self.quota.0);
    }

    fn read(from: &mut Decoder<'_>, version: u16) -> Result<Self> {
        let (id, kind) = (InodeId(from.u64()?), read_kind(from)?);
        let (mode, uid, gid) = (from.u32()?, from.u32()?, from.u32()?);
        if mode > MODE_PERMISSIONS {
            return Err(Error::corrupt(format!("mode {mode:o} is not a mode")));
        }
        let (parent, links) = (InodeId(from.u64()?), from.u32()?);
        let (atime, mtime) = (read_time(from)?, read_time(from)?);
        let (ctime, btime) = (read_time(from)?, read_time(from)?);
        let body = match kind {
            FileKind::File => Body::File(File {
                length: from.u64()?,
                epoch: TruncateEpoch(from.u64()?),
                floors: read_floors(from)?,
                cut: match read_flag(from)? {
                    true => Some(Cut { index: from.u64()?, length: from.u32()? }),
                    false => None,
                },
                layout: read_layout(from)?,
                // Not known of the first version: not later than the last change.
                writer_left: if version > 1 { read_time(from)? } else { ctime },
                dense_end: if version > 2 { from.u64()? } else { 0 },
                nameless: if version > 3 { read_flag(from)? } else { false },
            }),
            FileKind::Directory => Body::Directory(Directory {
                mtime_set: read_time(from)?,
                wish: LayoutWish { chunk_bytes: from.u32()?, stripe: from.u32()? },
            }),
            FileKind::Symlink => Body::Symlink { target: from.bytes(TARGET_BYTES_MAX)?.to_vec() },
            kind => Body::Special(Special { kind, device: from.u32()? }),
        };
        let counted = version > 4;
        let quota = InodeId(if counted { from.u64()? } else { 0 });
        Ok(Self {
            id,
            mode,
            uid,
            gid,
            parent,
            links,
            atime,
            mtime,
            ctime,
            btime,
            body,
            quota,
            counted,
        })
    }
}

impl Record for Slot {
    const TYPE: u16 = 3;
    const WHAT: &'static str = "directory entry";

    fn write(&self, to: &mut Encoder) {
        to.u8(u8::from(self.more)).u8(u8::from(self.entry.is_some()));
        if let Some(entry) = &self.entry {
            to.u64(entry.inode.0).u8(entry.kind as u8).bytes(&entry.name);
        }
    }

    fn read(from: &mut Decoder<'_>, _version: u16) -> Result<Self> {
        let more = read_flag(from)?;
        let entry = match read_flag(from)? {
            true => Some(Dentry {
                inode: InodeId(from.u64()?),
                kind: read_kind(from)?,
                name: from.bytes(crate::NAME_BYTES_MAX)?.to_vec(),
            }),
            false => None,
        };
        Ok(Self { more, entry })
    }
}

impl Record for Handle {
    const TYPE: u16 = 4;
    const WHAT: &'static str = "open file";

    fn write(&self, to: &mut Encoder) {
        to.u64(self.inode.0).u8(u8::from(self.read)).u8(u8::from(self.write));
    }

    fn read(from: &mut Decoder<'_>, _version: u16) -> Result<Self> {
        Ok(Self { inode: InodeId(from.u64()?), read: read_flag(from)?, write: read_flag(from)? })
    }
}

impl Record for Client {
    const TYPE: u16 = 5;
    const VERSION: u16 = 2;
    const WHAT: &'static str = "client record";

    fn write(&self, to: &mut Encoder) {
        match self {
            Self::Active { credential, watches } => {
                to.u8(0).bytes(credential.as_bytes()).u8(u8::from(*watches))
            }
            Self::Retired { at, goodbye } => {
                write_time(to.u8(1), *at);
                to.u8(u8::from(*goodbye))
            }
        };
    }

    fn read(from: &mut Decoder<'_>, version: u16) -> Result<Self> {
        match read_flag(from)? {
            false => {
                let name = String::from_utf8(from.bytes(CREDENTIAL_NAME_BYTES_MAX)?.to_vec());
                let credential = name.map_err(|_| Error::corrupt("a credential's name"))?;
                // Earlier versions did not note it.
                let watches = if version < 2 { true } else { read_flag(from)? };
                Ok(Self::Active { credential, watches })
            }
            true => Ok(Self::Retired { at: read_time(from)?, goodbye: read_flag(from)? }),
        }
    }
}

impl Record for Garbage {
    const TYPE: u16 = 7;
    const WHAT: &'static str = "garbage record";

    fn write(&self, to: &mut Encoder) {
        write_layout(to, &self.layout);
        write_time(to.u64(self.first).u64(self.end), self.writable_until);
    }

    fn read(from: &mut Decoder<'_>, _version: u16) -> Result<Self> {
        Ok(Self {
            layout: read_layout(from)?,
            first: from.u64()?,
            end: from.u64()?,
            writable_until: read_time(from)?,
        })
    }
}

/// The value of an extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Xattr(pub(crate) Vec<u8>);

impl Record for Xattr {
    const TYPE: u16 = 8;
    const WHAT: &'static str = "extended attribute";

    fn write(&self, to: &mut Encoder) {
        to.bytes(&self.0);
    }

    fn read(from: &mut Decoder<'_>, _version: u16) -> Result<Self> {
        Ok(Self(from.bytes(XATTR_BYTES_MAX)?.to_vec()))
    }
}

/// The number in a counter's or mark's key.
///
/// # Errors
/// `Corrupt` when it is not 8 bytes.
pub(crate) fn number(value: Option<&[u8]>) -> Result<u64> {
    let Some(value) = value else { return Ok(0) };
    let bytes = value.try_into();
    bytes.map(u64::from_le_bytes).map_err(|_| Error::corrupt("a counter that is not 8 bytes long"))
}

/// A time as a number of the same order, for MAX; 0 is before every time.
pub(crate) fn time_mark(time: Timestamp) -> u64 {
    (time.0 as u64) ^ (1 << 63)
}

/// The inverse of [`time_mark`].
pub(crate) fn marked_time(mark: u64) -> Timestamp {
    Timestamp((mark ^ (1 << 63)) as i64)
}

/// Checks that a record is that of the inode in its key.
///
/// # Errors
/// `Corrupt`.
pub(crate) fn check_id(expected: InodeId, inode: &Inode) -> Result<()> {
    if inode.id == expected {
        return Ok(());
    }
    Err(Error::corrupt(format!("inode {expected}: its record is that of inode {}", inode.id)))
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
