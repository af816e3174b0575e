//! Random operations that meet what is there often enough, and at the borders of pages and chunks.

use super::op::{Fill, Op, Sync, Time};
use super::user::{USERS, may_switch};
use super::world::{Open, SLOTS};
use fastrand::Rng;
use rustix::fs::{FallocateFlags, OFlags, RenameFlags, SeekFrom, XattrFlags};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const XATTRS: [&str; 3] = ["user.one", "user.two", "user.three"];
const DEPTH: usize = 4;

/// The longest file that is made.
const LONGEST: u64 = 3 << 20;

/// Makes operations from a seed and from what is there.
pub(crate) struct Generator {
    random: Rng,
    users: Users,
}

/// Who does the operations.
enum Users {
    /// Whoever runs the test.
    OnlyOne,
    /// This one, from the next operation on.
    Begins(usize),
    /// Several in turn, also through files that others opened.
    Several,
}

/// What an operation can refer to.
pub(crate) struct There<'a> {
    /// Paths, and whether they are directories.
    pub(crate) names: &'a [(String, bool)],
    pub(crate) slots: &'a [Option<Open>; SLOTS],
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        let users = match seed as usize {
            _ if !may_switch() => Users::OnlyOne,
            even if even % 2 == 0 => Users::Several,
            odd => Users::Begins(odd / 2 % USERS.len()),
        };
        Self { random: Rng::with_seed(seed), users }
    }

    /// Any operation.
    pub(crate) fn next(&mut self, there: &There<'_>) -> Op {
        if let Users::Begins(user) = self.users {
            self.users = Users::OnlyOne;
            return Op::Become(user);
        }
        match self.random.u32(..100) {
            0..15 => self.open(there),
            15..17 => Op::Close { slot: self.slot(there) },
            17..62 => self.through_slot(there),
            62..94 => self.by_name(there),
            94..97 if matches!(self.users, Users::Several) => Op::Become(self.user()),
            _ => self.xattr(there),
        }
    }

    /// Opens a file, does something with it, and closes it; or one operation by name.
    pub(crate) fn episode(&mut self, there: &There<'_>) -> Vec<Op> {
        if let Users::Begins(user) = self.users {
            self.users = Users::OnlyOne;
            return vec![Op::Become(user)];
        }
        match self.random.u32(..100) {
            0..60 => {
                let Op::Open { path, flags, mode, .. } = self.open(there) else {
                    unreachable!("it opens a file")
                };
                let mut ops = vec![Op::Open { slot: 0, path, flags, mode }];
                let alone = There { names: there.names, slots: &Default::default() };
                ops.extend((0..self.random.u32(1..5)).map(|_| self.through_slot(&alone)));
                ops.push(Op::Close { slot: 0 });
                ops
            }
            60..92 => vec![self.by_name(there)],
            _ => vec![self.xattr(there)],
        }
    }

    /// The first one is most often at work.
    fn user(&mut self) -> usize {
        self.random.usize(..USERS.len() * 2).saturating_sub(USERS.len())
    }

    /// A slot, mostly one that is in use.
    fn slot(&mut self, there: &There<'_>) -> usize {
        let used: Vec<_> = (0..SLOTS).filter(|&slot| there.slots[slot].is_some()).collect();
        match self.random.choice(&used) {
            Some(&slot) if self.random.u32(..20) > 0 => slot,
            _ if used.is_empty() => 0,
            _ => self.random.usize(..SLOTS),
        }
    }

    /// A path: mostly one that is there, or a name in a directory that is there.
    fn path(&mut self, there: &There<'_>) -> String {
        match self.random.choice(there.names) {
            Some((path, _)) if self.random.u32(..10) < 6 => path.clone(),
            Some((path, _)) if self.random.u32(..20) == 0 => format!("{path}/{}", self.name()),
            _ => self.new_path(there),
        }
    }

    /// A name in a directory that is there.
    fn new_path(&mut self, there: &There<'_>) -> String {
        let dirs = there.names.iter().filter(|(_, is_dir)| *is_dir).map(|(path, _)| path);
        let dirs: Vec<_> = dirs.filter(|path| path.split('/').count() < DEPTH).collect();
        match self.random.choice(&dirs) {
            Some(dir) if self.random.bool() => format!("{dir}/{}", self.name()),
            _ => self.name().into(),
        }
    }

    fn dir(&mut self, there: &There<'_>) -> String {
        let dirs: Vec<_> = there.names.iter().filter(|(_, is_dir)| *is_dir).collect();
        match self.random.choice(&dirs) {
            Some((path, _)) if self.random.u32(..8) > 0 => path.clone(),
            _ => String::new(),
        }
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.random.usize(..NAMES.len())]
    }

    fn open(&mut self, there: &There<'_>) -> Op {
        let mut flags = match self.random.u32(..10) {
            0..2 => OFlags::RDONLY,
            2..4 => OFlags::WRONLY,
            _ => OFlags::RDWR,
        };
        let odds = [
            (60, OFlags::CREATE),
            (6, OFlags::EXCL),
            (12, OFlags::TRUNC),
            (4, OFlags::NOFOLLOW),
            (3, OFlags::DIRECTORY),
            (4, OFlags::SYNC),
            (4, OFlags::DSYNC),
        ];
        for (percent, flag) in odds {
            if self.random.u32(..100) < percent {
                flags |= flag;
            }
        }
        // What O_EXCL alone means is not defined; nor what an unaligned end does to O_DIRECT.
        if !flags.contains(OFlags::CREATE) {
            flags -= OFlags::EXCL;
        }
        match self.random.u32(..10) {
            0..2 => flags |= OFlags::APPEND,
            2..4 => flags |= OFlags::DIRECT,
            _ => {}
        }
        let path = self.file(there);
        Op::Open { slot: self.random.usize(..SLOTS), path, flags, mode: self.mode() }
    }

    /// Mostly the path of a file, or of one to be.
    fn file(&mut self, there: &There<'_>) -> String {
        let files: Vec<_> = there.names.iter().filter(|(_, is_dir)| !is_dir).collect();
        match (self.random.u32(..10), self.random.choice(&files)) {
            (0..7, Some((path, _))) => path.clone(),
            (0..9, _) => self.new_path(there),
            _ => self.path(there),
        }
    }

    fn mode(&mut self) -> u32 {
        let usual = [0o644, 0o666, 0o755, 0o777, 0o600, 0o444, 0o2775, 0o6755, 0o1777, 0];
        match self.random.u32(..4) {
            0 => self.random.u32(..0o10000),
            _ => usual[self.random.usize(..usual.len())],
        }
    }

    /// A place in a file: everywhere, but more often at a border or near the beginning.
    fn place(&mut self) -> u64 {
        match self.random.u32(..10) {
            0..4 => self.random.u64(..20_000),
            4..6 => self.random.u64(..LONGEST),
            6..8 => self.near(4096, 8),
            _ => self.near(1 << 20, 2),
        }
    }

    /// A number within three of a multiple of `unit`.
    fn near(&mut self, unit: u64, most: u64) -> u64 {
        (unit * self.random.u64(..=most) + self.random.u64(..7)).saturating_sub(3)
    }

    fn length(&mut self) -> usize {
        match self.random.u32(..20) {
            0..8 => self.random.usize(..100),
            8..14 => self.random.usize(..20_000),
            14..17 => self.near(4096, 8) as usize,
            17..19 => self.random.usize(..300_000),
            _ => self.near(1 << 20, 1) as usize,
        }
    }

    fn fill(&mut self) -> Fill {
        Fill { seed: self.random.u64(..1 << 32), length: self.length() }
    }

    fn through_slot(&mut self, there: &There<'_>) -> Op {
        let slot = self.slot(there);
        match self.random.u32(..110) {
            100..107 => self.allocate(slot),
            107..110 => Op::Holes { slot },
            0..12 => Op::Write { slot, fill: self.fill() },
            12..28 => Op::WriteAt { slot, at: self.place(), fill: self.fill() },
            28..38 => Op::Read { slot, length: self.length() },
            38..54 => Op::ReadAt { slot, at: self.place(), length: self.length() },
            54..58 => Op::Seek { slot, to: self.seek() },
            58..63 => Op::MapRead { slot, at: self.place(), length: self.length() },
            63..69 => Op::MapWrite { slot, at: self.place(), fill: self.fill() },
            69..73 => {
                let to = (self.slot(there), self.place());
                Op::CopyRange { from: (slot, self.place()), to, length: self.length() }
            }
            73..78 => {
                let how = [Sync::File, Sync::Data, Sync::FileSystem];
                Op::Sync { slot, how: how[self.random.usize(..how.len())] }
            }
            78..86 => Op::SetLength { slot, length: self.place() },
            86..92 => Op::Attr { slot },
            92..95 => Op::SetMode { slot, mode: self.mode() },
            95..97 => {
                let (uid, gid) = self.owners();
                Op::SetOwner { slot, uid, gid }
            }
            _ => Op::SetTimes { slot, atime: self.time(), mtime: self.time() },
        }
    }

    fn allocate(&mut self, slot: usize) -> Op {
        use FallocateFlags as F;
        let punch = F::PUNCH_HOLE | F::KEEP_SIZE;
        let zero = F::ZERO_RANGE;
        let hows = [punch, punch, zero, zero | F::KEEP_SIZE, F::empty(), F::KEEP_SIZE];
        let how = hows[self.random.usize(..hows.len())];
        let (at, length) = (self.place(), self.length() as u64);
        let whole = self.random.bool();
        let (at, length) =
            if whole { (at & !4095, length.next_multiple_of(4096)) } else { (at, length) };
        Op::Allocate { slot, how, at, length }
    }

    fn seek(&mut self) -> SeekFrom {
        let by = self.random.i64(-10_000..10_000);
        match self.random.u32(..3) {
            0 => SeekFrom::Start(self.place()),
            1 => SeekFrom::Current(by),
            _ => SeekFrom::End(by),
        }
    }

    /// At least one of both: a change of nothing takes set-id bits away, and FUSE does not tell of it.
    fn owners(&mut self) -> (Option<u32>, Option<u32>) {
        let mut one = || USERS[self.random.usize(..USERS.len())].0;
        let (uid, gid) = (one(), one());
        match self.random.u32(..3) {
            0 => (Some(uid), None),
            1 => (None, Some(gid)),
            _ => (Some(uid), Some(gid)),
        }
    }

    fn time(&mut self) -> Time {
        match self.random.u32(..8) {
            0 => Time::Now,
            1..3 => Time::Omit,
            3 => Time::At(self.random.i64(-100..100), 0),
            _ => Time::At(self.random.i64(0..1_400_000_000), self.random.u32(..1_000_000_000)),
        }
    }

    fn by_name(&mut self, there: &There<'_>) -> Op {
        let path = self.path(there);
        let follow = self.random.bool();
        match self.random.u32(..100) {
            0..16 => Op::Stat { path, follow },
            16..20 => Op::Access { path, mode: self.random.u32(..8) },
            20..27 => Op::Chmod { path, mode: self.mode() },
            27..31 => {
                let (uid, gid) = self.owners();
                Op::Chown { path, follow, uid, gid }
            }
            31..38 => Op::Times { path, follow, atime: self.time(), mtime: self.time() },
            38..43 => Op::Truncate { path: self.file(there), length: self.place() },
            43..52 => Op::MakeDir { path: self.new_path(there), mode: self.mode() | 0o700 },
            52..56 => Op::RemoveDir { path },
            56..64 => Op::Unlink { path },
            64..78 => Op::Rename { from: path, to: self.path(there), flags: self.rename_flags() },
            78..83 => Op::Link { from: path, to: self.path(there), follow },
            83..88 => self.symlink(there),
            88..91 => Op::ReadLink { path },
            _ => Op::List { path: self.dir(there) },
        }
    }

    fn rename_flags(&mut self) -> RenameFlags {
        match self.random.u32(..6) {
            0 => RenameFlags::NOREPLACE,
            1 => RenameFlags::EXCHANGE,
            _ => RenameFlags::empty(),
        }
    }

    fn symlink(&mut self, there: &There<'_>) -> Op {
        let name = self.name();
        let target = match self.random.u32(..6) {
            0 => ".".into(),
            1 => format!("../{name}"),
            2 => format!("{name}/{}", self.name()),
            _ => name.to_owned(),
        };
        Op::Symlink { target, path: self.new_path(there) }
    }

    fn xattr(&mut self, there: &There<'_>) -> Op {
        let path = self.path(there);
        let name = XATTRS[self.random.usize(..XATTRS.len())];
        match self.random.u32(..8) {
            0..2 => Op::GetXattr { path, name },
            2 => Op::ListXattrs { path },
            3 => Op::RemoveXattr { path, name },
            _ => {
                let fill = Fill { length: self.random.usize(..200), ..self.fill() };
                let flags = match self.random.u32(..4) {
                    0 => XattrFlags::CREATE,
                    1 => XattrFlags::REPLACE,
                    _ => XattrFlags::empty(),
                };
                Op::SetXattr { path, name, fill, flags }
            }
        }
    }
}
