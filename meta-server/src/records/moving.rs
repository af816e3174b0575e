//! Whether a tree is on its way between two stores.

use super::Record;
use kiln_types::{Decoder, Encoder, Error, Result, Timestamp};

/// The longest key that is noted, in bytes.
const KEY_BYTES_MAX: usize = kiln_kv::KEY_BYTES_MAX;

/// No server opens a tree with this record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Moving {
    /// Since `at` it is written to the dump `id`, and may be in another store.
    Left { id: u128, at: Timestamp },
    /// It comes from the dump `id`, and is here up to the key `last`; empty: what was here before is being removed.
    Arriving { id: u128, last: Vec<u8> },
    /// It is being repaired since `at`.
    Repairing { at: Timestamp },
}

impl Record for Moving {
    const TYPE: u16 = 14;
    const WHAT: &'static str = "a move";

    fn write(&self, to: &mut Encoder) {
        match self {
            Self::Left { id, at } => to.u8(0).u128(*id).u64(at.0 as u64),
            Self::Arriving { id, last } => to.u8(1).u128(*id).bytes(last),
            Self::Repairing { at } => to.u8(2).u64(at.0 as u64),
        };
    }

    fn read(from: &mut Decoder<'_>, _version: u16) -> Result<Self> {
        match from.u8()? {
            0 => Ok(Self::Left { id: from.u128()?, at: Timestamp(from.u64()? as i64) }),
            1 => {
                let (id, last) = (from.u128()?, from.bytes(KEY_BYTES_MAX)?.to_vec());
                Ok(Self::Arriving { id, last })
            }
            2 => Ok(Self::Repairing { at: Timestamp(from.u64()? as i64) }),
            other => Err(Error::corrupt(format!("a move of kind {other}"))),
        }
    }
}
