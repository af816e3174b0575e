//! Every metric of the house: name, unit, stability, help. Rooms use the statics; an exporter reads
//! [`ALL`].

use crate::instrument::{Counter, Definition, Gauge, Histogram, Metric, Stability, Unit};

macro_rules! metrics {
    ($($kind:ident $name:ident = $text:literal, $unit:ident, $stability:ident, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $name: $kind = $kind::new(Definition {
                name: $text,
                unit: Unit::$unit,
                stability: Stability::$stability,
                help: $help,
            });
        )*

        /// Every metric.
        pub static ALL: &[Metric] = &[$(Metric::$kind(&$name)),*];
    };
}

metrics! {
    Counter NET_ACCEPTED = "kiln_net_accepted", Count, Stable,
        "Connections that were opened to this server and proved themselves.";
    Counter NET_REFUSED = "kiln_net_refused", Count, Stable,
        "Connections that were refused: no proof, another cluster, a revoked credential, garbage.";
    Gauge NET_OPEN = "kiln_net_open", Count, Stable,
        "Connections that are open now.";
    Counter NET_FRAMES_REFUSED = "kiln_net_frames_refused", Count, Stable,
        "Frames that were malformed, too long or failed their checksum.";

    Histogram CONTROL_DURATION = "kiln_control_duration", Nanoseconds, Experimental,
        "Time from a control request's arrival to its answer.";
    Counter CONTROL_FAILED = "kiln_control_failed", Count, Experimental,
        "Control requests that were answered with an error.";

    Counter KV_COMMITS = "kiln_kv_commits", Count, Stable,
        "Transactions that were committed.";
    Counter KV_CONFLICTS = "kiln_kv_conflicts", Count, Stable,
        "Transactions that were refused because of a conflict.";
    Histogram KV_GROUP = "kiln_kv_group", Count, Experimental,
        "Transactions that shared one sync.";
    Histogram KV_SYNC_DURATION = "kiln_kv_sync_duration", Nanoseconds, Experimental,
        "Time of one sync of the metadata log.";

    Counter DISK_READ = "kiln_disk_read", Bytes, Stable,
        "Bytes read from disks.";
    Counter DISK_WRITTEN = "kiln_disk_written", Bytes, Stable,
        "Bytes written to disks.";
    Histogram DISK_SYNC_DURATION = "kiln_disk_sync_duration", Nanoseconds, Experimental,
        "Time of one sync of a disk.";
    Counter DISK_FAILED = "kiln_disk_failed", Count, Stable,
        "Disk operations that failed.";

    Counter CHUNK_CORRUPT = "kiln_chunk_corrupt", Count, Stable,
        "Blocks that did not match their checksum when read from a disk.";
    Counter STORAGE_READ = "kiln_storage_read", Bytes, Stable,
        "Bytes that clients read.";
    Counter STORAGE_WRITTEN = "kiln_storage_written", Bytes, Stable,
        "Bytes that clients wrote; counted once, at the head.";
    Histogram STORAGE_READ_DURATION = "kiln_storage_read_duration", Nanoseconds, Stable,
        "Time from a chunk read's arrival to its answer.";
    Histogram STORAGE_WRITE_DURATION = "kiln_storage_write_duration", Nanoseconds, Stable,
        "Time from a chunk write's arrival at the head to its answer.";
    Counter STORAGE_REFUSED = "kiln_storage_refused", Count, Stable,
        "Chunk requests that were refused: stale routing, no capability, not serving.";

    Counter MGMTD_HEARTBEATS = "kiln_mgmtd_heartbeats", Count, Stable,
        "Heartbeats that were answered.";
    Counter MGMTD_DECLARED_DEAD = "kiln_mgmtd_declared_dead", Count, Stable,
        "Servers that were declared dead.";
    Gauge MGMTD_ROUTING_VERSION = "kiln_mgmtd_routing_version", Count, Stable,
        "The version of the routing information.";

    Gauge META_SESSIONS = "kiln_meta_sessions", Count, Stable,
        "Files that clients have open.";
    Counter META_FILES_COLLECTED = "kiln_meta_files_collected", Count, Stable,
        "Removed files whose chunks are all freed.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_well_formed_and_helps_are_sentences() {
        let mut names = BTreeSet::new();
        for definition in ALL.iter().map(Metric::definition) {
            let name = definition.name;
            assert!(names.insert(name), "{name} is defined twice");
            assert!(name.starts_with("kiln_"), "{name}");
            assert!(name.bytes().all(|b| b == b'_' || b.is_ascii_lowercase()), "{name}");
            assert!(definition.help.ends_with('.'), "{name}: {}", definition.help);
        }
    }
}
