//! Names of directory entries: which are allowed, and the cookie under which one is stored.

use kiln_types::{Code, Error, Result};

/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// Low bits of a cookie that number the names of one hash.
const NUMBER_BITS: u32 = 8;
/// The most names of one hash in a directory.
pub(crate) const NUMBERS: u64 = 1 << NUMBER_BITS;

/// Checks a name that a request wants to make, remove or rename.
///
/// # Errors
/// `Invalid` for an empty name, `.`, `..`, and one with `/` or NUL; `NameTooLong`.
pub(crate) fn check(name: &[u8]) -> Result<()> {
    if name.len() > NAME_BYTES_MAX {
        let text = format!("a name of {} bytes, at most {NAME_BYTES_MAX} allowed", name.len());
        return Err(Error::new(Code::NameTooLong, text));
    }
    if name.is_empty() || name == b"." || name == b".." {
        return Err(Error::invalid(format!("'{}' is not a name", name.escape_ascii())));
    }
    if name.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(Error::invalid("a name with a slash or a NUL byte"));
    }
    Ok(())
}

/// Gives names their cookies: 55 bits of SipHash-2-4 under the tree's own key, so that nobody can
/// make names collide on purpose, then 8 bits that number the names of one hash. The top bit stays
/// clear, and cookies below 256 stay free for the mount's `.` and `..`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NameHash {
    key: [u64; 2],
    mask: u64,
}

impl NameHash {
    pub(crate) fn new(key: [u64; 2]) -> Self {
        Self { key, mask: u64::MAX >> (NUMBER_BITS + 1) }
    }

    /// A hash of few bits, so that tests see collisions.
    #[cfg(test)]
    pub(crate) fn narrow(key: [u64; 2], bits: u32) -> Self {
        Self { key, mask: (1 << bits) - 1 }
    }

    /// The first cookie of the name's hash; the others follow it.
    pub(crate) fn cookie(&self, name: &[u8]) -> u64 {
        (sip_hash_2_4(self.key, name) & self.mask).max(1) << NUMBER_BITS
    }
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012) with a 64-bit result.
fn sip_hash_2_4(key: [u64; 2], bytes: &[u8]) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let words = bytes.chunks_exact(8);
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    last[7] = bytes.len() as u8;
    let word =
        |chunk: &[u8]| u64::from_le_bytes(chunk.try_into().expect("invariant: chunks of 8 bytes"));
    for m in words.map(word).chain([u64::from_le_bytes(last)]) {
        v[3] ^= m;
        sip_round(&mut v);
        sip_round(&mut v);
        v[0] ^= m;
    }
    v[2] ^= 0xff;
    for _ in 0..4 {
        sip_round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn sip_round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[2] = v[2].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[1]);
    v[0] = v[0].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_matches_the_published_vectors() {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let input: Vec<u8> = (0..15).collect();
        assert_eq!(sip_hash_2_4(key, &input), 0xa129_ca61_49be_45e5);
        assert_eq!(sip_hash_2_4(key, &[]), 0x726f_db47_dd0e_0e31);
    }

    #[test]
    fn cookies_leave_the_top_bit_and_the_first_ones_free() {
        let hash = NameHash::new([1, 2]);
        for number in 0..1000 {
            let cookie = hash.cookie(format!("file-{number}").as_bytes());
            assert!((NUMBERS..1 << 63).contains(&cookie) && cookie.is_multiple_of(NUMBERS));
        }
    }

    #[test]
    fn names_are_checked() {
        for good in [&b"a"[..], b"...", b".a", b"\xff\xfe", &[b'x'; 255]] {
            assert_eq!(check(good), Ok(()));
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert_eq!(check(bad).map_err(|e| e.code()), Err(Code::Invalid));
        }
        assert_eq!(check(&[b'x'; 256]).map_err(|e| e.code()), Err(Code::NameTooLong));
    }
}
