//! The event log of a run.

use kiln_env::Env;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

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

/// Writes a line into a log.
macro_rules! note {
    ($log:expr, $($what:tt)*) => { $log.note(format_args!($($what)*)) };
}
pub(crate) use note;
