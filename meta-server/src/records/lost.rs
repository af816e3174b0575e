//! Ids of inodes of which only the storage servers may know.

use super::{Record, read_time, write_time};
use kiln_types::{Decoder, Encoder, InodeId, Result, Timestamp};

/// Ids from the one in the key up to `end` may have been given before a backup was put back. They are never given
/// again, and chunks of theirs are nobody's to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LostIds {
    /// Exclusive.
    pub(crate) end: InodeId,
    /// When the backup was put back.
    pub(crate) at: Timestamp,
    /// Which dump it was; 0: none, or not known.
    pub(crate) dump: u128,
}

impl Record for LostIds {
    const TYPE: u16 = 15;
    const VERSION: u16 = 2;
    const WHAT: &'static str = "lost ids";

    fn write(&self, to: &mut Encoder) {
        to.u64(self.end.0);
        write_time(to, self.at);
        to.u128(self.dump);
    }

    fn read(from: &mut Decoder<'_>, version: u16) -> Result<Self> {
        let (end, at) = (InodeId(from.u64()?), read_time(from)?);
        let dump = if version < 2 { 0 } else { from.u128()? };
        Ok(Self { end, at, dump })
    }
}
