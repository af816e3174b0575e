//! Which parts of a chunk are stored.

use crate::message::{Body, read_count, read_version, write_version};
use kiln_types::{BLOCK_BYTES, CHUNK_BYTES_MAX, ChunkVersion, Decoder, Encoder, Error, Result};
use std::ops::Range;

/// Most ranges that one answer carries: of the largest chunk, every second block.
const RANGES_MAX: usize = CHUNK_BYTES_MAX as usize / BLOCK_BYTES / 2 + 1;

/// The answer to [`Operation::Extents`](crate::Operation::Extents).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extents {
    /// The version that was looked at.
    pub version: ChunkVersion,
    /// The chunk's length in bytes.
    pub chunk_length: u32,
    /// The stored byte ranges of what was asked for, in order and apart; all else is zeros.
    pub data: Vec<Range<u32>>,
}

impl Body for Extents {
    const WHAT: &'static str = "extents";

    fn write(&self, to: &mut Encoder) {
        write_version(to, self.version);
        to.u32(self.chunk_length).u32(self.data.len() as u32);
        for range in &self.data {
            to.u32(range.start).u32(range.end);
        }
    }

    fn read(from: &mut Decoder<'_>) -> Result<Self> {
        let (version, chunk_length) = (read_version(from)?, from.u32()?);
        let mut data: Vec<Range<u32>> = Vec::new();
        for _ in 0..read_count(from, RANGES_MAX)? {
            let range = from.u32()?..from.u32()?;
            if range.is_empty() || data.last().is_some_and(|last| last.end >= range.start) {
                return Err(Error::corrupt("extents that are not in order"));
            }
            data.push(range);
        }
        Ok(Self { version, chunk_length, data })
    }
}
