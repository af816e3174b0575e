//! The control plane: messages, generated code and service traits.
//!
//! [`v1::mgmtd_server::Mgmtd`] is the manager's trait as tonic generates it, [`ManagerCalls`] what members ask of the
//! manager over whatever carries it; [`metadata_calls`] lists what clients ask of metadata servers.
//! Bulk data never travels this way.
#![forbid(unsafe_code)]

mod batch;
pub mod convert;
mod manager;
pub mod metadata;
mod operations;
mod quota;
mod report;
mod routing;
mod status;
mod trash;

pub use batch::check_count;
pub use convert::Origin;
pub use manager::{ManagerCalls, Registered, RoutingUpdates};
pub use operations::{
    DiskState, Drain, DrainProgress, Drained, Extension, Move, MoveProgress, Operations, Reason,
    Retired, WaitingRebuild,
};
pub use report::{
    DiskReport, FillProgress, Heartbeat, Registration, TargetOrder, TargetOrders, TargetReport,
};
pub use status::{CODE_KEY, HINT_KEY, error_from_status, status_from_error};

/// Messages, clients and service traits, generated from `proto/` (see `tests/generated.rs`).
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::large_futures,
    reason = "generated code"
)]
pub mod v1 {
    include!("generated/kiln.v1.rs");
}
