//! Requests, calls and operations as they are measured: one function around the work counts it,
//! times it, gives its log lines a span, and logs it when it was slow.

use crate::instrument::{Counter, Family, Gauge, Held, Histogram, Single};
use crate::log::request_span;
use crate::metrics;
use crate::slow::{self, Ended};
use crate::trace::Trace;
use kiln_env::Env;
use kiln_types::{Code, Error, Monotonic, RequestId, Result};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tracing::Instrument as _;

/// A kind of work, and the metrics that measure it.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    durations: &'static Family<Histogram>,
    failed: &'static Family<Counter>,
    under_way: &'static Single<Gauge>,
}

/// Requests that a server answers.
pub static REQUESTS: Work = Work {
    durations: &metrics::REQUEST_DURATION,
    failed: &metrics::REQUESTS_FAILED,
    under_way: &metrics::REQUESTS_UNDER_WAY,
};

/// Calls that a client makes to servers, with all their attempts.
pub static CALLS: Work = Work {
    durations: &metrics::CALL_DURATION,
    failed: &metrics::CALLS_FAILED,
    under_way: &metrics::CALLS_UNDER_WAY,
};

/// Operations of programs on a mount.
pub static MOUNT: Work = Work {
    durations: &metrics::MOUNT_DURATION,
    failed: &metrics::MOUNT_FAILED,
    under_way: &metrics::MOUNT_UNDER_WAY,
};

/// Numbers what is measured, for its log lines.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

impl Work {
    /// Runs `run` as one piece of this work. `operation` is a fixed name (`create`), `peer` who
    /// asked or is asked. Work that is dropped counts as cancelled.
    ///
    /// # Errors
    /// Those of `run`.
    pub async fn measure<T>(
        &self,
        env: &Env,
        operation: &'static str,
        peer: &str,
        run: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let trace = Trace::begin();
        let mut measured = Measured::begin(*self, env, operation, peer, trace.clone());
        let id = RequestId(u128::from(NUMBERS.fetch_add(1, Relaxed)));
        let span = request_span(operation, id, peer);
        let result = trace.scope(run).instrument(span).await;
        measured.failure = result.as_ref().err().map(Error::code);
        result
    }
}

/// A piece of work under way.
struct Measured<'a> {
    work: Work,
    env: &'a Env,
    operation: &'static str,
    peer: &'a str,
    trace: Trace,
    begun: Monotonic,
    failure: Option<Code>,
    _under_way: Held<'static>,
}

impl<'a> Measured<'a> {
    fn begin(
        work: Work,
        env: &'a Env,
        operation: &'static str,
        peer: &'a str,
        trace: Trace,
    ) -> Self {
        let (begun, failure) = (env.now(), Some(Code::Cancelled));
        let under_way = work.under_way.hold();
        Self { work, env, operation, peer, trace, begun, failure, _under_way: under_way }
    }
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        let now = self.env.now();
        let took = now.since(self.begun);
        self.work.durations.of(self.operation).record_duration(took);
        if let Some(code) = self.failure {
            self.work.failed.of(code.name()).increment();
        }
        let result = self.failure.map_or("ok", Code::name);
        let (operation, peer) = (self.operation, self.peer);
        let ended = Ended { operation, peer, result, took };
        slow::note(&ended, now, || self.trace.tell(took, now));
    }
}
