//! How much memory the content of open files may take, and for how long.

use std::time::Duration;

/// Age at which written bytes are sent without being asked for.
const WRITE_BACK_AFTER: Duration = Duration::from_secs(1);

/// The bounds of one mount's write-back and read-ahead.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataOptions {
    /// Memory of written bytes that are not yet durable, in all files; one file may have half of it. 0:
    /// every write goes through.
    pub(crate) dirty_bytes_max: u64,
    /// Age at which written bytes are sent without being asked for.
    pub(crate) write_back_after: Duration,
    /// How far a sequential reader is read ahead of, in bytes; 0 switches it off.
    pub(crate) read_ahead_bytes: u64,
    /// Bytes that were read ahead, in all files.
    pub(crate) read_ahead_bytes_max: u64,
    /// How long a writer waits for room before it gets an error; `None`: for ever.
    pub(crate) stall: Option<Duration>,
}

impl DataOptions {
    /// At most `dirty` bytes that wait to be written, and for each sequential reader `read_ahead` bytes
    /// that were read ahead; a writer without room waits for `stall`.
    pub(crate) fn new(dirty: u64, read_ahead: u64, stall: Option<Duration>) -> Self {
        Self {
            dirty_bytes_max: dirty,
            write_back_after: WRITE_BACK_AFTER,
            read_ahead_bytes: read_ahead,
            read_ahead_bytes_max: read_ahead.saturating_mul(8),
            stall,
        }
    }
}
