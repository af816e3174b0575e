//! The async runtime that a command runs in.

use kiln_types::{Context, Result};
use tokio::runtime::{Builder, Runtime};

/// One thread: what starts processes, which the kernel ends with the thread that started them.
pub(crate) fn single() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("start of the runtime")
}

/// A thread for each core: what serves or moves data.
pub(crate) fn many() -> Result<Runtime> {
    Builder::new_multi_thread().enable_all().build().context("start of the runtime")
}
