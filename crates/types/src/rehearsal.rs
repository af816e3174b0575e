//! What the simulator wants to know and to break, in code that is pure or that has no seams at hand.
//!
//! Without the feature `rehearsal`, which only the simulator asks for, both functions are empty.

#[cfg(feature = "rehearsal")]
mod on {
    use std::cell::RefCell;
    use std::collections::{BTreeMap, BTreeSet};

    thread_local! {
        static MARKS: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
        static PLANTED: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
    }

    /// A rare branch was taken: counts how often.
    pub fn mark(name: &'static str) {
        MARKS.with_borrow_mut(|marks| *marks.entry(name).or_default() += 1);
    }

    /// Whether this defect is planted.
    pub fn planted(name: &str) -> bool {
        PLANTED.with_borrow(|planted| planted.contains(name))
    }

    /// Plants a defect in what this thread runs from now on; forgets earlier ones and all marks.
    pub fn begin(plants: impl IntoIterator<Item = String>) {
        MARKS.with_borrow_mut(BTreeMap::clear);
        PLANTED.with_borrow_mut(|planted| *planted = plants.into_iter().collect());
    }

    /// How often each mark was passed on this thread since [`begin`].
    pub fn marks() -> BTreeMap<&'static str, u64> {
        MARKS.with_borrow(BTreeMap::clone)
    }
}

#[cfg(not(feature = "rehearsal"))]
mod off {
    /// A rare branch was taken: the simulator counts how often.
    #[inline(always)]
    pub fn mark(_name: &'static str) {}

    /// Whether this defect is planted, for the simulator to find it.
    #[inline(always)]
    pub fn planted(_name: &str) -> bool {
        false
    }
}

#[cfg(not(feature = "rehearsal"))]
pub use off::{mark, planted};
#[cfg(feature = "rehearsal")]
pub use on::{begin, mark, marks, planted};
