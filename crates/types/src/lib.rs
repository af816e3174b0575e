//! Ids, units, layouts, states and the error table that every room shares; no I/O.
//!
//! Invariant: this crate depends on nothing else in the house, reads no clock, no randomness and no file.
#![forbid(unsafe_code)]

mod attr;
mod checksum;
mod chunk;
mod codec;
mod dense;
mod error;
mod ids;
mod layout;
mod lock;
mod quota;
pub mod rehearsal;
mod routing;
mod routing_change;
mod secret;
mod state;
mod time;
mod trash;
mod version;

pub use attr::{Attr, Caller, FileKind, MODE_PERMISSIONS};
pub use checksum::{BLOCK_BYTES, block_checksums, crc32c, grid_checksums};
pub use chunk::{ChunkId, ChunkKind, Consistency};
pub use codec::{Decoder, Encoder};
pub use dense::{Acknowledged, ByteRange};
pub use error::{Action, Code, Context, Error, Result};
pub use ids::{
    ChainId, ChainTableId, ChannelId, ClientId, ClusterId, DiskId, Incarnation, InodeId, KeyId,
    NodeId, RequestId, RoutingVersion, Sequence, TargetId, TreeId,
};
pub use layout::{
    CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Layout, LayoutWish, Redundancy,
};
pub use lock::{Lock, LockFamily, LockMode, LockOwner, LockRange};
pub use quota::{Account, Quota, QuotaLimits, Usage};
pub use routing::{
    Chain, ChainTable, CredentialRecord, Member, Node, RoutingInfo, ServiceKind, SettingChange,
    Target,
};
pub use routing_change::RoutingChange;
pub use secret::{Credential, CredentialLimits, Secret, ServerKey};
pub use state::{LocalState, PublicState};
pub use time::{Deadline, Monotonic, Timestamp};
pub use trash::{Trash, TrashItem};
pub use version::{
    ChainVersion, ChunkVersion, Held, HeldPage, RetryKey, RetryRecord, TruncateEpoch,
};
