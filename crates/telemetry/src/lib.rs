//! Logs, metrics, and where the time of requests goes.
//!
//! Invariants: every metric is defined in `metrics.rs` and nowhere else; recording one takes no
//! lock and allocates nothing; this room only renders metrics, a binary serves them; [`init`] is
//! called by binaries only.
#![forbid(unsafe_code)]

mod exposition;
mod instrument;
mod log;
pub mod metrics;
mod process;
mod request;
mod scrape;
mod slow;
mod trace;

pub use exposition::{BUILD_INFO, CONTENT_TYPE, Identity, render, shown_name};
pub use instrument::{
    Cell, Counter, Definition, Family, Gauge, Held, Histogram, Instrument, Kind, Single, Stability,
    Unit, Value,
};
pub use log::{LogFormat, LogOptions, adjust_log, init};
pub use request::{CALLS, MOUNT, REQUESTS, Work};
pub use scrape::{Buckets, Sample, Scrape};
pub use trace::{About, Phase, Trace, about, phase};
pub use tracing::Level;
