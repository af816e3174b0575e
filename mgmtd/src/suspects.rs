//! Targets whose servers are alive, but that hang or cannot be reached by the target before them. They
//! are kept out of their chains for a while, since all writes of a chain wait for each member.
//!
//! The server of such a target may still serve it: its lease runs, and it may not hear of the change. So
//! the target is only *accused* first, and the server's heartbeats are not answered any more but with the
//! order to register anew. Once it does, it serves nothing before it has taken up the chain without the
//! target, which is changed with the registration; if it does not, its lease ends, and it is dead.

use crate::manager::Manager;
use kiln_rpc::Heartbeat;
use kiln_types::rehearsal::{mark, planted};
use kiln_types::{LocalState, Monotonic, NodeId, PublicState, TargetId};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a target stays out; it doubles with each further time.
const OUT_MIN: Duration = Duration::from_secs(10);
const OUT_MAX: Duration = Duration::from_secs(300);
/// After so long without trouble nothing is remembered.
const FORGET: Duration = Duration::from_secs(900);

/// Who is kept out, and until when.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    targets: BTreeMap<TargetId, Suspect>,
    /// Targets that may still be served, and what is said of them.
    accused: BTreeMap<TargetId, &'static str>,
}

#[derive(Debug)]
struct Suspect {
    until: Monotonic,
    time: Duration,
}

impl Suspects {
    /// Keeps a target out from now on; for how long.
    pub(crate) fn add(&mut self, target: TargetId, now: Monotonic) -> Duration {
        self.targets.retain(|_, suspect| suspect.until.plus(FORGET) > now);
        let before = self.targets.get(&target);
        let time = before.map_or(OUT_MIN, |suspect| (suspect.time * 2).min(OUT_MAX));
        self.targets.insert(target, Suspect { until: now.plus(time), time });
        time
    }

    /// Whether a target is kept out.
    pub(crate) fn contains(&self, target: TargetId, now: Monotonic) -> bool {
        self.targets.get(&target).is_some_and(|suspect| suspect.until > now)
    }
}

impl Manager {
    /// Takes targets out of their chains that hang, or that the one before them cannot reach: all
    /// writes of the chain wait for them. What is said under an earlier version of the chain is of an
    /// earlier neighbour.
    pub(crate) fn take_complaints(&mut self, heartbeat: &Heartbeat, now: Monotonic) {
        for report in &heartbeat.targets {
            let known = self.state.routing.targets.get(&report.target);
            let Some(known) = known.filter(|known| known.node == heartbeat.node) else { continue };
            let chain = self.state.routing.chains.get(&known.chain);
            let Some(chain) = chain.filter(|c| c.version == report.chain_version) else { continue };
            let behind = report.unreachable.filter(|_| report.local.is_alive());
            let behind = behind.filter(|t| chain.successor_of(report.target) == Some(*t));
            if report.oldest_io >= self.options.lease.lease {
                mark("a disk does not answer for a lease");
                self.accuse(report.target, "its disk does not answer", now);
            } else if let Some(behind) = behind {
                mark("a target cannot be reached by the one before it");
                self.accuse(behind, "the target before it cannot reach it", now);
            }
        }
    }

    fn accuse(&mut self, target: TargetId, why: &'static str, now: Monotonic) {
        match self.dispensable(target) {
            Some(_) if planted("the accused leave at once") => self.keep_out(target, why, now),
            Some(state) => {
                if state == PublicState::Serving {
                    mark("a target that serves is accused");
                }
                self.suspects.accused.insert(target, why);
            }
            None => {}
        }
    }

    /// The state of a target that takes part in its chain. Not that of the last one that serves: slow is
    /// better than nothing.
    fn dispensable(&self, target: TargetId) -> Option<PublicState> {
        let known = self.state.routing.targets.get(&target)?;
        let chain = self.state.routing.chains.get(&known.chain)?;
        let state = chain.state_of(target).filter(|state| state.takes_writes())?;
        if !chain.serving().any(|serving| serving != target) {
            mark("the last target that serves is not kept out");
            return None;
        }
        Some(state)
    }

    /// Whether targets of a node are accused: then it has to register anew.
    pub(crate) fn is_accused(&self, node: NodeId) -> bool {
        let mut mine = self.by_node.get(&node).into_iter().flatten();
        mine.any(|target| self.suspects.accused.contains_key(target))
    }

    /// Another run of the node's program is another matter: the one that was accused is dead.
    pub(crate) fn acquit(&mut self, node: NodeId) {
        for target in self.by_node.get(&node).into_iter().flatten() {
            self.suspects.accused.remove(target);
        }
    }

    /// The node serves nothing now: what is accused there leaves its chains.
    pub(crate) fn judge_accused(&mut self, node: NodeId, now: Monotonic) {
        for target in self.by_node.get(&node).cloned().unwrap_or_default() {
            let Some(why) = self.suspects.accused.remove(&target) else { continue };
            if self.dispensable(target).is_some() {
                self.keep_out(target, why, now);
            }
        }
    }

    fn keep_out(&mut self, target: TargetId, why: &str, now: Monotonic) {
        let Some(known) = self.state.routing.targets.get(&target) else { return };
        mark("a target is kept out of its chain");
        let out = self.suspects.add(target, now);
        tracing::warn!(%target, chain = %known.chain, ?out, "kept out of its chain: {why}");
        kiln_telemetry::metrics::MGMTD_KEPT_OUT.add(1);
        let chains = self.set_local(target, LocalState::Offline).into_iter().collect();
        self.advance_chains(&chains, why);
    }
}
