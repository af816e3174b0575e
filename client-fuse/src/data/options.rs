//! How much memory the content of open files may take, and for how long.

use std::time::Duration;

/// The bounds of one mount's write-back and read-ahead.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataOptions {
    /// Bytes that were written and are not yet durable, in all files.
    pub(crate) dirty_bytes_max: u64,
    /// The same in one file.
    pub(crate) file_dirty_max: u64,
    /// Age at which written bytes are sent without being asked for.
    pub(crate) write_back_after: Duration,
    /// How far a sequential reader is read ahead of, in bytes; 0 switches it off.
    pub(crate) read_ahead_bytes: u64,
    /// Bytes that were read ahead, in all files.
    pub(crate) read_ahead_bytes_max: u64,
    /// How long a writer waits for room before it gets an error.
    pub(crate) stall: Duration,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            dirty_bytes_max: 64 << 20,
            file_dirty_max: 32 << 20,
            write_back_after: Duration::from_secs(1),
            read_ahead_bytes: 8 << 20,
            read_ahead_bytes_max: 64 << 20,
            stall: Duration::from_secs(120),
        }
    }
}
