//! What an exporter shows, read back by the strict parser.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use kiln_telemetry::{
    BUILD_INFO, Identity, Instrument, Kind, Scrape, Stability, metrics, render, shown_name,
};
use kiln_types::{NodeId, Timestamp};
use std::fmt::Write as _;
use std::time::Duration;

fn rendered() -> String {
    let started = Timestamp(1_700_000_000_500_000_000);
    render(&Identity::server("storage", NodeId(101), started))
}

#[test]
fn all_metrics_are_shown_in_the_format_and_with_their_values() {
    metrics::DISK_READ.add(4096);
    metrics::MOUNT_DIRTY.add(-5);
    metrics::STORE_USED.of("a \"disk\"\n\\").set_amount(1 << 40);
    for nanos in [0, 1023, 1024, 1_000_000, u64::MAX] {
        metrics::REQUEST_DURATION.of("read").record(nanos);
    }
    metrics::REQUEST_DURATION.of("write").record_duration(Duration::from_secs(1));
    let text = rendered();
    let scrape = Scrape::parse(&text).unwrap();
    assert_eq!(scrape.of(&metrics::DISK_READ), 4096.0);
    assert_eq!(scrape.total("kiln_mount_dirty_bytes"), Some(-5.0));
    assert_eq!(scrape.label("kiln_store_used_bytes", "disk"), Some("a \"disk\"\n\\"));
    assert_eq!(scrape.of(&metrics::STORE_USED), (1u64 << 40) as f64);
    let read = "kiln_request_duration_seconds_bucket{operation=\"read\",le=";
    let shown = |bound: &str, count: u64| text.contains(&format!("{read}\"{bound}\"}} {count}\n"));
    assert!(shown("0.000001023", 2) && shown("0.000002047", 3) && shown("+Inf", 5), "{text}");
    let buckets = scrape.buckets(&metrics::REQUEST_DURATION);
    assert_eq!(buckets.last(), Some(&(f64::INFINITY, 6.0)), "both operations");
    for instrument in metrics::ALL {
        let name = shown_name(*instrument);
        assert!(text.contains(&format!("\n# TYPE {name} ")) || text.starts_with("# HELP"));
        let total = instrument.kind() == Kind::Counter;
        assert_eq!(name.ends_with("_total"), total, "{name}");
    }
    assert_eq!(scrape.label(BUILD_INFO, "service"), Some("storage"));
    assert_eq!(scrape.label(BUILD_INFO, "node"), Some("101"));
    assert_eq!(scrape.total("process_start_time_seconds"), Some(1_700_000_000.5));
    assert!(scrape.total("process_resident_memory_bytes").unwrap() > 1e5);
}

fn row(instrument: &dyn Instrument) -> String {
    let definition = instrument.definition();
    let label = definition.label.map(|label| format!("{{{label}}}")).unwrap_or_default();
    let kind = format!("{:?}", instrument.kind()).to_lowercase();
    let changes = match definition.stability {
        Stability::Stable => "",
        Stability::Experimental => " May change.",
    };
    format!("| `{}{label}` | {kind} | {}{changes} |", shown_name(instrument), definition.help)
}

#[test]
fn the_operators_table_has_every_metric() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
    let text = std::fs::read_to_string(file).unwrap();
    let mut table = String::new();
    for instrument in metrics::ALL {
        let _ = writeln!(table, "{}", row(*instrument));
    }
    let current = text.lines().filter(|line| line.starts_with("| `kiln_"));
    let current: String = current.map(|line| format!("{line}\n")).collect();
    assert_eq!(current, table, "docs/operations.md should have this table:\n{table}");
}
