//! Metrics as text, in Prometheus' exposition format 0.0.4.

use crate::instrument::{Histogram, Instrument, Kind, Unit, Value};
use crate::metrics::ALL;
use crate::process::Process;
use kiln_types::{NodeId, Timestamp};
use std::fmt::Write;
use std::ops::RangeInclusive;
use std::path::Path;

/// The `Content-Type` of what [`render`] makes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metric that says who answers: labels `service`, `node` and `version`.
pub const BUILD_INFO: &str = "kiln_build_info";

/// Which process a reader sees.
#[derive(Clone, Debug)]
pub struct Identity {
    /// What it runs: `storage`, `mount`, ..
    pub service: String,
    /// Its node, of a server; the mount point of a mount.
    pub node: String,
    /// Its version.
    pub version: &'static str,
    /// When it started.
    pub started: Timestamp,
}

impl Identity {
    /// A server's.
    pub fn server(service: impl ToString, node: NodeId, started: Timestamp) -> Self {
        let (service, node) = (service.to_string(), node.to_string());
        Self { service, node, version: env!("CARGO_PKG_VERSION"), started }
    }

    /// That of the mount at `path`.
    pub fn mount(path: &Path, started: Timestamp) -> Self {
        let (service, node) = ("mount".into(), path.display().to_string());
        Self { service, node, version: env!("CARGO_PKG_VERSION"), started }
    }
}

/// The bit lengths at which a histogram of this unit has bounds: 1 us to 69 s, 1 to 65535 things,
/// 512 B to 1 GiB. They are always the same ones, so that histograms of several servers add up.
fn bounds(unit: Unit) -> RangeInclusive<u32> {
    match unit {
        Unit::Nanoseconds => 10..=36,
        Unit::Count => 0..=16,
        Unit::Bytes => 9..=30,
    }
}

fn suffix(unit: Unit) -> &'static str {
    match unit {
        Unit::Count => "",
        Unit::Bytes => "_bytes",
        Unit::Nanoseconds => "_seconds",
    }
}

/// The name under which a metric is shown: with its unit, and `_total` where it only grows.
pub fn shown_name(instrument: &dyn Instrument) -> String {
    let definition = instrument.definition();
    let total = if instrument.kind() == Kind::Counter { "_total" } else { "" };
    format!("{}{}{total}", definition.name, suffix(definition.unit))
}

/// All metrics of this process.
pub fn render(identity: &Identity) -> String {
    let mut text = Text(String::with_capacity(16 << 10));
    for instrument in ALL {
        text.instrument(*instrument);
    }
    text.process(&Process::read(), identity);
    text.0
}

struct Text(String);

