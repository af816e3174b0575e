//! Quotas: limits, and what has yet to be counted.

use super::{Record, read_flag};
use kiln_types::{Decoder, Encoder, Error, InodeId, QuotaLimits, Result};

/// The limits of a quota.
impl Record for QuotaLimits {
    const TYPE: u16 = 10;
    const WHAT: &'static str = "quota";

    fn write(&self, to: &mut Encoder) {
        for limit in [self.bytes, self.inodes] {
            to.u8(u8::from(limit.is_some())).u64(limit.unwrap_or(0));
        }
    }

    fn read(from: &mut Decoder<'_>, _version: u16) -> Result<Self> {
        let mut limit = || match (read_flag(from)?, from.u64()?) {
            (true, limit) => Ok(Some(limit)),
            (false, 0) => Ok(None),
            (false, _) => Err(Error::corrupt("a limit that is none")),
        };
        Ok(Self { bytes: limit()?, inodes: limit()? })
    }
}

/// How far the entries of a directory are counted for the quota that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recount {
    pub(crate) quota: InodeId,
    /// The cookie of the last one.
    pub(crate) after: u64,
}

impl Record for Recount {
    const TYPE: u16 = 11;
    const WHAT: &'static str = "count of a directory";

    fn write(&self, to: &mut Encoder) {
        to.u64(self.quota.0).u64(self.after);
    }

    fn read(from: &mut Decoder<'_>, _version: u16) -> Result<Self> {
        Ok(Self { quota: InodeId(from.u64()?), after: from.u64()? })
    }
}
