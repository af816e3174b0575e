//! What clients saw, and whether one register for each chunk could have shown it.

use kiln_types::{ChunkId, ChunkVersion};
use std::collections::HashMap;

/// One finished operation of a client.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) chunk: ChunkId,
    pub(crate) started: u64,
    pub(crate) ended: u64,
    pub(crate) version: ChunkVersion,
    /// What was written or read; 0: nothing was there.
    pub(crate) value: u64,
    pub(crate) is_write: bool,
    pub(crate) is_relaxed: bool,
}

/// Versions order the operations, so a history is linearizable exactly if: a version has one value and
/// a written value one version; and an operation that starts after another one ended has a version that
/// is not lower, higher if it is a write. A relaxed read sees all writes that ended before it, and binds no
/// later operation.
pub(crate) fn check(history: &[Seen]) {
    let mut value_of = HashMap::new();
    let mut version_of = HashMap::new();
    for seen in history {
        let key = (seen.chunk, seen.version);
        let value = *value_of.entry(key).or_insert(seen.value);
        assert_eq!(value, seen.value, "two values of one version: {seen:?}");
        if seen.value != 0 {
            let version = *version_of.entry(seen.value).or_insert(seen.version);
            assert_eq!(version, seen.version, "a write was applied twice: {seen:?}");
        }
    }
    for later in history {
        for earlier in history.iter().filter(|e| e.chunk == later.chunk && !e.is_relaxed) {
            let binds = earlier.is_write || !later.is_relaxed;
            if binds && earlier.ended < later.started {
                let fine = match later.is_write {
                    true => later.version > earlier.version,
                    false => later.version >= earlier.version,
                };
                assert!(fine, "went back in time: {earlier:?} then {later:?}");
            }
        }
    }
}
