//! The chunk engine over a Disk: allocation, versions, checksums, recovery after a crash
