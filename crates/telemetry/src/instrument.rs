//! Counters, gauges and histograms: plain atomics that live in statics.
//!
//! An [`Instrument`] is one of them with its definition ([`Single`]), or one for each value of a
//! label ([`Family`]).

use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Bytes.
    Bytes,
    /// Nanoseconds; shown in seconds.
    Nanoseconds,
}

/// What a reader may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stability {
    /// Name and meaning stay.
    Stable,
    /// It may change or go.
    Experimental,
}

/// How a number behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until the process ends.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often values of each magnitude came.
    Histogram,
}

/// What is known of a metric without reading it.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// Its name, as Prometheus wants it, without the unit's suffix.
    pub name: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// What a reader may rely on.
    pub stability: Stability,
    /// One sentence for people.
    pub help: &'static str,
    /// The name of the label, of one that has a number for each value of it.
    pub label: Option<&'static str>,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

/// How often values of each magnitude came: bucket i counts those below 2^i and not below 2^(i-1).
#[derive(Debug)]
pub struct Histogram {
    sum: AtomicU64,
    buckets: [AtomicU64; Histogram::BUCKETS],
}

/// What a metric says now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A counter's.
    Counter(u64),
    /// A gauge's.
    Gauge(i64),
    /// A histogram's sum, and the count of each bucket ([`Histogram::BUCKETS`] of them).
    Histogram(u64, Vec<u64>),
}

/// One number of any kind.
pub trait Cell: Default + Send + Sync + 'static {
    /// Its kind.
    const KIND: Kind;

    /// What it says now.
    fn value(&self) -> Value;
}

/// A metric with its definition, for whoever reads them all.
pub trait Instrument: Sync {
    /// What is known of it.
    fn definition(&self) -> &Definition;

    /// Its kind.
    fn kind(&self) -> Kind;

    /// Tells each of its numbers, with its label's value if it has a label.
    fn read(&self, tell: &mut dyn FnMut(Option<&str>, Value));
}

/// A metric of one number; used as that number.
#[derive(Debug)]
pub struct Single<T> {
    definition: Definition,
    cell: T,
}

/// A metric with a number for each value of a label: an operation, a disk. A value has its place
/// from its first use on; finding it again takes no lock.
#[derive(Debug)]
pub struct Family<T> {
    definition: Definition,
    members: [OnceLock<(Box<str>, T)>; MEMBERS],
    /// All that found no place.
    others: OnceLock<T>,
}

/// Values that a label can have; further ones share a number.
const MEMBERS: usize = 64;
/// What they are called.
const OTHERS: &str = "other";

impl Counter {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Relaxed);
    }

    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Gauge {
    pub(crate) const fn new() -> Self {
        Self(AtomicI64::new(0))
    }

    /// Adds `amount`, which may be negative.
    pub fn add(&self, amount: i64) {
        self.0.fetch_add(amount, Relaxed);
    }

    /// Sets it.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// Sets it to a number that is never negative, such as bytes of a disk.
    pub fn set_amount(&self, value: u64) {
        self.set(i64::try_from(value).unwrap_or(i64::MAX));
    }

    /// Counts one more as long as the result is held.
    pub fn hold(&self) -> Held<'_> {
        self.add(1);
        Held(self)
    }

    /// Its value.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// See [`Gauge::hold`].
#[derive(Debug)]
pub struct Held<'a>(&'a Gauge);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

impl Histogram {
    /// One bucket for each bit length of a 64-bit value.
    pub const BUCKETS: usize = 65;

    pub(crate) const fn new() -> Self {
        Self { sum: AtomicU64::new(0), buckets: [const { AtomicU64::new(0) }; Self::BUCKETS] }
    }

