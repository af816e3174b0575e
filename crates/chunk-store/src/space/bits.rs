//! A set of small numbers, one bit each, with fast search.

/// A fixed number of bits, all clear at first.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Bits {
    words: Vec<u64>,
    length: u64,
}

impl Bits {
    pub(crate) fn new(length: u64) -> Self {
        Self { words: vec![0; length.div_ceil(64) as usize], length }
    }

    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    /// The first number at or after `from` that is in one of the two only.
    pub(crate) fn difference(&self, other: &Self, from: u64) -> Option<u64> {
        (from..self.length).find(|at| {
            let word = (at / 64) as usize;
            self.words[word] != other.words[word] && self.contains(*at) != other.contains(*at)
        })
    }

    pub(crate) fn contains(&self, at: u64) -> bool {
        self.words[(at / 64) as usize] >> (at % 64) & 1 == 1
    }

    pub(crate) fn put(&mut self, at: u64, value: bool) {
        let word = &mut self.words[(at / 64) as usize];
        let bit = 1 << (at % 64);
        if value { *word |= bit } else { *word &= !bit }
    }

    pub(crate) fn put_range(&mut self, mut at: u64, count: u64, value: bool) {
        let end = at + count;
        while at < end {
            let (shift, n) = (at % 64, (64 - at % 64).min(end - at));
            let mask = (u64::MAX >> (64 - n)) << shift;
            let word = &mut self.words[(at / 64) as usize];
            if value {
                *word |= mask
            } else {
                *word &= !mask
            }
            at += n;
        }
    }

    /// The first number in `from..to` whose bit is `value`.
    pub(crate) fn find(&self, value: bool, from: u64, to: u64) -> Option<u64> {
        let to = to.min(self.length);
        let mut at = from;
        while at < to {
            let word = self.words[(at / 64) as usize];
            let word = if value { word } else { !word } >> (at % 64);
            if word != 0 {
                let found = at + u64::from(word.trailing_zeros());
                return (found < to).then_some(found);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// Becomes the numbers that are in both.
    pub(crate) fn become_both(&mut self, a: &Self, b: &Self) {
        for (word, (a, b)) in self.words.iter_mut().zip(a.words.iter().zip(&b.words)) {
            *word = a & b;
        }
    }

    /// Whether a number is in both.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(a, b)| a & b != 0)
    }

    /// The first number in both at or after `from`, going round the end once.
    pub(crate) fn next_round_in_both(&self, other: &Self, from: u64) -> Option<u64> {
        let words = self.words.len() as u64;
        let at = from / 64 % words.max(1);
        let both = |word: u64| self.words[word as usize] & other.words[word as usize];
        let behind = both(at) & (u64::MAX << (from % 64));
        let first = |word: u64, bits: u64| word * 64 + u64::from(bits.trailing_zeros());
        if behind != 0 {
            return Some(first(at, behind));
        }
        let mut round = (at + 1..words).chain(0..=at);
        round.find(|word| both(*word) != 0).map(|word| first(word, both(word)))
    }

    /// The first set number at or after `from`, going round the end once.
    pub(crate) fn next_round(&self, from: u64) -> Option<u64> {
        self.find(true, from, self.length).or_else(|| self.find(true, 0, from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_vector(
            ranges in proptest::collection::vec((0u64..300, 0u64..200, any::<bool>()), 1..20),
            from in 0u64..300,
        ) {
            let mut bits = Bits::new(300);
            let mut model = vec![false; 300];
            for (start, count, value) in ranges {
                let count = count.min(300 - start);
                bits.put_range(start, count, value);
                model[start as usize..(start + count) as usize].fill(value);
            }
            for value in [true, false] {
                let expected = (from..300).find(|at| model[*at as usize] == value);
                prop_assert_eq!(bits.find(value, from, 1000), expected);
            }
            let mut other = Bits::new(300);
            (0..300).step_by(7).for_each(|at| other.put(at, true));
            let both = |at: &u64| at.is_multiple_of(7) && model[*at as usize];
            let expected = (from..300).find(both).or_else(|| (0..from).find(both));
            prop_assert_eq!(bits.next_round_in_both(&other, from), expected);
            prop_assert!((0..300).all(|at| bits.contains(at) == model[at as usize]));
        }
    }
}
