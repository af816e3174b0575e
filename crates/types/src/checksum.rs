//! CRC32C, carried from the client's buffer to the disk and back.

use crc_fast::{CrcAlgorithm, checksum, checksum_combine};

/// The unit of checksums and of allocation on disk: 4 KiB.
pub const BLOCK_BYTES: usize = 4096;

/// CRC32C (Castagnoli, RFC 3720) of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The CRC32C of `a` followed by `b`, from their checksums and the length of `b` in bytes.
pub fn crc32c_combine(a: u32, b: u32, b_bytes: u64) -> u32 {
    checksum_combine(CrcAlgorithm::Crc32Iscsi, u64::from(a), u64::from(b), b_bytes) as u32
}

/// One checksum for each [`BLOCK_BYTES`] of `bytes`; the last block may be short.
pub fn block_checksums(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(BLOCK_BYTES).map(crc32c).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_second_implementation_and_combines() {
        let bytes: Vec<u8> = (0..3 * BLOCK_BYTES + 17).map(|i| (i * 7 + i / 251) as u8).collect();
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        for cut in [0, 1, 4096, 5000, bytes.len()] {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(crc32c(a), ::crc32c::crc32c(a));
            let combined = crc32c_combine(crc32c(a), crc32c(b), b.len() as u64);
            assert_eq!(combined, crc32c(&bytes));
        }
        assert_eq!(block_checksums(&bytes).len(), 4);
    }
}
