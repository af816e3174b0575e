//! The shape of the sources: what the compiler, rustfmt and clippy do not see.

use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES: usize = 600;
const FUNCTION_LINES: usize = 70;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

/// All files of ours below `dir` whose names end so.
fn files(dir: &Path, ends: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory of the repository") {
        let path = entry.expect("its entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !["target", ".git", "generated"].contains(&name.as_str()) {
            files(&path, ends, found);
        } else if path.is_file() && ends.iter().any(|end| name.ends_with(end)) {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(&root(), &[".rs"], &mut found);
    assert!(found.len() > 30, "the sources are not where they were");
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(path).expect("UTF-8"))).collect()
}

fn report(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// First line and length of each function; rustfmt puts its end where its beginning stands.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<_> = text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let begins = |line: &str| {
        let mut words = line.split_whitespace();
        words.by_ref().take(5).any(|word| word == "fn") && !line.trim_start().starts_with("//")
    };
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| begins(line)) {
        let end = lines[at..].iter().position(|end| {
            indent(end) == indent(line) && (end.trim() == "}" || end.ends_with([';', '}']))
        });
        found.push((at + 1, end.map_or(0, |end| end + 1)));
    }
    found
}

#[test]
fn files_and_functions_are_short() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let shown = path.display();
        let lines = text.lines().count();
        if lines > FILE_LINES {
            wrong.push(format!("{shown}: {lines} lines; split it at {FILE_LINES}"));
        }
        let long = functions(&text).into_iter().filter(|(_, length)| *length > FUNCTION_LINES);
        wrong.extend(long.map(|(line, length)| format!("{shown}:{line}: {length} lines")));
    }
    report(wrong);
}

#[test]
fn sources_speak_for_themselves() {
    // Where something was discussed is no comment: say the reason instead.
    let tickets = ["issue #", "issues #", "pull request #", "TODO", "FIXME", "XXX"];
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        if path.ends_with("tests/tidy.rs") {
            continue;
        }
        for (at, line) in text.lines().enumerate() {
            if let Some(word) = tickets.iter().find(|word| line.contains(**word)) {
                wrong.push(format!("{}:{}: '{word}'", path.display(), at + 1));
            }
        }
    }
    report(wrong);
}

#[test]
fn every_crate_says_what_it_is_and_shares_the_lints() {
    let mut wrong = Vec::new();
    let mut manifests = Vec::new();
    files(&root(), &["Cargo.toml"], &mut manifests);
    for path in manifests.iter().filter(|path| path.parent() != Some(root().as_path())) {
        let text = fs::read_to_string(path).expect("UTF-8");
        if !text.contains("[lints]\nworkspace = true") {
            wrong.push(format!("{}: no [lints] workspace = true", path.display()));
        }
        if !text.contains("license.workspace = true") {
            wrong.push(format!("{}: no license.workspace = true", path.display()));
        }
        let source = path.with_file_name("src");
        let library = [source.join("lib.rs"), source.join("main.rs")];
        let text = library.iter().find_map(|file| fs::read_to_string(file).ok());
        if !text.is_some_and(|text| text.starts_with("//!")) {
            wrong.push(format!("{}: its root module does not say what it is", source.display()));
        }
    }
    report(wrong);
}

#[test]
fn functions_are_measured_from_their_first_line_to_their_end() {
    let text =
        "pub fn a() {\n    b();\n}\n\n    fn c(\n        x: u8,\n    ) -> u8 {\n        x\n    }\n";
    assert_eq!(functions(text), [(1, 3), (5, 5)]);
    assert_eq!(functions("fn a();\nfn b() {}\n"), [(1, 1), (2, 1)]);
}