    /// Counts `value`.
    pub fn record(&self, value: u64) {
        let bits = u64::BITS - value.leading_zeros();
        self.buckets[bits as usize].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// Counts a duration in nanoseconds.
    pub fn record_duration(&self, duration: Duration) {
        self.record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Cell for Counter {
    const KIND: Kind = Kind::Counter;

    fn value(&self) -> Value {
        Value::Counter(self.get())
    }
}

impl Cell for Gauge {
    const KIND: Kind = Kind::Gauge;

    fn value(&self) -> Value {
        Value::Gauge(self.get())
    }
}

impl Cell for Histogram {
    const KIND: Kind = Kind::Histogram;

    fn value(&self) -> Value {
        let counts = self.buckets.iter().map(|bucket| bucket.load(Relaxed));
        Value::Histogram(self.sum.load(Relaxed), counts.collect())
    }
}

impl<T> Single<T> {
    pub(crate) const fn new(definition: Definition, cell: T) -> Self {
        Self { definition, cell }
    }
}

impl<T> Deref for Single<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.cell
    }
}

impl<T: Cell> Instrument for Single<T> {
    fn definition(&self) -> &Definition {
        &self.definition
    }

    fn kind(&self) -> Kind {
        T::KIND
    }

    fn read(&self, tell: &mut dyn FnMut(Option<&str>, Value)) {
        tell(None, self.cell.value());
    }
}

impl<T: Cell> Family<T> {
    pub(crate) const fn new(definition: Definition) -> Self {
        let members = [const { OnceLock::new() }; MEMBERS];
        Self { definition, members, others: OnceLock::new() }
    }

    /// The number of the label's value `value`.
    pub fn of(&self, value: &str) -> &T {
        for member in &self.members {
            let (name, cell) = member.get_or_init(|| (value.into(), T::default()));
            if **name == *value {
                return cell;
            }
        }
        self.others.get_or_init(T::default)
    }
}

impl<T: Cell> Instrument for Family<T> {
    fn definition(&self) -> &Definition {
        &self.definition
    }

    fn kind(&self) -> Kind {
        T::KIND
    }

    fn read(&self, tell: &mut dyn FnMut(Option<&str>, Value)) {
        for (name, cell) in self.members.iter().map_while(OnceLock::get) {
            tell(Some(name), cell.value());
        }
        if let Some(cell) = self.others.get() {
            tell(Some(OTHERS), cell.value());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFINITION: Definition = Definition {
        name: "kiln_test",
        unit: Unit::Count,
        stability: Stability::Experimental,
        help: "A test.",
        label: Some("letter"),
    };

    #[test]
    fn a_histogram_counts_each_value_in_the_bucket_of_its_bit_length() {
        let histogram = Histogram::new();
        for value in [0, 1, 2, 3, 4, 1000, 1 << 62, u64::MAX] {
            histogram.record(value);
        }
        histogram.record_duration(Duration::MAX);
        assert_eq!(histogram.count(), 9);
        let Value::Histogram(_, counts) = histogram.value() else { panic!("not a histogram") };
        let filled = counts.into_iter().enumerate().filter(|(_, count)| *count > 0);
        let expected = [(0, 1), (1, 1), (2, 2), (3, 1), (10, 1), (63, 1), (64, 2)];
        assert_eq!(filled.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_family_counts_each_value_of_its_label_and_what_has_no_place_together() {
        static FAMILY: Family<Counter> = Family::new(DEFINITION);
        let names: Vec<_> = (0..MEMBERS + 3).map(|i| format!("name {i}")).collect();
        std::thread::scope(|scope| {
            for start in 0..4 {
                let names = &names;
                scope.spawn(move || {
                    for i in 0..MEMBERS {
                        FAMILY.of(&names[(start * 16 + i) % MEMBERS]).increment();
                    }
                });
            }
        });
        names[MEMBERS..].iter().for_each(|name| FAMILY.of(name).increment());
        let mut told = Vec::new();
        FAMILY.read(&mut |name, value| told.push((name.map(str::to_owned), value)));
        assert_eq!(told.pop(), Some((Some(OTHERS.into()), Value::Counter(3))));
        assert_eq!(told.len(), MEMBERS);
        for name in &names[..MEMBERS] {
            assert!(told.contains(&(Some(name.clone()), Value::Counter(4))), "{name}");
        }
    }
}
