//! A process, told apart from a later one with the same number.

use serde::{Deserialize, Serialize};

/// A process's number and when it started, in clock ticks since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started.
    pub started: u64,
}

impl ProcessId {
    /// This process; `None` where /proc is not there.
    pub fn own() -> Option<Self> {
        let pid = std::process::id();
        Some(Self { pid, started: stat(pid)?.1 })
    }

    /// Whether it runs; not one that has ended and that nobody waited for.
    pub fn runs(self) -> bool {
        stat(self.pid)
            .is_some_and(|(state, started)| started == self.started && !"ZX".contains(state))
    }

    /// Whether it was stopped (SIGSTOP).
    pub fn is_paused(self) -> bool {
        stat(self.pid).is_some_and(|(state, started)| started == self.started && state == 'T')
    }
}

/// State and start of a process: fields 3 and 22, behind the name, which may hold anything.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_and_start() {
        let own = ProcessId::own().unwrap();
        assert!(own.runs() && !own.is_paused());
        assert!(!ProcessId { started: own.started + 1, ..own }.runs());
        assert!(!ProcessId { pid: u32::MAX, ..own }.runs());
    }
}
