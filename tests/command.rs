//! The command line by itself, without a cluster: help, exit codes, messages.

use std::path::Path;
use std::process::{Command, Output};

fn kiln(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(arguments).env_remove("KILN_DIR").env_remove("KILN_CLUSTER");
    command.env_remove("KILN_CREDENTIAL");
    command
}

fn run(arguments: &[&str]) -> Output {
    kiln(arguments).output().expect("the kiln binary")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Runs it and returns what it said on standard error.
fn refused(arguments: &[&str], code: i32) -> String {
    let output = run(arguments);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

#[test]
fn every_command_has_help() {
    fn walk(path: &[&str]) {
        let mut arguments = path.to_vec();
        arguments.push("--help");
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        let help = text(&output.stdout);
        assert!(help.contains("Usage: kiln"), "{help}");
        let Some((_, commands)) = help.split_once("\nCommands:\n") else { return };
        // A line that is indented further goes on with the description before it.
        let names = commands.lines().take_while(|line| line.starts_with("  "));
        let names = names.filter(|line| !line.starts_with("   "));
        for name in names.filter_map(|line| line.split_whitespace().next()) {
            if name != "help" {
                walk(&[path, &[name]].concat());
            }
        }
    }
    walk(&[]);
}

#[test]
fn wrong_usage_is_2_and_failure_is_1() {
    refused(&["nonsense"], 2);
    refused(&["status", "--nonsense"], 2);
    refused(&["status", "--dir", "/a", "--cluster", "h:1"], 2);
    let said = refused(&["status", "--cluster", "h:1"], 2);
    assert!(said.contains("--credential FILE"), "{said}");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("UTF-8");
    let said = refused(&["status", "--dir", path], 1);
    assert!(said.starts_with("kiln: there is no kiln cluster in ") && said.lines().count() == 2);
    let said = refused(&["--dir", path, "up", "--storage", "2", "--replicas", "3"], 2);
    assert!(said.contains("--storage 3, or --replicas 2"), "{said}");
    refused(&["up", "--dir", path, "--capacity", "much"], 2);
    let said = refused(&["up", "--detach", "--dir", path, "--storage", "0"], 2);
    assert!(said.starts_with("kiln: --storage is 0; allowed is 1 to 64"), "{said}");
}

#[test]
fn down_with_nothing_running_is_done() {
    let dir = tempfile::tempdir().expect("a directory");
    for place in [dir.path(), Path::new("/nowhere/at/all")] {
        let output = kiln(&["down"]).env("KILN_DIR", place).output().expect("kiln");
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).starts_with("nothing is running"));
    }
}

#[test]
fn a_directory_with_other_things_is_not_touched() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("mine"), "precious").expect("a file");
    let path = dir.path().to_str().expect("UTF-8");
    for detach in [&[][..], &["--detach"]] {
        let said = refused(&[&["up", "--dir", path][..], detach].concat(), 1);
        assert!(said.contains("not a kiln cluster and not empty: it holds 'mine'"), "{said}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("it").count(), 1);
}

#[test]
fn examples_and_completions_are_printed() {
    for service in ["mgmtd", "meta", "storage"] {
        let output = run(&["config", "example", service]);
        assert!(text(&output.stdout).starts_with(&format!("# Configuration of kiln {service}.")));
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(run(&["completions", shell]).stdout.len() > 500, "{shell}");
    }
}
