//! Programs of the system that the harness calls.

use kiln_types::{Code, Context, Error, Result};
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Runs `program` with the words of `arguments`, which has to work; what it printed.
pub(crate) fn run(program: &str, arguments: &str) -> Result<String> {
    let mut command = Command::new(program);
    finish(command.args(arguments.split_whitespace()), "")
}

/// Gives `command` an input and runs it, which has to work; what it printed.
pub(crate) fn finish(command: &mut Command, input: &str) -> Result<String> {
    let output = output(command, input)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(Code::Local, format!("{command:?}: {}: {}", output.status, said.trim())))
}

/// Gives `command` an input and runs it to its end.
pub(crate) fn output(command: &mut Command, input: &str) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context(format_args!("{command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).context(format_args!("input of {command:?}"))?;
    }
    child.wait_with_output().context(format_args!("{command:?}"))
}

/// Which of `programs` are not installed.
pub(crate) fn missing(programs: &[&str]) -> Vec<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<_> = std::env::split_paths(&path).collect();
    let lacks = |program: &&&str| !dirs.iter().any(|dir| dir.join(program).is_file());
    programs.iter().filter(lacks).map(ToString::to_string).collect()
}
