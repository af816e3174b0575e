//! The storage server: chain replication over the chunk store
