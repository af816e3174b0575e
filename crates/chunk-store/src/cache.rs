//! Chunk descriptors that were read lately, bounded in bytes.
//!
//! An entry counts only for the log position that it was read from. A position is used again only
//! when no reader that saw it before is left (see `space`), and whoever writes a record of a key
//! there replaces or forgets the key's entry: so an entry with the right position has the right
//! content.

use crate::extent::Position;
use crate::group::Group;
use crate::record::{Head, Key};
use lru::LruCache;
use parking_lot::Mutex;
use std::sync::Arc;

/// A chunk's own record, or one of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Piece {
    Head,
    Part(u16),
}

#[derive(Clone)]
pub(crate) enum Cached {
    Head(Arc<Head>),
    Part(Arc<Group>),
}

pub(crate) struct Cache {
    inner: Mutex<Inner>,
    bytes_max: usize,
}

struct Inner {
    entries: LruCache<(Key, Piece), (Position, Cached)>,
    bytes: usize,
}

/// What the list and the table take for an entry, about.
const ENTRY_BYTES: usize = 160;

impl Cached {
    fn memory(&self) -> usize {
        ENTRY_BYTES
            + match self {
                Self::Head(head) => head.memory(),
                Self::Part(group) => group.memory(),
            }
    }
}

impl Cache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let inner = Inner { entries: LruCache::unbounded(), bytes: 0 };
        Self { inner: Mutex::new(inner), bytes_max }
    }

    pub(crate) fn get(&self, key: Key, piece: Piece, position: Position) -> Option<Cached> {
        let mut inner = self.inner.lock();
        let (stored, cached) = inner.entries.get(&(key, piece))?;
        (*stored == position).then(|| cached.clone())
    }

    pub(crate) fn put(&self, key: Key, piece: Piece, position: Position, cached: Cached) {
        let mut inner = self.inner.lock();
        inner.bytes += cached.memory();
        if let Some((_, old)) = inner.entries.put((key, piece), (position, cached)) {
            inner.bytes -= old.memory();
        }
        while inner.bytes > self.bytes_max {
            let Some((_, (_, old))) = inner.entries.pop_lru() else { break };
            inner.bytes -= old.memory();
        }
    }

    pub(crate) fn forget(&self, key: Key, piece: Piece) {
        let mut inner = self.inner.lock();
        if let Some((_, old)) = inner.entries.pop(&(key, piece)) {
            inner.bytes -= old.memory();
        }
    }
}
