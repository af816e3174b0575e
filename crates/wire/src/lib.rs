//! The data plane's frames, message bodies and capabilities; pure encoding, no I/O.
#![forbid(unsafe_code)]

mod capability;
mod credential;
mod extents;
mod fill;
mod frame;
mod handshake;
mod listing;
mod message;

pub use capability::{CAPABILITY_BYTES, CLOCK_SKEW_NS, Capability, CapabilityKey};
pub use credential::{
    CREDENTIAL_NAME_BYTES_MAX, check_credential_name, client_secret, credential, server_secret,
};
pub use extents::Extents;
pub use fill::{Copied, Fill, FillStep, Install};
pub use frame::{
    BODY_BYTES_MAX, Credit, FRAME_HEADER_BYTES, FrameHeader, FrameKind, PAYLOAD_BYTES_MAX,
    decode_error, encode_error,
};
pub use handshake::{
    Accepting, Agreement, Connecting, HANDSHAKE_BYTES_MAX, HANDSHAKE_PREFIX_BYTES, Identity, Nonce,
    Proven, Proving, Purpose, Terms, handshake_bytes, refusal,
};
pub use listing::{Damaged, LIST_LIMIT_MAX, List, Listed, Listing, Scrubbed};
pub use message::{
    Body, Change, DiskSpace, Forward, Goodbye, Name, Operation, Read, ReadDone, Space, Update,
    Write, WriteDone,
};
