//! What a listening server counts.

use kiln_telemetry::metrics;
use kiln_types::{Code, Error, Monotonic};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts of one listening server since its start, and two gauges.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections that passed the handshake.
    pub accepted: AtomicU64,
    /// Connections that are open now, both planes.
    pub open: AtomicU64,
    /// Requests of the data plane that were given to the handler.
    pub requests: AtomicU64,
    /// Requests whose deadline passed before they could start.
    pub expired: AtomicU64,
    /// Requests that are under way now.
    pub in_flight: AtomicU64,
    /// Handshakes that were refused, by reason.
    pub refused: Refused,
    last_log: Mutex<LastLog>,
}

/// Handshakes that were refused, by reason.
#[derive(Debug, Default)]
pub struct Refused {
    /// What came was not this protocol.
    pub garbage: AtomicU64,
    /// The peer did not finish in time.
    pub timed_out: AtomicU64,
    /// The peer closed the connection first.
    pub hung_up: AtomicU64,
    /// No common protocol version.
    pub version: AtomicU64,
    /// The peer belongs to another cluster.
    pub wrong_cluster: AtomicU64,
    /// The peer could not prove that it holds the secret, or its server key is not known.
    pub not_authenticated: AtomicU64,
    /// The credential was revoked or is not known.
    pub not_authorized: AtomicU64,
    /// Too many connections, or too many in their handshake.
    pub crowded: AtomicU64,
    /// Any other reason.
    pub other: AtomicU64,
}

#[derive(Debug, Default)]
struct LastLog {
    at: Option<Monotonic>,
    skipped: u64,
}

/// At most one line in this time says that somebody was refused.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

impl Refused {
    fn of(&self, code: Code) -> &AtomicU64 {
        match code {
            Code::Corrupt => &self.garbage,
            Code::DeadlineExceeded => &self.timed_out,
            Code::ConnectionLost => &self.hung_up,
            Code::ProtocolMismatch => &self.version,
            Code::WrongCluster => &self.wrong_cluster,
            Code::NotAuthenticated => &self.not_authenticated,
            Code::NotAuthorized => &self.not_authorized,
            Code::Overloaded => &self.crowded,
            _ => &self.other,
        }
    }

    /// All of them with their names, for metrics.
    pub fn by_reason(&self) -> [(&'static str, u64); 9] {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("garbage", read(&self.garbage)),
            ("timed_out", read(&self.timed_out)),
            ("hung_up", read(&self.hung_up)),
            ("version", read(&self.version)),
            ("wrong_cluster", read(&self.wrong_cluster)),
            ("not_authenticated", read(&self.not_authenticated)),
            ("not_authorized", read(&self.not_authorized)),
            ("crowded", read(&self.crowded)),
            ("other", read(&self.other)),
        ]
    }
}

impl Counters {
    /// Counts a refused handshake, and logs it unless another one was logged just now.
    pub(crate) fn refuse(&self, address: &str, error: &Error, now: Monotonic) {
        add(self.refused.of(error.code()));
        metrics::NET_REFUSED.increment();
        let mut last = self.last_log.lock();
        if last.at.is_some_and(|at| now.since(at) < LOG_INTERVAL) {
            last.skipped += 1;
            return;
        }
        let skipped = std::mem::take(&mut last.skipped);
        last.at = Some(now);
        drop(last);
        tracing::warn!(%address, skipped, "refused a connection: {error}");
    }
}

pub(crate) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn subtract(counter: &AtomicU64) {
    counter.fetch_sub(1, Ordering::Relaxed);
}
