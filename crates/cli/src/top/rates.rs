//! What two scrapes of a process say together: rates and latencies. Pure.

use kiln_telemetry::{Buckets, Instrument, Scrape, metrics};
use serde::Serialize;

/// What a server did between two scrapes. Rates are for each second; latencies are as exact as
/// buckets that are powers of two.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Activity {
    pub(super) requests: f64,
    pub(super) errors: f64,
    pub(super) slow: f64,
    /// Seconds below which half of the requests stayed; absent when there were none.
    pub(super) p50_s: Option<f64>,
    /// Seconds below which 99 of 100 stayed.
    pub(super) p99_s: Option<f64>,
    /// Bytes that it got: from the network, or from the kernel of a mount.
    pub(super) in_bytes: f64,
    /// Bytes that it gave.
    pub(super) out_bytes: f64,
    /// Bytes that clients read of it, and wrote through it as head.
    pub(super) client_read_bytes: f64,
    pub(super) client_written_bytes: f64,
    pub(super) disk_read_bytes: f64,
    pub(super) disk_written_bytes: f64,
    /// Processor time: 1 is one core.
    pub(super) cpu: f64,
}

/// How a process stands now.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Standing {
    /// Requests that are worked on.
    pub(super) under_way: f64,
    /// What waits for disks, for commits and for other replicas.
    pub(super) queued: f64,
    pub(super) memory_bytes: f64,
    pub(super) used_bytes: f64,
    pub(super) capacity_bytes: f64,
    /// Of a mount: written and not stored yet.
    pub(super) dirty_bytes: f64,
}

/// Which metrics tell what a process does for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Mount,
}

impl Role {
    fn durations(self) -> &'static dyn Instrument {
        match self {
            Self::Server => &metrics::REQUEST_DURATION,
            Self::Mount => &metrics::MOUNT_DURATION,
        }
    }

    fn failed(self) -> &'static dyn Instrument {
        match self {
            Self::Server => &metrics::REQUESTS_FAILED,
            Self::Mount => &metrics::MOUNT_FAILED,
        }
    }

    fn in_and_out(self) -> (&'static dyn Instrument, &'static dyn Instrument) {
        match self {
            Self::Server => (&metrics::NET_RECEIVED, &metrics::NET_SENT),
            Self::Mount => (&metrics::MOUNT_WRITTEN, &metrics::MOUNT_READ),
        }
    }
}

/// How a process stands.
pub(super) fn standing(role: Role, now: &Scrape) -> Standing {
    let under_way: &dyn Instrument = match role {
        Role::Server => &metrics::REQUESTS_UNDER_WAY,
        Role::Mount => &metrics::MOUNT_UNDER_WAY,
    };
    let queues: [&dyn Instrument; 3] =
        [&metrics::DISK_UNDER_WAY, &metrics::KV_WAITING, &metrics::STORAGE_WAITING];
    Standing {
        under_way: now.of(under_way),
        queued: queues.into_iter().map(|queue| now.of(queue)).sum(),
        memory_bytes: now.total("process_resident_memory_bytes").unwrap_or(0.0),
        used_bytes: now.of(&metrics::STORE_USED),
        capacity_bytes: now.of(&metrics::STORE_CAPACITY),
        dirty_bytes: now.of(&metrics::MOUNT_DIRTY),
    }
}

/// What a process did in the `seconds` between two scrapes; `None` when it was started anew between
/// them.
pub(super) fn activity(
    role: Role,
    before: &Scrape,
    now: &Scrape,
    seconds: f64,
) -> Option<Activity> {
    const STARTED: &str = "process_start_time_seconds";
    if seconds <= 0.0 || before.total(STARTED) != now.total(STARTED) {
        return None;
    }
    let rate = |instrument: &dyn Instrument| {
        ((now.of(instrument) - before.of(instrument)) / seconds).max(0.0)
    };
    let cpu = "process_cpu_seconds_total";
    let cpu = now.total(cpu).unwrap_or(0.0) - before.total(cpu).unwrap_or(0.0);
    let durations = role.durations();
    let latencies = difference(&before.buckets(durations), &now.buckets(durations));
    let (incoming, outgoing) = role.in_and_out();
    Some(Activity {
        requests: latencies.last().map_or(0.0, |(_, count)| count / seconds),
        errors: rate(role.failed()),
        slow: rate(&metrics::SLOW),
        p50_s: quantile(&latencies, 0.5),
        p99_s: quantile(&latencies, 0.99),
        in_bytes: rate(incoming),
        out_bytes: rate(outgoing),
        client_read_bytes: rate(&metrics::STORAGE_READ),
        client_written_bytes: rate(&metrics::STORAGE_WRITTEN),
        disk_read_bytes: rate(&metrics::DISK_READ),
        disk_written_bytes: rate(&metrics::DISK_WRITTEN),
        cpu: (cpu / seconds).max(0.0),
    })
}

