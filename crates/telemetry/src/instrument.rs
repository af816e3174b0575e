//! Counters, gauges and histograms: plain atomics that live in statics.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Bytes.
    Bytes,
    /// Nanoseconds; an exporter shows seconds.
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
}

/// A number that only grows.
#[derive(Debug)]
pub struct Counter {
    definition: Definition,
    value: AtomicU64,
}

/// A number that goes up and down.
#[derive(Debug)]
pub struct Gauge {
    definition: Definition,
    value: AtomicI64,
}

/// How often values of each magnitude came: bucket i counts those below 2^i and not below 2^(i-1).
#[derive(Debug)]
pub struct Histogram {
    definition: Definition,
    sum: AtomicU64,
    buckets: [AtomicU64; Histogram::BUCKETS],
}

/// Any metric, for whoever reads them all.
#[derive(Clone, Copy, Debug)]
pub enum Metric {
    /// A counter.
    Counter(&'static Counter),
    /// A gauge.
    Gauge(&'static Gauge),
    /// A histogram.
    Histogram(&'static Histogram),
}

/// What a metric says now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A counter's.
    Counter(u64),
    /// A gauge's.
    Gauge(i64),
    /// A histogram's sum and, for each bucket that is not empty, its upper bound (exclusive) and count.
    Histogram(u64, Vec<(u64, u64)>),
}

impl Counter {
    pub(crate) const fn new(definition: Definition) -> Self {
        Self { definition, value: AtomicU64::new(0) }
    }

    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.value.fetch_add(amount, Relaxed);
    }

    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.value.load(Relaxed)
    }
}

impl Gauge {
    pub(crate) const fn new(definition: Definition) -> Self {
        Self { definition, value: AtomicI64::new(0) }
    }

    /// Adds `amount`, which may be negative.
    pub fn add(&self, amount: i64) {
        self.value.fetch_add(amount, Relaxed);
    }

    /// Sets it.
    pub fn set(&self, value: i64) {
        self.value.store(value, Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> i64 {
        self.value.load(Relaxed)
    }
}

impl Histogram {
    /// One bucket for each bit length of a 64-bit value.
    const BUCKETS: usize = 65;

    pub(crate) const fn new(definition: Definition) -> Self {
        Self {
            definition,
            sum: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; Self::BUCKETS],
        }
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

    fn value(&self) -> Value {
        let bound = |bits: usize| 1u64.checked_shl(bits as u32).unwrap_or(u64::MAX);
        let buckets = self.buckets.iter().enumerate();
        let counts = buckets.map(|(bits, bucket)| (bound(bits), bucket.load(Relaxed)));
        Value::Histogram(self.sum.load(Relaxed), counts.filter(|(_, count)| *count > 0).collect())
    }
}

impl Metric {
    /// What is known of it.
    pub fn definition(&self) -> &'static Definition {
        match self {
            Self::Counter(counter) => &counter.definition,
            Self::Gauge(gauge) => &gauge.definition,
            Self::Histogram(histogram) => &histogram.definition,
        }
    }

    /// What it says now.
    pub fn value(&self) -> Value {
        match self {
            Self::Counter(counter) => Value::Counter(counter.get()),
            Self::Gauge(gauge) => Value::Gauge(gauge.get()),
            Self::Histogram(histogram) => histogram.value(),
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
    };

    #[test]
    fn a_histogram_counts_each_value_in_the_bucket_below_its_bound() {
        static HISTOGRAM: Histogram = Histogram::new(DEFINITION);
        for value in [0, 1, 2, 3, 4, 1000, 1 << 62] {
            HISTOGRAM.record(value);
        }
        assert_eq!(HISTOGRAM.count(), 7);
        let Value::Histogram(sum, buckets) = Metric::Histogram(&HISTOGRAM).value() else {
            panic!("not a histogram");
        };
        assert_eq!(sum, 1010 + (1 << 62));
        assert_eq!(buckets, [(1, 1), (2, 1), (4, 2), (8, 1), (1024, 1), (1 << 63, 1)]);
        HISTOGRAM.record(u64::MAX);
        HISTOGRAM.record_duration(Duration::MAX);
        let Value::Histogram(_, buckets) = Metric::Histogram(&HISTOGRAM).value() else {
            panic!("not a histogram");
        };
        assert_eq!(buckets.last(), Some(&(u64::MAX, 2)));
    }
}
