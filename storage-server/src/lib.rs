//! The storage server: chain replication over the chunk store.
//!
//! [`ChunkService`] answers requests, [`Target`] carries out what the replica's state machine
//! (`kiln_chain::replica`) says, [`Follower`] keeps the targets at the routing information's state.
//!
//! Invariants: nothing is answered without the lease; a payload is taken once into memory of this server,
//! and checksum, disk and forward use that copy; no decision of the protocol is taken here.
#![forbid(unsafe_code)]

mod disks;
mod follower;
mod insist;
mod orders;
mod peers;
mod pulse;
mod recovery;
mod rights;
mod scrub;
mod server;
mod service;
mod target;

pub use follower::Follower;
pub use peers::Peers;
pub use recovery::Recovery;
pub use rights::Rights;
pub use server::{Parts, StorageServer, run};
pub use service::{ChunkService, Lease};
pub use target::{Completeness, Incoming, Target};
