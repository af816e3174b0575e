//! The protocol's decisions as pure state machines: replica, membership, lease, election,
//! initiator
#![forbid(unsafe_code)]

pub mod domains;
pub mod election;
mod initiator;
pub mod lease;
pub mod membership;
pub mod placement;
pub mod relocation;
pub mod replica;
pub mod resync;
pub mod spread;

pub use initiator::{Initiator, Intent, Step};
