//! Room on the file system. The tree cannot go on after a write that found none, so the engine must
//! not get that far: it holds space in a file, the ballast, and gives it up when there is little else.
//! From then on what grows should be refused, so that the rest is for removals; the very last of it
//! is for nobody.

use kiln_types::{Code, Error, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

const BALLAST: &str = "ballast";

/// What must be left, in bytes.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    ballast: u64,
    /// With less the ballast is given up.
    low: u64,
    /// With less nothing is written.
    floor: u64,
}

/// What to do about so much room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    lay: bool,
    drop: bool,
    short: bool,
    refuse: bool,
}

pub(crate) struct Room {
    directory: PathBuf,
    sizes: Sizes,
    /// What grows should be refused.
    short: AtomicBool,
}

impl Sizes {
    fn judge(self, free: u64, has_ballast: bool) -> Verdict {
        let Self { ballast, low, floor } = self;
        Verdict {
            lay: !has_ballast && free >= 2 * (low + ballast),
            drop: has_ballast && free < low,
            short: !has_ballast && free < low + ballast,
            refuse: !has_ballast && free < floor,
        }
    }
}

impl Room {
    /// `memtable_bytes`: what the tree writes at once at most.
    pub(crate) fn new(directory: &Path, memtable_bytes: u64) -> Self {
        let unit = memtable_bytes;
        let sizes = Sizes { ballast: 3 * unit, low: unit + unit / 2, floor: unit / 2 };
        Self { directory: directory.to_path_buf(), sizes, short: AtomicBool::new(false) }
    }

    /// Looks, and gives up or lays the ballast.
    ///
    /// # Errors
    /// `NoSpace` when nothing may be written.
    pub(crate) fn check(&self) -> Result<()> {
        let Some(mut free) = self.free() else { return Ok(()) };
        let path = self.directory.join(BALLAST);
        let mut has_ballast = path.exists();
        let verdict = self.sizes.judge(free, has_ballast);
        if verdict.drop {
            tracing::warn!(
                directory = %self.directory.display(),
                "the file system is full: what was held back is given up, and nothing may grow"
            );
            if let Err(error) = fs::remove_file(&path) {
                tracing::error!(%error, "the ballast stays");
            }
            free = self.free().unwrap_or(free);
            has_ballast = false;
        }
        if verdict.lay {
            has_ballast = self.lay(&path);
        }
        let verdict = self.sizes.judge(free, has_ballast);
        self.short.store(verdict.short, Ordering::Relaxed);
        if verdict.refuse { Err(self.full()) } else { Ok(()) }
    }

    /// Whether there is room for what grows.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn may_grow(&self) -> Result<()> {
        let was_short = self.short.load(Ordering::Relaxed);
        let is_short =
            || self.free().is_some_and(|free| free < self.sizes.low + self.sizes.ballast);
        if was_short && is_short() { Err(self.full()) } else { Ok(()) }
    }

    fn full(&self) -> Error {
        let message = format!("the file system of {} is full", self.directory.display());
        Error::new(Code::NoSpace, message).with_hint("free space there; nothing was lost")
    }

    /// Bytes that the file system has left; `None` when it does not say.
    fn free(&self) -> Option<u64> {
        let space = rustix::fs::statvfs(&self.directory).ok()?;
        Some(space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// Holds space back, where the file system can do that ahead of writes.
    fn lay(&self, path: &Path) -> bool {
        let laid = File::create(path).map_err(|error| error.to_string()).and_then(|file| {
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&file, flags, 0, self.sizes.ballast)
                .map_err(|errno| errno.to_string())
        });
        if let Err(error) = &laid {
            tracing::debug!(%error, "no space is held back");
            // What was begun would count as ballast.
            let _ = fs::remove_file(path);
        }
        laid.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ballast_goes_first_then_growth_then_all() {
        let sizes = Sizes { ballast: 48, low: 24, floor: 8 };
        let nothing = Verdict { lay: false, drop: false, short: false, refuse: false };
        assert_eq!(sizes.judge(1000, true), nothing);
        assert_eq!(sizes.judge(1000, false), Verdict { lay: true, ..nothing });
        assert_eq!(sizes.judge(24, true), nothing);
        assert_eq!(sizes.judge(23, true), Verdict { drop: true, ..nothing });
        // The ballast is free now; what grows waits until there is room for it again.
        assert_eq!(sizes.judge(71, false), Verdict { short: true, ..nothing });
        assert_eq!(sizes.judge(72, false), nothing);
        assert_eq!(sizes.judge(7, false), Verdict { short: true, refuse: true, ..nothing });
    }

    #[test]
    fn a_directory_with_room_gets_a_ballast() {
        let directory = tempfile::tempdir().expect("a directory");
        let room = Room::new(directory.path(), 64 << 10);
        room.check().expect("there is room");
        let laid = fs::metadata(directory.path().join(BALLAST)).map(|found| found.len());
        assert!(laid.is_err() || laid.is_ok_and(|bytes| bytes == 192 << 10));
        assert!(room.may_grow().is_ok());
    }
}
