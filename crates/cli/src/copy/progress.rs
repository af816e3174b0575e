//! A progress bar on a terminal, when a copy takes longer than a second.

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use kiln_env::{Env, Task};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Shorter copies show nothing.
const SHOW_AFTER: Duration = Duration::from_secs(1);
const TEMPLATE: &str =
    "{wide_bar} {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left  {msg} files";

/// What a copy has done so far.
pub(crate) struct Progress {
    bar: ProgressBar,
    files: Arc<AtomicU64>,
    _shown: Task<()>,
}

impl Progress {
    pub(crate) fn start(env: &Env) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        let files = Arc::new(AtomicU64::new(0));
        let (later, count, env2) = (bar.clone(), Arc::clone(&files), env.clone());
        let shown = env.spawn("progress", async move {
            env2.sleep(SHOW_AFTER).await;
            // Draws nothing where standard error is no terminal.
            later.set_draw_target(ProgressDrawTarget::stderr());
            loop {
                later.set_message(HumanCount(count.load(Relaxed)).to_string());
                later.tick();
                env2.sleep(Duration::from_millis(200)).await;
            }
        });
        Self { bar, files, _shown: shown }
    }

    /// `bytes` more are to be copied.
    pub(crate) fn expect(&self, bytes: u64) {
        self.bar.inc_length(bytes);
    }

    /// `bytes` more are copied.
    pub(crate) fn moved(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// One file more is done.
    pub(crate) fn done(&self) {
        self.files.fetch_add(1, Relaxed);
    }

    /// Runs `body`, which writes to the terminal, beside the bar.
    pub(crate) fn pause<T>(&self, body: impl FnOnce() -> T) -> T {
        self.bar.suspend(body)
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
