//! The trash: how it is set, and what is in it.

use super::{Record, read_flag};
use kiln_types::{Decoder, Encoder, InodeId, Result};
use std::time::Duration;

/// How the trash is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Trash {
    /// What is removed goes there.
    pub(crate) on: bool,
    /// How long it stays: when nothing goes there any more, what it was last.
    pub(crate) keep: Duration,
}

impl Record for Trash {
    const TYPE: u16 = 12;
    const WHAT: &'static str = "setting of the trash";

    fn write(&self, to: &mut Encoder) {
        let keep = u64::try_from(self.keep.as_nanos()).unwrap_or(u64::MAX);
        to.u8(u8::from(self.on)).u64(keep);
    }

    fn read(from: &mut Decoder<'_>, _version: u16) -> Result<Self> {
        Ok(Self { on: read_flag(from)?, keep: Duration::from_nanos(from.u64()?) })
    }
}

/// Where something was that is in the trash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// The directory.
    pub(crate) directory: InodeId,
    /// The name there.
    pub(crate) name: Vec<u8>,
    /// The user who removed it.
    pub(crate) by: u32,
}

impl Record for Item {
    const TYPE: u16 = 13;
    const WHAT: &'static str = "item of the trash";

    fn write(&self, to: &mut Encoder) {
        to.u64(self.directory.0).u32(self.by).bytes(&self.name);
    }

    fn read(from: &mut Decoder<'_>, _version: u16) -> Result<Self> {
        let (directory, by) = (InodeId(from.u64()?), from.u32()?);
        Ok(Self { directory, by, name: from.bytes(crate::NAME_BYTES_MAX)?.to_vec() })
    }
}
