//! What the kernel says of this process, under the names that Prometheus' own clients use.

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};
use std::fs;

/// What this process takes of its machine now. What the kernel does not say is absent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Process {
    /// Processor time, user and system.
    pub(crate) cpu_nanos: u64,
    /// Bytes of memory that it occupies.
    pub(crate) resident_bytes: Option<u64>,
    /// Bytes of address space.
    pub(crate) virtual_bytes: Option<u64>,
    /// Threads.
    pub(crate) threads: Option<u64>,
    /// Open file descriptors.
    pub(crate) open_fds: Option<u64>,
    /// How many it may have.
    pub(crate) fds_max: Option<u64>,
}

impl Process {
    pub(crate) fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let time = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        Self {
            cpu_nanos: seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0),
            resident_bytes: number_of(&status, "VmRSS:").map(|kib| kib * 1024),
            virtual_bytes: number_of(&status, "VmSize:").map(|kib| kib * 1024),
            threads: number_of(&status, "Threads:"),
            // One of them is that of the directory.
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|all| all.count() as u64 - 1),
            fds_max: getrlimit(Resource::Nofile).current,
        }
    }
}

/// The first number behind `key` in a file of the form of `/proc/self/status`.
fn number_of(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_threads_and_files() {
        let process = Process::read();
        assert!(process.cpu_nanos > 0);
        let known = [process.resident_bytes, process.virtual_bytes, process.threads];
        assert!(known.into_iter().chain([process.open_fds]).all(|n| n.is_some_and(|n| n > 0)));
    }
}
