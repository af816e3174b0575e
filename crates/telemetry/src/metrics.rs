//! Every metric of the house: name, unit, stability, help. Rooms use the statics; an exporter reads
//! [`ALL`]. `docs/operations.md` has the same table for operators.

use crate::instrument::{
    Counter, Definition, Family, Gauge, Histogram, Instrument, Single, Stability, Unit,
};

macro_rules! metrics {
    (
        single {
            $($kind:ident $name:ident =
                $text:literal, $unit:ident, $stability:ident, $help:literal;)*
        }
        by_label {
            $($member:ident $family:ident[$label:ident] =
                $texts:literal, $units:ident, $stabilities:ident, $helps:literal;)*
        }
    ) => {
        $(
            #[doc = $help]
            pub static $name: Single<$kind> = Single::new(Definition {
                name: $text,
                unit: Unit::$unit,
                stability: Stability::$stability,
                help: $help,
                label: None,
            }, $kind::new());
        )*
        $(
            #[doc = $helps]
            pub static $family: Family<$member> = Family::new(Definition {
                name: $texts,
                unit: Unit::$units,
                stability: Stability::$stabilities,
                help: $helps,
                label: Some(stringify!($label)),
            });
        )*

        /// Every metric.
        pub static ALL: &[&dyn Instrument] = &[$(&$name,)* $(&$family,)*];
    };
}

