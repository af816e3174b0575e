//! Programs that a test runs on a mount.

use super::mount::{find, finish, skip};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Longer than any of them takes, on a slow machine too.
const LONGEST: Duration = Duration::from_secs(150);

/// Whether these programs are installed; says it aloud when not.
pub(crate) fn installed(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|program| find(program).is_none()).collect();
    missing.is_empty() || skip(&format!("not installed: {missing:?}"))
}

/// A shell script that stops at the first command that fails.
pub(crate) fn shell(dir: &Path, script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-euc", script]).current_dir(dir).env("HOME", dir).env("LC_ALL", "C");
    for (name, value) in [("AUTHOR", "tester"), ("COMMITTER", "tester")] {
        command.env(format!("GIT_{name}_NAME"), value);
        command.env(format!("GIT_{name}_EMAIL"), "tester@localhost");
    }
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").stdin(Stdio::null());
    command
}

/// Runs a script that has to work, and returns what it printed.
pub(crate) fn run(dir: &Path, script: &str) -> String {
    let output = finish(shell(dir, script), LONGEST);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{script}\n{}\n{out}\n{err}", output.status);
    out
}

/// Runs a script that has to fail, and returns what it complained.
pub(crate) fn refused(dir: &Path, script: &str) -> String {
    let output = finish(shell(dir, script), LONGEST);
    assert!(!output.status.success(), "{script} worked: {}", text(&output.stdout));
    text(&output.stderr)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
