//! Who asks.

use super::abi::Header;
use kiln_types::Caller;

/// The protocol carries no supplementary groups; the kernel shows those of a thread that waits for its
/// answer.
pub(super) fn caller(request: &Header) -> Caller {
    let groups = if request.uid == 0 { Vec::new() } else { groups_of(request.thread) };
    Caller { uid: request.uid, gid: request.gid, groups }
}

fn groups_of(thread: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    groups_in(&status)
}

fn groups_in(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supplementary_groups_are_found() {
        assert_eq!(groups_in("Name:\tx\nGroups:\t4 27 1000 \nVmRSS: 1 kB\n"), [4, 27, 1000]);
        assert_eq!(groups_in("Groups:\t \n"), [] as [u32; 0]);
        assert_eq!(groups_of(u32::MAX), [] as [u32; 0]);
    }
}
