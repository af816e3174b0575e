//! How long operations were stuck while one fault was active.

use crate::board::{Timed, Work};
use crate::faults::Kind;
use kiln_types::Monotonic;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// A span of time in which one fault was active, up to when all chains were whole again; or none was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) kind: Option<Kind>,
    pub(crate) from: Monotonic,
    /// When the fault was taken back.
    pub(crate) healed: Monotonic,
    pub(crate) to: Monotonic,
}

impl Window {
    /// The longest that an operation of this kind was stuck in it.
    fn longest(&self, work: Work, slow: &[Timed]) -> Duration {
        let stuck = |timed: &Timed| {
            let to = timed.to.unwrap_or(self.to).min(self.to);
            to.since(timed.from.max(self.from))
        };
        let mine = slow.iter().filter(|timed| timed.work == work && timed.from < self.to);
        mine.map(stuck).max().unwrap_or_default()
    }
}

/// The table of stalls: for each kind of fault, over its occurrences.
pub(crate) fn stalls(windows: &[Window], slow: &[Timed]) -> String {
    let mut rows = BTreeMap::<_, Vec<&Window>>::new();
    for window in windows {
        rows.entry(window.kind).or_default().push(window);
    }
    let heads = ["read", "write", "open, sync, names", "whole again after"];
    let heads: String = heads.iter().map(|head| format!("  {head:<27}")).collect();
    let columns = format!("  {:>6} {:>6} {:>6} {:>6}", "p50", "p90", "p99", "max").repeat(4);
    let mut table = format!("{:<18} {:>3}{heads}\n{:<22}{columns}\n", "longest, seconds", "n", "");
    for (kind, windows) in rows {
        let name = kind.map_or("none", Kind::name);
        let _ = write!(table, "{name:<18} {:>3}", windows.len());
        for work in [Work::Read, Work::Write, Work::Names] {
            let mut all: Vec<_> = windows.iter().map(|window| window.longest(work, slow)).collect();
            table += &quantiles(&mut all);
        }
        let mut recovered: Vec<_> = windows.iter().map(|w| w.to.since(w.healed)).collect();
        if kind.is_some() {
            table += &quantiles(&mut recovered);
        }
        table.push('\n');
    }
    table
}

fn quantiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |percent: usize| {
        let place = (times.len() * percent).div_ceil(100).max(1) - 1;
        times.get(place).map_or(0.0, Duration::as_secs_f64)
    };
    format!("  {:>6.2} {:>6.2} {:>6.2} {:>6.2}", at(50), at(90), at(99), at(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_counts_as_far_as_it_lies_in_the_window() {
        let second = |n: u64| Monotonic(n * 1_000_000_000);
        let window = Window { kind: None, from: second(10), healed: second(12), to: second(20) };
        let timed = |from, to: Option<u64>| Timed {
            work: Work::Read,
            from: second(from),
            to: to.map(second),
        };
        let longest = |slow: &[Timed]| window.longest(Work::Read, slow).as_secs();
        assert_eq!(longest(&[timed(5, Some(13)), timed(9, Some(10))]), 3);
        assert_eq!(longest(&[timed(14, None), timed(30, Some(40))]), 6);
        assert_eq!(longest(&[timed(1, Some(9))]), 0);
        assert_eq!(window.longest(Work::Write, &[timed(14, None)]), Duration::ZERO);
        let mut times: Vec<_> = (1..=10).map(Duration::from_secs).collect();
        assert_eq!(quantiles(&mut times), "    5.00   9.00  10.00  10.00");
    }
}
