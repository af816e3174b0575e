//! Workloads and limits of kiln bench
