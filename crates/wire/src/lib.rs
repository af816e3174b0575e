//! The data plane's frames, message bodies and capabilities; pure encoding, no I/O.
#![forbid(unsafe_code)]

mod capability;
mod message;

pub use capability::{CAPABILITY_BYTES, CLOCK_SKEW_NS, Capability, CapabilityKey};
pub use message::{
    Body, Change, DiskSpace, Forward, Goodbye, LIST_LIMIT_MAX, List, Listed, Listing, Name,
    Operation, Read, ReadDone, Space, Update, Write, WriteDone,
};
