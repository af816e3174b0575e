//! One measurement, and what several say together.

use serde::Serialize;
use std::time::Duration;

/// One measurement of one workload.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    /// Requests or bytes.
    pub(crate) amount: u64,
    pub(crate) took: Duration,
    /// Of each request, in nanoseconds; empty where they say nothing.
    pub(crate) latencies: Vec<u64>,
}

/// All measurements of one workload.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The middle one, for each second.
    pub median: f64,
    /// The lowest and the highest.
    pub range: (f64, f64),
    /// How many there were.
    pub runs: usize,
    /// Half of all requests took at most this long, in microseconds.
    pub p50_us: Option<f64>,
    /// 99 of 100 took at most this long, in microseconds.
    pub p99_us: Option<f64>,
}

impl Sample {
    /// The same requests, counted in bytes; their latencies are dropped.
    pub(crate) fn in_bytes(mut self, request: usize) -> Self {
        self.amount *= request as u64;
        self.latencies = Vec::new();
        self
    }

    /// What was done and in what time, without the latencies of its parts.
    pub(crate) fn whole(mut self) -> Self {
        self.latencies = Vec::new();
        self
    }

    fn rate(&self) -> f64 {
        self.amount as f64 / self.took.as_secs_f64().max(1e-9)
    }
}

impl Figure {
    /// `None` without samples.
    pub(crate) fn of(samples: &[Sample]) -> Option<Self> {
        let mut rates: Vec<_> = samples.iter().map(Sample::rate).collect();
        rates.sort_by(f64::total_cmp);
        let (low, high) = (*rates.first()?, *rates.last()?);
        let middle = rates.len() / 2;
        let median = match rates.len() % 2 {
            0 => f64::midpoint(rates[middle - 1], rates[middle]),
            _ => rates[middle],
        };
        let mut latencies: Vec<_> = samples.iter().flat_map(|one| &one.latencies).collect();
        latencies.sort_unstable();
        let part = |hundredths: usize| {
            let at = (latencies.len() * hundredths / 100).min(latencies.len().checked_sub(1)?);
            Some(*latencies[at] as f64 / 1e3)
        };
        let (p50_us, p99_us) = (part(50), part(99));
        Some(Self { median, range: (low, high), runs: samples.len(), p50_us, p99_us })
    }

    /// How far the runs lie around the median, as a part of it.
    pub fn spread(&self) -> f64 {
        (self.range.1 - self.range.0) / 2.0 / self.median.max(1e-9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(amount: u64, latencies: Vec<u64>) -> Sample {
        Sample { amount, took: Duration::from_secs(1), latencies }
    }

    #[test]
    fn a_figure_is_the_middle_of_its_runs() {
        let runs = [sample(30, vec![]), sample(10, (1..=100).map(|at| at * 1000).collect())];
        let figure = Figure::of(&runs).expect("samples");
        assert_eq!((figure.median, figure.range), (20.0, (10.0, 30.0)));
        assert_eq!((figure.p50_us, figure.p99_us), (Some(51.0), Some(100.0)));
        assert_eq!(figure.spread(), 0.5);
        assert_eq!(Figure::of(&runs[..1]).and_then(|figure| figure.p50_us), None);
        assert!(Figure::of(&[]).is_none());
    }
}
