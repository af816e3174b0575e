//! The limits: the same work without kiln.

mod commits;
mod pipeline;
mod raw;
mod round_trip;

pub(crate) use commits::Commits;
pub(crate) use pipeline::{Pipeline, Traffic};
pub(crate) use raw::RawFile;
pub(crate) use round_trip::round_trips;

/// How the limits are called, and what they are.
pub(crate) const PIPELINE: &str = "pipeline";
pub(crate) const RAW: &str = "raw disk";
pub(crate) const PASSTHROUGH: &str = "FUSE passthrough";
pub(crate) const COMMITS: &str = "kv commits";
pub(crate) const ROUND_TRIP: &str = "TCP round trip";

pub(crate) const WORDS: [(&str, &str); 5] = [
    (PIPELINE, "the same bytes through a socket to each replica, a CRC at each, O_DIRECT writes"),
    (RAW, "io_uring with O_DIRECT on the raw directory"),
    (
        PASSTHROUGH,
        "a minimal FUSE daemon over the raw directory: one copy, durable with fsync only",
    ),
    (COMMITS, "durable transactions of the embedded key-value engine on the raw directory"),
    (ROUND_TRIP, "128 bytes to another thread and back over a loopback socket"),
];
