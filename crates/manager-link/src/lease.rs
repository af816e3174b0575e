//! A server's lease as its request handlers see it.

use kiln_chain::lease::ServerLease;
use kiln_types::{Monotonic, RoutingVersion};
use std::sync::atomic::{AtomicU64, Ordering};

/// Whether this server may serve now. Cheap: asked for every request, from any thread.
#[derive(Debug, Default)]
pub struct LeaseView {
    fenced_at: AtomicU64,
    required: AtomicU64,
    adopted: AtomicU64,
}

impl LeaseView {
    /// Whether the lease holds at `now` and rests on routing information that was taken up. What a
    /// request shows must have been read before this is asked: it was current while the lease held.
    pub fn may_serve(&self, now: Monotonic) -> bool {
        // The fence first: whoever sees a new one sees what it requires.
        let fenced_at = self.fenced_at.load(Ordering::Acquire);
        let required = self.required.load(Ordering::Acquire);
        now.0 < fenced_at && self.adopted.load(Ordering::Acquire) >= required
    }

    /// When the lease ends, unless it is extended.
    pub fn fenced_at(&self) -> Monotonic {
        Monotonic(self.fenced_at.load(Ordering::Acquire))
    }

    /// The server has taken up routing information `version` for all its targets: from here on it
    /// behaves as that says. A server that was declared dead serves again only after this.
    pub fn adopt(&self, version: RoutingVersion) {
        self.adopted.fetch_max(version.0, Ordering::AcqRel);
    }

    /// Shows what the lease says now; called by its one owner.
    pub(crate) fn show(&self, lease: &ServerLease) {
        self.required.store(lease.required().0, Ordering::Release);
        self.fenced_at.store(lease.fenced_at().0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_chain::lease::LeaseTimes;

    #[test]
    fn a_lease_counts_when_its_routing_is_taken_up() {
        let view = LeaseView::default();
        let mut lease = ServerLease::new(LeaseTimes::SERVER);
        assert!(!view.may_serve(Monotonic(0)));
        lease.sent(1, Monotonic(10));
        lease.registered(1, RoutingVersion(5), LeaseTimes::SERVER);
        view.show(&lease);
        assert!(!view.may_serve(Monotonic(11)));
        view.adopt(RoutingVersion(5));
        view.adopt(RoutingVersion(4));
        assert!(view.may_serve(Monotonic(11)));
        assert!(!view.may_serve(view.fenced_at()));
        lease.lost();
        view.show(&lease);
        assert!(!view.may_serve(Monotonic(11)));
    }
}
