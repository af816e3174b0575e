//! A set of keys as disjoint ranges: what a transaction read, or cleared.

use crate::KeyRange;
use std::collections::BTreeMap;

/// Disjoint, non-touching ranges, in order.
#[derive(Clone, Debug, Default)]
pub struct RangeSet {
    ends: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl RangeSet {
    /// Adds the keys of `range`.
    pub fn insert(&mut self, range: KeyRange) {
        if range.is_empty() {
            return;
        }
        let KeyRange { mut start, mut end } = range;
        if let Some((before, before_end)) = self.ends.range(..=start.clone()).next_back() {
            if *before_end >= end {
                return;
            }
            if *before_end >= start {
                start = before.clone();
            }
        }
        let touching = self.ends.range(start.clone()..=end.clone());
        let swallowed: Vec<_> = touching.map(|(key, _)| key.clone()).collect();
        for key in swallowed {
            end = self.ends.remove(&key).unwrap_or_default().max(end);
        }
        self.ends.insert(start, end);
    }

    /// Whether `key` is in the set.
    pub fn contains(&self, key: &[u8]) -> bool {
        let up_to = (std::ops::Bound::Unbounded, std::ops::Bound::Included(key));
        self.ends.range::<[u8], _>(up_to).next_back().is_some_and(|(_, end)| key < end.as_slice())
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = KeyRange> + '_ {
        self.ends.iter().map(|(start, end)| KeyRange::new(start.clone(), end.clone()))
    }

    /// Whether no key is in the set.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn agrees_with_a_set_of_keys() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut set, mut model) = (RangeSet::default(), BTreeSet::new());
            for _ in 0..20 {
                let (start, end) = (random.u8(..40), random.u8(..40));
                set.insert(KeyRange::new([start], [end]));
                model.extend(start..end);
                for key in 0..40 {
                    assert_eq!(set.contains(&[key]), model.contains(&key), "seed {seed}");
                }
                let ranges: Vec<_> = set.iter().collect();
                assert!(ranges.windows(2).all(|two| two[0].end < two[1].start), "seed {seed}");
            }
        }
    }
}
