//! Structured logs: one line an event, one span a request.

use crate::slow;
use kiln_types::{Code, Context, Error, RequestId, Result};
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tracing::{Level, Span};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

/// The filter of the running log.
static LEVEL: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged, how and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// The least level that is logged.
    pub level: Level,
    /// The form of a line.
    pub format: LogFormat,
    /// The file that is appended to; `None`: standard error.
    pub file: Option<PathBuf>,
    /// Requests that take so long or longer are logged; zero: none.
    pub slow: Duration,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { level: Level::INFO, format: LogFormat::Text, file: None, slow: Duration::ZERO }
    }
}

/// Starts the log of this process; once, at its start.
///
/// # Errors
/// `Local` when the file cannot be opened, `Internal` when there is a log already.
pub fn init(options: &LogOptions) -> Result<()> {
    let writer = match &options.file {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(path) => {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .context(format_args!("log file {}", path.display()))?;
            BoxMakeWriter::new(Arc::new(file))
        }
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    let lines = match options.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let (filter, handle) = reload::Layer::new(filter(options.level));
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init()
        .map_err(|error| Error::new(Code::Internal, format!("start of the log: {error}")))?;
    slow::set_threshold(options.slow);
    let _ = LEVEL.set(handle);
    Ok(())
}

/// Changes what the running log shows.
pub fn adjust_log(level: Level, slow: Duration) {
    slow::set_threshold(slow);
    if let Some(Err(error)) = LEVEL.get().map(|handle| handle.reload(filter(level))) {
        tracing::warn!(%error, "the level of the log stays as it is");
    }
}

/// The libraries below say much at debug level that is about them, not about us.
fn filter(level: Level) -> Targets {
    Targets::new().with_default(level.min(Level::WARN)).with_target("kiln", level)
}

/// The span of one request: everything logged inside carries its id, its operation and who asked.
/// `operation` is a fixed name (`create`), `peer` the authenticated caller.
pub(crate) fn request_span(operation: &'static str, request: RequestId, peer: &str) -> Span {
    tracing::debug_span!("request", operation, %request, peer)
}
