//! How a file is spread over chains. The arithmetic is part of the format.

use crate::{ChainTableId, Error, Result};

/// Bytes of a chunk unless the directory says otherwise.
pub const CHUNK_BYTES_DEFAULT: u32 = 1 << 20;
/// The smallest chunk that a layout may name.
pub const CHUNK_BYTES_MIN: u32 = 64 << 10;
/// The largest chunk that a layout may name.
pub const CHUNK_BYTES_MAX: u32 = 64 << 20;

/// How a stripe survives losses. Room is left for erasure-coded chains.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Redundancy {
    /// Each chunk is on every target of one replicated chain.
    #[default]
    Replicated = 0,
}

/// A file's placement, fixed when it is created.
///
/// The stripe is a window of `stripe` neighbours in the chain table, beginning at `base`, in an order
/// drawn from `seed`. With n the number of chains in version `table_version` of the table:
/// 1. `slots = [0, 1, .., stripe - 1]`;
/// 2. Fisher-Yates: for i from stripe - 1 down to 1, swap `slots[i]` with `slots[r mod (i + 1)]`, where r is
///    the next output of SplitMix64 (Steele, Lea, Flood 2014) whose state starts at `seed`;
/// 3. chunk c is on the chain at table index `(base + slots[c mod stripe]) mod n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Layout {
    /// The chain table.
    pub table: ChainTableId,
    /// The version of the table: placement never changes when the table grows.
    pub table_version: u64,
    /// Bytes of a chunk: a power of two from [`CHUNK_BYTES_MIN`] to [`CHUNK_BYTES_MAX`].
    pub chunk_bytes: u32,
    /// Over how many chains the chunks go round, at least 1.
    pub stripe: u32,
    /// The table index at which the window begins.
    pub base: u32,
    /// The seed of the window's order.
    pub seed: u64,
    /// How chunks survive losses.
    pub redundancy: Redundancy,
}

/// What new files in a directory are to be like; 0: as elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LayoutWish {
    /// Bytes of a chunk; see [`Layout::chunk_bytes`].
    pub chunk_bytes: u32,
    /// Over how many chains the chunks go round; of fewer, all.
    pub stripe: u32,
}

impl LayoutWish {
    /// Checks what came from a user or the network.
    ///
    /// # Errors
    /// `Invalid`, with the field and its limits.
    pub fn validate(&self) -> Result<()> {
        if self.chunk_bytes == 0 { Ok(()) } else { check_chunk_bytes(self.chunk_bytes) }
    }
}

/// # Errors
/// `Invalid`.
fn check_chunk_bytes(bytes: u32) -> Result<()> {
    if bytes.is_power_of_two() && (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&bytes) {
        return Ok(());
    }
    Err(Error::invalid(format!("chunk size {bytes} is not a power of two from 64 KiB to 64 MiB")))
}

impl Layout {
    /// Checks what came from a user, the network or the metadata.
    ///
    /// # Errors
    /// `Invalid`, with the field and its limits.
    pub fn validate(&self) -> Result<()> {
        check_chunk_bytes(self.chunk_bytes)?;
        if !(1..=65_536).contains(&self.stripe) {
            return Err(Error::invalid(format!("stripe {} is not in 1..65536", self.stripe)));
        }
        Ok(())
    }

    /// Table indexes of the stripe's chains in a table of `chains` chains; chunk c is on entry
    /// `c mod stripe`.
    ///
    /// # Panics
    /// When `chains` or the stripe is 0.
    pub fn stripe_order(&self, chains: usize) -> Vec<usize> {
        assert!(chains > 0 && self.stripe > 0, "a layout needs chains and a stripe");
        let mut slots: Vec<usize> = (0..self.stripe as usize).collect();
        let mut state = self.seed;
        for i in (1..slots.len()).rev() {
            let drawn = split_mix_64(&mut state) % (i as u64 + 1);
            slots.swap(i, drawn as usize);
        }
        slots.into_iter().map(|slot| (self.base as usize + slot) % chains).collect()
    }

    /// The index of the chunk that holds byte `offset`.
    pub fn chunk_of(&self, offset: u64) -> u64 {
        offset / u64::from(self.chunk_bytes)
    }

    /// How many chunks a file of `length` bytes has.
    pub fn chunk_count(&self, length: u64) -> u64 {
        length.div_ceil(u64::from(self.chunk_bytes))
    }
}

fn split_mix_64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(stripe: u32, base: u32, seed: u64) -> Layout {
        Layout {
            table: ChainTableId(1),
            table_version: 1,
            chunk_bytes: CHUNK_BYTES_DEFAULT,
            stripe,
            base,
            seed,
            redundancy: Redundancy::Replicated,
        }
    }

    #[test]
    fn split_mix_matches_the_published_vector() {
        let mut state = 1_234_567;
        assert_eq!(split_mix_64(&mut state), 6_457_827_717_110_365_317);
        assert_eq!(split_mix_64(&mut state), 3_203_168_211_198_807_973);
    }

    #[test]
    fn the_order_is_fixed_for_ever() {
        assert_eq!(layout(6, 4, 42).stripe_order(10), [8, 7, 4, 6, 9, 5]);
    }

    #[test]
    fn a_stripe_visits_each_chain_of_its_window_once() {
        for seed in 0..50 {
            let mut order = layout(8, 5, seed).stripe_order(8);
            order.sort_unstable();
            assert_eq!(order, (0..8).collect::<Vec<_>>());
        }
    }

    #[test]
    fn limits_are_checked() {
        assert!(layout(1, 0, 0).validate().is_ok());
        assert!(Layout { chunk_bytes: 100_000, ..layout(1, 0, 0) }.validate().is_err());
        assert!(layout(0, 0, 0).validate().is_err());
    }
}
