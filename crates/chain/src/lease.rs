//! Leases between servers and the manager: who may serve, and who is dead.
//!
//! A server may serve until a fixed time after it *sent* the last heartbeat that was answered; the
//! manager gives its role away only a longer time after it *received* the last heartbeat that it
//! answered. Both read their own boot-time clock, which counts through suspend, and no wall clock
//! is compared.
//!
//! # The argument
//! Let s be the real time at which the server sent its last answered heartbeat and r >= s the real
//! time at which the manager took it up; F = [`LeaseTimes::fence`], L = [`LeaseTimes::lease`]. Let
//! the server's clock advance by at least 1 - d seconds in each real second, and the manager's by at
//! most 1 + d. The server has stopped by s + F / (1 - d); the manager declares it dead not before
//! r + L / (1 + d). Stopping comes first whenever `F / (1 - d) <= L / (1 + d)`; with F = 4/5 L that is
//! `(1 + d) / (1 - d) <= 5/4`, so `d <= 1/9`: each clock may be wrong by 11 %, while crystals are
//! wrong by 0.01 %. A server whose process is halted and goes on later reads its clock before it
//! serves, and finds itself past its fence.
//!
//! A manager's restart: leases were extended by its predecessor, which is dead before the successor
//! starts (the store's exclusive lock, or the primary lease). So nothing was extended after the
//! successor's start, and it declares nobody dead before L after its own start. That wait cannot be
//! spared, also when the predecessor is known to be dead: what it granted last is not known. The
//! same holds when a manager notices that it stood still itself.
//!
//! A server that was declared dead is heard again only after it registered anew, and then serves
//! only after it took up the routing information of that moment (see [`ServerLease::registered`]):
//! it never serves under states from before its death.

use kiln_types::rehearsal::{mark, planted};
use kiln_types::{Monotonic, NodeId, RoutingVersion};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How many heartbeats may be unanswered at a time; older ones are forgotten.
const OUTSTANDING_MAX: usize = 16;

/// The times of one kind of lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTimes {
    /// A node that was not heard for this long is dead.
    pub lease: Duration,
    /// How often a node reports.
    pub heartbeat: Duration,
}

impl LeaseTimes {
    /// 5 s, reported each 0.5 s.
    pub const SERVER: Self =
        Self { lease: Duration::from_secs(5), heartbeat: Duration::from_millis(500) };

    /// How long after it sent the last answered heartbeat a server may serve.
    pub fn fence(self) -> Duration {
        self.lease * 4 / 5
    }
}

/// A server's side: until when it may serve. Times are of the server's own clock.
#[derive(Clone, Debug)]
pub struct ServerLease {
    times: LeaseTimes,
    sent: VecDeque<(u64, Monotonic)>,
    fenced_at: Monotonic,
    required: RoutingVersion,
    stopped: bool,
}

impl ServerLease {
    /// A lease that was never granted.
    pub fn new(times: LeaseTimes) -> Self {
        Self {
            times,
            sent: VecDeque::new(),
            fenced_at: Monotonic(0),
            required: RoutingVersion(0),
            stopped: false,
        }
    }

    /// Heartbeat (or registration) `sequence` is about to be sent.
    pub fn sent(&mut self, sequence: u64, now: Monotonic) {
        if self.sent.len() == OUTSTANDING_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((sequence, now));
    }

    /// Heartbeat `sequence` was answered: the lease runs from when it was sent.
    pub fn answered(&mut self, sequence: u64) {
        let Some(at) = self.sent.iter().position(|(sent, _)| *sent == sequence) else { return };
        let fence = self.sent[at].1.plus(self.times.fence());
        self.sent.drain(..=at);
        if !self.stopped {
            self.fenced_at = self.fenced_at.max(fence);
        }
    }

    /// Registration `sequence` was answered with routing information `routing` and these times. The
    /// server may have been declared dead before: it serves only when it has taken up `routing`.
    pub fn registered(&mut self, sequence: u64, routing: RoutingVersion, times: LeaseTimes) {
        self.times = times;
        self.required = self.required.max(routing);
        self.answered(sequence);
    }

