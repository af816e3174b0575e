//! The event log of a run.

use kiln_env::Env;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::{Layer, SubscriberExt};

/// How much of a log is kept.
const LINES: usize = 400;

/// What happened, with its virtual time. Clones are the same log.
#[derive(Clone)]
pub(crate) struct Log {
    env: Env,
    lines: Arc<Mutex<VecDeque<String>>>,
    prints: bool,
}

impl Log {
    /// A log that is printed as it is written, or of which only the end is kept.
    pub(crate) fn new(env: Env, prints: bool) -> Self {
        Self { env, lines: Arc::default(), prints }
    }

    pub(crate) fn note(&self, what: fmt::Arguments<'_>) {
        let at = self.env.now().0 as f64 / 1e9;
        let line = format!("{at:>10.6} {what}");
        if self.prints {
            println!("{line}");
        }
        let mut lines = self.lines.lock();
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// The end of the log.
    pub(crate) fn end(&self) -> Vec<String> {
        self.lines.lock().iter().cloned().collect()
    }
}

thread_local! {
    /// The clock of the simulation that this thread runs.
    static CLOCK: RefCell<Option<Env>> = const { RefCell::new(None) };
}

/// Prints what servers and clients log from now on, with virtual time.
pub fn print_logs() {
    let filter =
        |data: &Metadata<'_>| *data.level() <= Level::DEBUG && data.target().starts_with("kiln");
    let filter = tracing_subscriber::filter::filter_fn(filter);
    let layer = tracing_subscriber::fmt::layer().with_timer(VirtualTime).with_ansi(false);
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(filter));
    // A second call changes nothing.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Lets logs on this thread carry the time of `env`.
pub(crate) fn set_clock(env: Env) {
    CLOCK.set(Some(env));
}

struct VirtualTime;

impl FormatTime for VirtualTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let now = CLOCK.with_borrow(|clock| clock.as_ref().map_or(0, |clock| clock.now().0));
        write!(writer, "{:>10.6}", now as f64 / 1e9)
    }
}

/// Writes a line into a log.
macro_rules! note {
    ($log:expr, $($what:tt)*) => { $log.note(format_args!($($what)*)) };
}
pub(crate) use note;
