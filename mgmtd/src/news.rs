//! Routing information as it is pushed: first all of it, then what is different each time.

use kiln_types::{RoutingChange, RoutingInfo, RoutingVersion};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The last difference that was found out, for servers and for others: most followers have the same.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    last: Mutex<[Option<Arc<RoutingChange>>; 2]>,
}

impl Differences {
    /// What leads from `old` to `new`, as a server or somebody else may see it.
    pub(crate) fn between(
        &self,
        old: &RoutingInfo,
        new: &RoutingInfo,
        for_server: bool,
    ) -> Arc<RoutingChange> {
        let slot = usize::from(for_server);
        let is_it = |change: &&Arc<RoutingChange>| {
            change.since == old.version && change.changed.version == new.version
        };
        if let Some(known) = self.last.lock()[slot].as_ref().filter(is_it) {
            return Arc::clone(known);
        }
        let mut change = new.since(old);
        if !for_server {
            change.changed.credentials = Vec::new();
            change.changed.settings = BTreeMap::new();
        }
        let change = Arc::new(change);
        // What is new to somebody who knows nothing is large, and asked for rarely.
        if old.version > RoutingVersion(0) {
            self.last.lock()[slot] = Some(Arc::clone(&change));
        }
        change
    }
}
