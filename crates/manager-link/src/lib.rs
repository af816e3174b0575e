//! The tie to the manager. Servers hold a [`ManagerLink`]: it registers, sends heartbeats, keeps
//! the lease and follows the routing information, with the cluster's settings. Clients hold a [`RoutingWatch`]: it only follows.
//!
//! Invariants: whatever happens, both go on trying, with pauses that grow and jitter; a server's
//! lease is only ever extended from when a heartbeat was sent; routing information never goes back.
#![forbid(unsafe_code)]

mod channel;
mod heart;
mod lease;
mod link;
mod routing;
mod settings;
mod tonic;

pub use channel::{Reach, over_tcp};
pub use lease::LeaseView;
pub use link::{LinkOptions, ManagerLink, Orders, Reporter};
pub use routing::{Routing, RoutingWatch};
pub use settings::follow_settings;
pub use tonic::{ManagerClient, manager_client};
