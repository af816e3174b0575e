//! Half-open key ranges.

/// The first byte that no key has: the end of [`KeyRange::all`].
pub const KEY_END: u8 = 0xff;

/// The keys from `start` (included) to `end` (excluded), in byte order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// The first key of the range.
    pub start: Vec<u8>,
    /// The first key after the range.
    pub end: Vec<u8>,
}

impl KeyRange {
    /// The keys from `start` (included) to `end` (excluded).
    pub fn new(start: impl Into<Vec<u8>>, end: impl Into<Vec<u8>>) -> Self {
        Self { start: start.into(), end: end.into() }
    }

    /// The keys that begin with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        let mut end = prefix.to_vec();
        while end.last() == Some(&0xff) {
            end.pop();
        }
        match end.last_mut() {
            Some(last) => *last += 1,
            None => end.push(KEY_END),
        }
        Self { start: prefix.to_vec(), end }
    }

    /// The one key `key`.
    pub fn key(key: &[u8]) -> Self {
        Self { start: key.to_vec(), end: successor(key) }
    }

    /// Every key.
    pub fn all() -> Self {
        Self { start: Vec::new(), end: vec![KEY_END] }
    }

    /// The part of this range after `key`: where the next page of a listing begins.
    #[must_use]
    pub fn after(&self, key: &[u8]) -> Self {
        Self { start: successor(key).max(self.start.clone()), end: self.end.clone() }
    }

    /// Whether no key is in the range.
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// Whether `key` is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_slice() <= key && key < self.end.as_slice()
    }

    /// Whether some key is in both ranges.
    pub fn intersects(&self, other: &Self) -> bool {
        !self.is_empty() && !other.is_empty() && self.start < other.end && other.start < self.end
    }
}

/// The smallest key above `key`.
pub fn successor(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// How [`Transaction::range`](crate::Transaction::range) reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeOptions {
    /// The most pairs to return. Without a limit, a result above
    /// [`RANGE_BYTES_MAX`](crate::RANGE_BYTES_MAX) is an error.
    pub limit: usize,
    /// From the end of the range towards its start.
    pub reverse: bool,
    /// Without a read conflict.
    pub snapshot: bool,
}

impl Default for RangeOptions {
    fn default() -> Self {
        Self { limit: usize::MAX, reverse: false, snapshot: false }
    }
}

impl RangeOptions {
    /// At most `limit` pairs, forwards, with a read conflict.
    pub fn limit(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// The same, from the end of the range.
    #[must_use]
    pub fn reverse(self) -> Self {
        Self { reverse: true, ..self }
    }

    /// The same, without a read conflict.
    #[must_use]
    pub fn snapshot(self) -> Self {
        Self { snapshot: true, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_holds_exactly_the_keys_that_begin_with_it() {
        let range = KeyRange::prefix(&[1, 0xff]);
        assert_eq!(range, KeyRange::new([1, 0xff], [2]));
        assert!(range.contains(&[1, 0xff]) && range.contains(&[1, 0xff, 0xff, 0xff]));
        assert!(!range.contains(&[1, 0xfe, 0xff]) && !range.contains(&[2]));
        assert_eq!(KeyRange::prefix(&[]), KeyRange::all());
    }

    #[test]
    fn a_key_is_a_range_of_itself() {
        let range = KeyRange::key(b"a");
        assert!(range.contains(b"a") && !range.contains(b"a\0") && !range.contains(b""));
        assert!(!range.intersects(&KeyRange::key(b"a\0")) && !range.after(b"a").contains(b"a"));
        assert!(range.after(b"a").is_empty());
    }
}