/// What came between two readings of a histogram.
fn difference(before: &Buckets, now: &Buckets) -> Buckets {
    let count_before = |bound: f64| {
        before.iter().find(|(known, _)| *known == bound).map_or(0.0, |(_, count)| *count)
    };
    now.iter().map(|(bound, count)| (*bound, (count - count_before(*bound)).max(0.0))).collect()
}

/// The value below which the share `share` of all values lies, as if those of one bucket were
/// spread evenly over it; `None` when there are none.
fn quantile(buckets: &Buckets, share: f64) -> Option<f64> {
    let all = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    let rank = all * share;
    let at = buckets.iter().position(|(_, count)| *count >= rank)?;
    let (bound, count) = buckets[at];
    let (below, count_below) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
    if bound == f64::INFINITY {
        return Some(below);
    }
    let inside = (count - count_below).max(f64::MIN_POSITIVE);
    Some(below + (bound - below) * ((rank - count_below) / inside).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    fn scrape(started: f64, counters: &[(&str, f64)], latencies: &[(f64, f64)]) -> Scrape {
        let mut text = String::new();
        for (name, value) in counters {
            let _ = write!(text, "# TYPE {name} counter\n{name} {value}\n");
        }
        let _ = write!(
            text,
            "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {started}\n"
        );
        let name = "kiln_request_duration_seconds";
        let _ = writeln!(text, "# TYPE {name} histogram");
        let mut all = 0.0;
        for (bound, count) in latencies {
            all = *count;
            let _ = writeln!(text, "{name}_bucket{{operation=\"read\",le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(text, "{name}_bucket{{operation=\"read\",le=\"+Inf\"}} {all}");
        let _ = write!(
            text,
            "{name}_sum{{operation=\"read\"}} 1\n{name}_count{{operation=\"read\"}} {all}\n"
        );
        Scrape::parse(&text).unwrap()
    }

    #[test]
    fn rates_and_latencies_are_of_what_came_between() {
        let names = ["kiln_net_sent_bytes_total", "process_cpu_seconds_total"];
        let before =
            scrape(5.0, &[(names[0], 1e6), (names[1], 3.0)], &[(1.0, 1000.0), (2.0, 1000.0)]);
        let now = scrape(5.0, &[(names[0], 5e6), (names[1], 4.0)], &[(1.0, 1010.0), (2.0, 1020.0)]);
        let activity = activity(Role::Server, &before, &now, 2.0).unwrap();
        assert_eq!((activity.out_bytes, activity.cpu, activity.requests), (2e6, 0.5, 10.0));
        assert_eq!(activity.p50_s, Some(1.0));
        assert!((activity.p99_s.unwrap() - 1.98).abs() < 1e-9, "{activity:?}");
        assert_eq!(super::activity(Role::Mount, &before, &now, 2.0).unwrap().requests, 0.0);
    }

    #[test]
    fn a_process_that_was_started_anew_has_no_rates_yet() {
        let before = scrape(5.0, &[("kiln_net_sent_bytes_total", 1e6)], &[]);
        let now = scrape(6.0, &[("kiln_net_sent_bytes_total", 10.0)], &[]);
        assert_eq!(activity(Role::Server, &before, &now, 1.0), None);
        let idle = activity(Role::Server, &before, &before, 1.0).unwrap();
        assert_eq!(idle, Activity::default());
    }

    #[test]
    fn quantiles_lie_in_the_bucket_that_has_their_rank() {
        let buckets = vec![(1.0, 0.0), (2.0, 50.0), (4.0, 100.0), (f64::INFINITY, 100.0)];
        assert_eq!(quantile(&buckets, 0.0), Some(0.0));
        assert_eq!(quantile(&buckets, 0.25), Some(1.5));
        assert_eq!(quantile(&buckets, 0.75), Some(3.0));
        assert_eq!(quantile(&buckets, 1.0), Some(4.0));
        let beyond = vec![(1.0, 0.0), (2.0, 1.0), (f64::INFINITY, 100.0)];
        assert_eq!(quantile(&beyond, 0.99), Some(2.0), "at least that");
        assert_eq!(quantile(&vec![(1.0, 0.0), (f64::INFINITY, 0.0)], 0.5), None);
        assert_eq!(quantile(&Buckets::new(), 0.5), None);
    }
}