metrics! {
    single {
        Gauge REQUESTS_UNDER_WAY = "kiln_requests_under_way", Count, Stable,
            "Requests that this server works on now.";
        Gauge CALLS_UNDER_WAY = "kiln_calls_under_way", Count, Stable,
            "Calls to servers that this process waits for now.";

        Counter NET_ACCEPTED = "kiln_net_accepted", Count, Stable,
            "Connections that were opened to this server and proved themselves.";
        Counter NET_REFUSED = "kiln_net_refused", Count, Stable,
            "Connections that were refused: no proof, wrong cluster, revoked credential, garbage.";
        Gauge NET_OPEN = "kiln_net_open", Count, Stable,
            "Connections that are open now.";
        Counter NET_FRAMES_REFUSED = "kiln_net_frames_refused", Count, Stable,
            "Frames that were malformed, too long or failed their checksum.";
        Counter NET_RECEIVED = "kiln_net_received", Bytes, Stable,
            "Bytes that arrived on connections of the data plane.";
        Counter NET_SENT = "kiln_net_sent", Bytes, Stable,
            "Bytes that were sent on connections of the data plane.";
        Counter NET_FRAMES_SENT = "kiln_net_frames_sent", Count, Stable,
            "Frames that were sent on them.";
        Counter NET_WRITES = "kiln_net_writes", Count, Stable,
            "Writes to sockets that these took: several frames share one.";

        Counter KV_COMMITS = "kiln_kv_commits", Count, Stable,
            "Transactions that were committed.";
        Counter KV_CONFLICTS = "kiln_kv_conflicts", Count, Stable,
            "Transactions that were refused because of a conflict.";
        Gauge KV_WAITING = "kiln_kv_waiting", Count, Stable,
            "Transactions that wait for their commit now.";
        Histogram KV_GROUP = "kiln_kv_group", Count, Experimental,
            "Transactions that shared one sync.";
        Histogram KV_SYNC_DURATION = "kiln_kv_sync_duration", Nanoseconds, Experimental,
            "Time of one sync of the metadata log.";

        Counter DISK_READ = "kiln_disk_read", Bytes, Stable,
            "Bytes read from disks.";
        Counter DISK_WRITTEN = "kiln_disk_written", Bytes, Stable,
            "Bytes written to disks.";
        Gauge DISK_UNDER_WAY = "kiln_disk_under_way", Count, Stable,
            "Reads, writes and syncs of disks that wait or are under way now.";
        Histogram DISK_READ_DURATION = "kiln_disk_read_duration", Nanoseconds, Experimental,
            "Time of one read of a disk.";
        Histogram DISK_WRITE_DURATION = "kiln_disk_write_duration", Nanoseconds, Experimental,
            "Time of one write to a disk.";
        Histogram DISK_SYNC_DURATION = "kiln_disk_sync_duration", Nanoseconds, Experimental,
            "Time of one sync of a disk.";
        Counter DISK_FAILED = "kiln_disk_failed", Count, Stable,
            "Disk operations that failed.";

        Histogram CHUNK_GROUP = "kiln_chunk_group", Count, Experimental,
            "Changes of chunks that shared one sync of a disk.";
        Counter CHUNK_CORRUPT = "kiln_chunk_corrupt", Count, Stable,
            "Blocks that did not match their checksum when read from a disk.";
        Counter STORAGE_READ = "kiln_storage_read", Bytes, Stable,
            "Bytes that clients read.";
        Counter STORAGE_WRITTEN = "kiln_storage_written", Bytes, Stable,
            "Bytes that clients wrote; counted once, at the head.";
        Gauge STORAGE_WAITING = "kiln_storage_waiting", Count, Stable,
            "Writes that wait to be decided now, here as head or passed on.";

        Counter STORAGE_SCRUBBED = "kiln_storage_scrubbed", Bytes, Stable,
            "Bytes that were read only to find damage.";
        Counter STORAGE_DAMAGED = "kiln_storage_damaged", Count, Stable,
            "Damaged chunks that this found.";
        Counter STORAGE_REPAIRED = "kiln_storage_repaired", Count, Stable,
            "Damaged chunks that were written anew from another replica's copy.";
        Gauge MGMTD_PRIMARY = "kiln_mgmtd_primary", Count, Stable,
            "1 when this manager is the primary one, which decides; 0 when it stands by.";
        Counter MGMTD_HEARTBEATS = "kiln_mgmtd_heartbeats", Count, Stable,
            "Heartbeats that were answered.";
        Counter MGMTD_DECLARED_DEAD = "kiln_mgmtd_declared_dead", Count, Stable,
            "Servers that were declared dead.";
        Counter MGMTD_KEPT_OUT = "kiln_mgmtd_kept_out", Count, Stable,
            "Targets of living servers that were taken out of their chains: they hang, or cannot be reached.";
        Gauge MGMTD_ROUTING_VERSION = "kiln_mgmtd_routing_version", Count, Stable,
            "The version of the routing information.";
        Gauge MGMTD_DEAD = "kiln_mgmtd_dead", Count, Stable,
            "Servers that have registered and are not heard from.";
        Gauge MGMTD_CHAINS = "kiln_mgmtd_chains", Count, Stable,
            "Chains.";
        Gauge MGMTD_CHAINS_DEGRADED = "kiln_mgmtd_chains_degraded", Count, Stable,
            "Chains of which not every target serves.";
        Gauge MGMTD_CHAINS_READ_ONLY = "kiln_mgmtd_chains_read_only", Count, Stable,
            "Chains of which too few targets serve for writes.";
        Gauge MGMTD_MOVES = "kiln_mgmtd_moves", Count, Stable,
            "Targets that move to another disk, or wait to.";

        Gauge META_CLIENTS = "kiln_meta_clients", Count, Stable,
            "Clients that may have files open.";
        Gauge META_DETACHED = "kiln_meta_detached", Count, Stable,
            "Directories that were removed as a whole, at most 128, whose entries are still being removed.";
        Gauge META_TRASH = "kiln_meta_trash", Count, Stable,
            "Files and directories that were removed and are in the trash, as of the last minute.";
        Gauge META_UNCOUNTED = "kiln_meta_uncounted", Count, Stable,
            "Directories, at most 128, whose entries are still being counted for a quota.";
        Gauge META_GARBAGE = "kiln_meta_garbage", Count, Stable,
            "Removed files, and ends cut off, whose chunks are not freed yet.";
        Counter META_COLLECTED = "kiln_meta_collected", Count, Stable,
            "Removed files, and ends cut off, whose chunks are all freed.";

        Gauge MOUNT_UNDER_WAY = "kiln_mount_under_way", Count, Stable,
            "Operations of programs on the mount that are under way now.";
        Counter MOUNT_READ = "kiln_mount_read", Bytes, Stable,
            "Bytes that the kernel read from the mount.";
        Counter MOUNT_WRITTEN = "kiln_mount_written", Bytes, Stable,
            "Bytes that the kernel wrote to the mount.";
        Gauge MOUNT_DIRTY = "kiln_mount_dirty", Bytes, Stable,
            "Bytes that were written to the mount and are not stored yet.";
        Gauge MOUNT_AHEAD = "kiln_mount_ahead", Bytes, Stable,
            "Bytes that were read ahead and wait for a reader.";
        Counter MOUNT_AHEAD_HITS = "kiln_mount_ahead_hits", Count, Stable,
            "Reads that found their bytes read ahead.";
    }
    by_label {
        Histogram REQUEST_DURATION[operation] = "kiln_request_duration", Nanoseconds, Stable,
            "Time from a request's arrival at this server to its answer.";
        Counter REQUESTS_FAILED[code] = "kiln_requests_failed", Count, Stable,
            "Requests that this server answered with an error.";
        Histogram CALL_DURATION[operation] = "kiln_call_duration", Nanoseconds, Stable,
            "Time of a call to a server, with all its attempts.";
        Counter CALLS_FAILED[code] = "kiln_calls_failed", Count, Stable,
            "Calls to servers that failed for good.";
        Histogram MOUNT_DURATION[operation] = "kiln_mount_duration", Nanoseconds, Stable,
            "Time of an operation of a program on the mount.";
        Counter MOUNT_FAILED[code] = "kiln_mount_failed", Count, Stable,
            "Operations on the mount that ended with an error, a missing name included.";
        Counter SLOW[operation] = "kiln_slow", Count, Stable,
            "Requests, calls and operations that took as long as log.slow or longer.";
        Gauge STORE_USED[disk] = "kiln_store_used", Bytes, Stable,
            "Bytes of a disk's store that are taken.";
        Gauge STORE_CAPACITY[disk] = "kiln_store_capacity", Bytes, Stable,
            "Bytes that a disk's store may take.";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_well_formed_and_helps_are_sentences() {
        let mut names = BTreeSet::new();
        for definition in ALL.iter().map(|instrument| instrument.definition()) {
            let name = definition.name;
            assert!(names.insert(name), "{name} is defined twice");
            assert!(name.starts_with("kiln_"), "{name}");
            assert!(name.bytes().all(|b| b == b'_' || b.is_ascii_lowercase()), "{name}");
            assert!(definition.help.ends_with('.'), "{name}: {}", definition.help);
        }
    }
}
