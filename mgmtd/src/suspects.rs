//! Targets whose servers are alive, but that hang or cannot be reached by the target before them. They
//! are kept out of their chains for a while, since all writes of a chain wait for each member.

use crate::manager::Manager;
use kiln_rpc::Heartbeat;
use kiln_types::{LocalState, Monotonic, PublicState, TargetId};
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
                self.keep_out(report.target, "its disk does not answer", now);
            } else if let Some(behind) = behind {
                self.keep_out(behind, "the target before it cannot reach it", now);
            }
        }
    }

    /// Never the last one that serves: slow is better than nothing.
    fn keep_out(&mut self, target: TargetId, why: &str, now: Monotonic) {
        let Some(known) = self.state.routing.targets.get(&target) else { return };
        let Some(chain) = self.state.routing.chains.get(&known.chain) else { return };
        let others = chain.serving().any(|serving| serving != target);
        if !others || !chain.state_of(target).is_some_and(PublicState::takes_writes) {
            return;
        }
        let out = self.suspects.add(target, now);
        tracing::warn!(%target, chain = %known.chain, ?out, "kept out of its chain: {why}");
        kiln_telemetry::metrics::MGMTD_KEPT_OUT.add(1);
        let chains = self.set_local(target, LocalState::Offline).into_iter().collect();
        self.advance_chains(&chains, why);
    }
}
