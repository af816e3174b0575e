//! What servers and clients ask of the manager, whatever carries it.

use crate::{Heartbeat, Registration, TargetOrders};
use async_trait::async_trait;
use kiln_types::{Result, RoutingChange, RoutingInfo, RoutingVersion};
use std::time::Duration;

/// The manager as its members see it: through tonic, or in the simulator's process.
#[async_trait]
pub trait ManagerCalls: Send + Sync {
    /// A server says that it runs.
    ///
    /// # Errors
    /// Why it is refused.
    async fn register(&self, registration: Registration) -> Result<Registered>;

    /// A server says that it still runs; the answer says what it shall do with its targets.
    ///
    /// # Errors
    /// `UnknownMember` when it has to register anew; `StaleIncarnation` when another run of it has.
    async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<TargetOrders>;

    /// The routing information that is newer than `known`: first all of it, then each change.
    ///
    /// # Errors
    /// Why it is refused.
    async fn watch_routing(&self, known: RoutingVersion) -> Result<Box<dyn RoutingUpdates>>;
}

/// What a server is told when it registers.
#[derive(Clone, Debug, PartialEq)]
pub struct Registered {
    /// The routing information at that moment.
    pub routing: RoutingInfo,
    /// After so long without a heartbeat it is declared dead.
    pub lease: Duration,
    /// How often it reports.
    pub heartbeat: Duration,
}

/// The answer to [`ManagerCalls::watch_routing`].
#[async_trait]
pub trait RoutingUpdates: Send {
    /// Waits for the next one; slow readers skip some. `None`: the manager ended it.
    ///
    /// # Errors
    /// What broke it.
    async fn next(&mut self) -> Result<Option<RoutingChange>>;
}
