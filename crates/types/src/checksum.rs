//! CRC32C, carried from the client's buffer to the disk and back.

use crc_fast::{CrcAlgorithm, checksum};

/// The unit of checksums and of allocation on disk: 4 KiB.
pub const BLOCK_BYTES: usize = 4096;

/// CRC32C (Castagnoli, RFC 3720) of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// One checksum for each [`BLOCK_BYTES`] of `bytes`; the last block may be short.
pub fn block_checksums(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(BLOCK_BYTES).map(crc32c).collect()
}

/// One checksum for each block of a chunk's grid that `bytes`, at byte `offset` of the chunk, touches;
/// the first and the last piece may be short.
pub fn grid_checksums(offset: u64, bytes: &[u8]) -> Vec<u32> {
    let into_block = (offset % BLOCK_BYTES as u64) as usize;
    let first = if into_block == 0 { 0 } else { (BLOCK_BYTES - into_block).min(bytes.len()) };
    let (head, rest) = bytes.split_at(first);
    let mut checksums = Vec::with_capacity(bytes.len() / BLOCK_BYTES + 2);
    checksums.extend((!head.is_empty()).then(|| crc32c(head)));
    checksums.extend(rest.chunks(BLOCK_BYTES).map(crc32c));
    checksums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_second_implementation_on_every_grid() {
        let bytes: Vec<u8> = (0..3 * BLOCK_BYTES + 17).map(|i| (i * 7 + i / 251) as u8).collect();
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        for cut in [0, 1, 4096, 5000, bytes.len()] {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(crc32c(a), ::crc32c::crc32c(a));
            assert_eq!(crc32c(b), ::crc32c::crc32c(b));
        }
        assert_eq!(block_checksums(&bytes).len(), 4);
        let grid = grid_checksums(4000, &bytes);
        assert_eq!(grid[..2], [crc32c(&bytes[..96]), crc32c(&bytes[96..4192])]);
        assert_eq!(grid.len(), 4);
        assert_eq!(grid_checksums(1, &bytes[..10]), [crc32c(&bytes[..10])]);
        assert!(grid_checksums(5, &[]).is_empty());
    }
}
