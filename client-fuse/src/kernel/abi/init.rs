//! The first request: what the kernel offers, and what of it a mount makes use of.

use super::reply::Reply;
use kiln_types::{Code, Decoder, Encoder, Error, Result};

/// The version of the protocol that is spoken here.
const MAJOR: u32 = 7;
const MINOR: u32 = 40;
/// That of Linux 5.4, the first one that has all a mount cannot do without.
const MINOR_MIN: u32 = 31;

/// What a request carries at most: the kernel's own limit, unless root raised it.
pub(crate) const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Requests of the kernel's own (read-ahead, asynchronous direct I/O) that may be under way.
const BACKGROUND_MAX: u16 = 64;
/// From so many on it reads ahead less.
const CONGESTED: u16 = BACKGROUND_MAX / 4 * 3;
/// No page is smaller.
const PAGE_BYTES: u32 = 4096;

const ASYNC_READ: u64 = 1 << 0;
const POSIX_LOCKS: u64 = 1 << 1;
const ATOMIC_O_TRUNC: u64 = 1 << 3;
const BIG_WRITES: u64 = 1 << 5;
const FLOCK_LOCKS: u64 = 1 << 10;
const DO_READDIRPLUS: u64 = 1 << 13;
const READDIRPLUS_AUTO: u64 = 1 << 14;
const ASYNC_DIO: u64 = 1 << 15;
const PARALLEL_DIROPS: u64 = 1 << 18;
const MAX_PAGES: u64 = 1 << 22;
const CACHE_SYMLINKS: u64 = 1 << 23;
const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
/// There are more than 32 flags.
const INIT_EXT: u64 = 1 << 30;
const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;

/// What a mount makes use of where the kernel has it. Not the kernel's write-back cache, which would hide
/// writes from other clients.
const WANTED: u64 = ASYNC_READ
    | ATOMIC_O_TRUNC
    | BIG_WRITES
    | DO_READDIRPLUS
    | READDIRPLUS_AUTO
    | ASYNC_DIO
    | PARALLEL_DIROPS
    | MAX_PAGES
    | CACHE_SYMLINKS
    | EXPLICIT_INVAL_DATA
    | HANDLE_KILLPRIV_V2
    | INIT_EXT
    | DIRECT_IO_ALLOW_MMAP
    | POSIX_LOCKS
    | FLOCK_LOCKS;

/// What the kernel offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    major: u32,
    minor: u32,
    read_ahead_max: u32,
    flags: u64,
}

impl Offer {
    pub(super) fn decode(fields: &mut Decoder<'_>) -> Result<Self> {
        let (major, minor) = (fields.u32()?, fields.u32()?);
        let (read_ahead_max, low) = (fields.u32()?, u64::from(fields.u32()?));
        let high = if low & INIT_EXT != 0 { u64::from(fields.u32()?) } else { 0 };
        Ok(Self { major, minor, read_ahead_max, flags: low | high << 32 })
    }
}

/// The answer to an offer, and whether the kernel will make another one.
///
/// # Errors
/// `Unsupported` for a kernel that is too old.
pub(crate) fn accept(offer: &Offer) -> Result<(Reply, bool)> {
    if offer.major > MAJOR {
        return Ok((Reply::Fields(encode(0, 0)), true));
    }
    if (offer.major, offer.minor) < (MAJOR, MINOR_MIN) {
        let message = format!("this kernel's FUSE is {}.{}", offer.major, offer.minor);
        return Err(Error::new(Code::Unsupported, message)
            .with_hint("7.31 is the oldest that serves: Linux 5.4"));
    }
    let missing = WANTED & !offer.flags;
    tracing::debug!(?offer, missing = format_args!("{missing:#x}"), "the kernel's FUSE");
    Ok((Reply::Fields(encode(offer.read_ahead_max, WANTED & offer.flags)), false))
}

fn encode(read_ahead_max: u32, flags: u64) -> Vec<u8> {
    let (low, high) = (flags as u32, (flags >> 32) as u32);
    let pages_max = (REQUEST_BYTES_MAX / PAGE_BYTES) as u16;
    let mut fields = Encoder::new();
    fields.u32(MAJOR).u32(MINOR).u32(read_ahead_max).u32(low);
    fields.u16(BACKGROUND_MAX).u16(CONGESTED).u32(REQUEST_BYTES_MAX);
    let granularity_nanos = 1;
    fields.u32(granularity_nanos).u16(pages_max).u16(0).u32(high).raw(&[0; 28]);
    fields.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(major: u32, minor: u32, flags: u64) -> Offer {
        Offer { major, minor, read_ahead_max: 128 << 10, flags }
    }

    fn accepted(offer: &Offer) -> Vec<u8> {
        match accept(offer).unwrap() {
            (Reply::Fields(fields), false) => fields,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_is_offered_and_wanted_is_used() {
        let word =
            |fields: &[u8], at: usize| u32::from_le_bytes(fields[at..at + 4].try_into().unwrap());
        let all = accepted(&offer(7, 45, u64::MAX));
        assert_eq!(all.len(), 64);
        assert_eq!((word(&all, 0), word(&all, 8), word(&all, 20)), (7, 128 << 10, 1 << 20));
        let flags = |fields: &[u8]| u64::from(word(fields, 12)) | u64::from(word(fields, 32)) << 32;
        assert_eq!(flags(&all), WANTED | POSIX_LOCKS | FLOCK_LOCKS);
        let locks = POSIX_LOCKS | FLOCK_LOCKS;
        assert_eq!(flags(&accepted(&offer(7, 45, !locks))), WANTED & !locks);
        let few = ASYNC_READ | FLOCK_LOCKS;
        assert_eq!(flags(&accepted(&offer(7, 31, few))), few);
        assert_eq!(accept(&offer(7, 30, u64::MAX)).unwrap_err().code(), Code::Unsupported);
        assert!(matches!(accept(&offer(8, 1, 0)), Ok((_, true))));
    }
}
