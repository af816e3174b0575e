//! Logs, request spans and metric definitions.
//!
//! Invariants: every metric is defined in `metrics.rs` and nowhere else; recording one takes no lock and
//! allocates nothing; [`init`] is called by binaries only.
#![forbid(unsafe_code)]

mod instrument;
mod log;
pub mod metrics;

pub use instrument::{Counter, Definition, Gauge, Histogram, Metric, Stability, Unit, Value};
pub use log::{LogFormat, LogOptions, init, request_span};
pub use tracing::Level;