    /// The manager does not know this run of the server any more: what was granted before counts
    /// no longer.
    pub fn lost(&mut self) {
        self.fenced_at = Monotonic(0);
        self.sent.clear();
    }

    /// The server stops on purpose: it serves nothing from now on, whatever is answered.
    pub fn stop(&mut self) {
        self.stopped = true;
        self.lost();
    }

    /// From when on nothing is served.
    pub fn fenced_at(&self) -> Monotonic {
        self.fenced_at
    }

    /// The routing information that has to be taken up before anything is served.
    pub fn required(&self) -> RoutingVersion {
        self.required
    }

    /// Whether the server may serve, having taken up `adopted`.
    pub fn may_serve(&self, now: Monotonic, adopted: RoutingVersion) -> bool {
        now < self.fenced_at && adopted >= self.required
    }
}

/// How the manager waits before it declares someone dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// The servers' lease.
    pub lease: Duration,
    /// How long after the manager's start a node may take to make contact for the first time.
    pub startup: Duration,
    /// A pause between two [`ManagerLeases::tick`]s from which the manager concludes that it stood
    /// still itself, and may have missed heartbeats because of that.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            lease: LeaseTimes::SERVER.lease,
            startup: Duration::from_secs(15),
            stall: Duration::from_secs(1),
        }
    }
}

/// The manager's side: when each living node was heard last. Times are of the manager's own clock.
#[derive(Clone, Debug)]
pub struct ManagerLeases {
    patience: Patience,
    started: Monotonic,
    /// Nobody is dead before one lease after this.
    resumed: Monotonic,
    ticked: Monotonic,
    /// Living nodes; `None`: not heard since the manager started.
    heard: BTreeMap<NodeId, Option<Monotonic>>,
}

impl ManagerLeases {
    /// Begins at the manager's start with the nodes that were alive in its store.
    pub fn new(
        patience: Patience,
        now: Monotonic,
        alive: impl IntoIterator<Item = NodeId>,
    ) -> Self {
        let heard = alive.into_iter().map(|node| (node, None)).collect();
        Self { patience, started: now, resumed: now, ticked: now, heard }
    }

    /// `node` was heard and gets an answer.
    pub fn heard(&mut self, node: NodeId, now: Monotonic) {
        self.heard.insert(node, Some(now));
    }

    /// `node` is dead or has stopped.
    pub fn forget(&mut self, node: NodeId) {
        self.heard.remove(&node);
    }

    /// Whether the lease of `node` may still run at `now`.
    pub fn holds(&self, node: NodeId, now: Monotonic) -> bool {
        self.heard.get(&node).is_some_and(|heard| now < self.ends_at(*heard))
    }

    /// When `node` made contact last, since the manager started.
    pub fn last_heard(&self, node: NodeId) -> Option<Monotonic> {
        *self.heard.get(&node)?
    }

    /// The nodes whose lease has ended; call it often. The caller [`forget`](Self::forget)s them.
    pub fn tick(&mut self, now: Monotonic) -> Vec<NodeId> {
        if now.since(self.ticked) > self.patience.stall {
            mark("the manager finds that it stood still");
            self.resumed = now;
        }
        self.ticked = now;
        let ended = self.heard.iter().filter(|(_, heard)| now >= self.ends_at(**heard));
        ended.map(|(node, _)| *node).collect()
    }

    fn ends_at(&self, heard: Option<Monotonic>) -> Monotonic {
        let lease = match planted("a role is given away before its lease ends") {
            true => self.patience.lease * 3 / 10,
            false => self.patience.lease,
        };
        if planted("a new manager does not wait for a lease") && heard.is_none() {
            return self.started.plus(lease / 5);
        }
        let own = self.resumed.plus(lease);
        match heard {
            Some(heard) => own.max(heard.plus(lease)),
            None => own.max(self.started.plus(self.patience.startup)),
        }
    }
}
