//! The FUSE protocol of Linux as values: bytes become requests, answers become bytes. No I/O, no state.
//!
//! What a request asks for is told in the terms of [`FileSystem`](crate::FileSystem). The names of the kernel's
//! header (linux/fuse.h) stand where its numbers do.

mod flags;
mod init;
mod notice;
mod operation;
mod reply;
mod request;

pub(crate) use init::{REQUEST_BYTES_MAX, accept};
pub(crate) use notice::{Notice, content, every_name, name};
pub(crate) use operation::Operation;
pub(crate) use reply::{Listing, Reply, answer_header};
pub(crate) use request::{Header, WRITE_HEAD_BYTES, has_payload, operation};

// The protocol speaks the machine's byte order, the codec little-endian.
const _: () = assert!(cfg!(target_endian = "little"), "kiln runs on little-endian machines");