impl Text {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.0.write_fmt(line);
        self.0.push('\n');
    }

    fn head(&mut self, name: &str, kind: Kind, unit: Unit, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
        if unit != Unit::Count {
            self.line(format_args!("# UNIT {name} {}", &suffix(unit)[1..]));
        }
    }

    fn instrument(&mut self, instrument: &dyn Instrument) {
        let definition = instrument.definition();
        let name = shown_name(instrument);
        self.head(&name, instrument.kind(), definition.unit, definition.help);
        instrument.read(&mut |member, value| {
            let label = definition.label.zip(member).map(|(label, member)| pair(label, member));
            let label = label.unwrap_or_default();
            let unit = definition.unit;
            match value {
                Value::Counter(value) => {
                    self.sample(&name, "", &label, number(unit, i128::from(value)));
                }
                Value::Gauge(value) => {
                    self.sample(&name, "", &label, number(unit, i128::from(value)));
                }
                Value::Histogram(sum, counts) => self.histogram(&name, &label, unit, sum, &counts),
            }
        });
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: &str, value: impl std::fmt::Display) {
        match labels {
            "" => self.line(format_args!("{name}{suffix} {value}")),
            _ => self.line(format_args!("{name}{suffix}{{{labels}}} {value}")),
        }
    }

    fn histogram(&mut self, name: &str, label: &str, unit: Unit, sum: u64, counts: &[u64]) {
        let bounds = bounds(unit);
        let mut below = 0;
        let comma = if label.is_empty() { "" } else { "," };
        for (bits, count) in (0u32..).zip(counts) {
            below += count;
            if bounds.contains(&bits) {
                // A bucket's bound counts as inside, and this bucket holds what is below 2^bits.
                let bound = number(unit, (1 << bits) - 1);
                self.sample(name, "_bucket", &format!("{label}{comma}le=\"{bound}\""), below);
            }
        }
        debug_assert_eq!(counts.len(), Histogram::BUCKETS);
        self.sample(name, "_bucket", &format!("{label}{comma}le=\"+Inf\""), below);
        self.sample(name, "_sum", label, number(unit, i128::from(sum)));
        self.sample(name, "_count", label, below);
    }

    fn process(&mut self, process: &Process, identity: &Identity) {
        let mut one = |name: &str, kind, unit, help: &str, value: Option<u64>| {
            if let Some(value) = value {
                self.head(name, kind, unit, help);
                self.sample(name, "", "", number(unit, i128::from(value)));
            }
        };
        let (gauge, counter) = (Kind::Gauge, Kind::Counter);
        let (bytes, seconds, count) = (Unit::Bytes, Unit::Nanoseconds, Unit::Count);
        let started = u64::try_from(identity.started.0).ok();
        let cpu = Some(process.cpu_nanos);
        one("process_cpu_seconds_total", counter, seconds, "Processor time.", cpu);
        let help = "Memory that the process occupies.";
        one("process_resident_memory_bytes", gauge, bytes, help, process.resident_bytes);
        let help = "Address space of the process.";
        one("process_virtual_memory_bytes", gauge, bytes, help, process.virtual_bytes);
        one("process_threads", gauge, count, "Threads.", process.threads);
        one("process_open_fds", gauge, count, "Open file descriptors.", process.open_fds);
        let help = "File descriptors that the process may have.";
        one("process_max_fds", gauge, count, help, process.fds_max);
        let help = "When the process started, in seconds since 1970.";
        one("process_start_time_seconds", gauge, seconds, help, started);
        self.head(BUILD_INFO, gauge, count, "Who answers, and its version.");
        let labels = [
            pair("service", &identity.service),
            pair("node", &identity.node),
            pair("version", identity.version),
        ];
        self.sample(BUILD_INFO, "", &labels.join(","), 1);
    }
}

fn pair(label: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{label}=\"{value}\"")
}

/// A number in the unit that is shown, exactly.
fn number(unit: Unit, value: i128) -> String {
    if unit != Unit::Nanoseconds {
        return value.to_string();
    }
    const SECOND: u128 = 1_000_000_000;
    let (sign, nanos) = (if value < 0 { "-" } else { "" }, value.unsigned_abs());
    let text = format!("{sign}{}.{:09}", nanos / SECOND, nanos % SECOND);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_are_shown_in_seconds_and_nothing_is_rounded() {
        let cases = [
            (0, "0"),
            (1, "0.000000001"),
            (1_500_000_000, "1.5"),
            (-20_000_000_000, "-20"),
            (i128::from(u64::MAX), "18446744073.709551615"),
        ];
        for (nanos, text) in cases {
            assert_eq!(number(Unit::Nanoseconds, nanos), text);
        }
        assert_eq!(number(Unit::Bytes, 20), "20");
    }

    #[test]
    fn what_is_text_in_labels_and_helps_is_escaped() {
        assert_eq!(pair("disk", "a\\b\"c\nd"), r#"disk="a\\b\"c\nd""#);
        let mut text = Text(String::new());
        text.head("x", Kind::Gauge, Unit::Count, "a\\b\nc");
        assert_eq!(text.0, "# HELP x a\\\\b\\nc\n# TYPE x gauge\n");
    }
}
