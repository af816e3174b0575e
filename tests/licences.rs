//! Every dependency's licence is one that deny.toml allows.

use cargo_metadata::MetadataCommand;
use std::path::Path;

/// The list `allow` under `[licenses]` of deny.toml.
fn allowed() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deny.toml");
    let text = std::fs::read_to_string(file).expect("deny.toml");
    let (_, rest) = text.split_once("[licenses]\nallow = [").expect("its [licenses] allow");
    let (list, _) = rest.split_once(']').expect("its end");
    list.split(',').map(|name| name.trim().trim_matches('"').to_string()).collect()
}

/// Whether an SPDX expression can be met with the allowed licences: OR of ANDs of names, with
/// parentheses; '/' is how OR was written once.
struct Expression<'a> {
    words: Vec<&'a str>,
    at: usize,
    allowed: &'a [String],
}

impl<'a> Expression<'a> {
    fn met(text: &'a str, allowed: &'a [String]) -> bool {
        let mut words = Vec::new();
        for word in text.split_whitespace() {
            let mut rest = word;
            while let Some(at) = rest.find(['(', ')', '/']) {
                words.extend([&rest[..at], &rest[at..=at]].into_iter().filter(|w| !w.is_empty()));
                rest = &rest[at + 1..];
            }
            words.extend(Some(rest).filter(|word| !word.is_empty()));
        }
        let mut expression = Self { words, at: 0, allowed };
        let met = expression.any();
        met && expression.at == expression.words.len()
    }

    fn next_is(&mut self, wanted: &[&str]) -> bool {
        let is = self.words.get(self.at).is_some_and(|word| wanted.contains(word));
        self.at += usize::from(is);
        is
    }

    fn any(&mut self) -> bool {
        let mut met = self.all();
        while self.next_is(&["OR", "/"]) {
            met |= self.all();
        }
        met
    }

    fn all(&mut self) -> bool {
        let mut met = self.one();
        while self.next_is(&["AND"]) {
            met &= self.one();
        }
        met
    }

    fn one(&mut self) -> bool {
        if self.next_is(&["("]) {
            let met = self.any();
            return self.next_is(&[")"]) && met;
        }
        let mut name = self.words.get(self.at).copied().unwrap_or_default().to_string();
        self.at += 1;
        if self.next_is(&["WITH"]) {
            name = format!("{name} WITH {}", self.words.get(self.at).copied().unwrap_or_default());
            self.at += 1;
        }
        self.allowed.contains(&name)
    }
}

#[test]
fn every_licence_is_allowed() {
    let allowed = allowed();
    let version = std::process::Command::new("rustc").arg("-vV").output().expect("rustc");
    let version = String::from_utf8(version.stdout).expect("UTF-8");
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("its host");
    let options = ["--locked", "--filter-platform", host].map(String::from).to_vec();
    let metadata = MetadataCommand::new().other_options(options).exec().expect("cargo metadata");
    assert!(metadata.packages.len() > 50, "the dependencies are not all there");
    let refused: Vec<_> = metadata
        .packages
        .iter()
        .filter(|package| {
            let licence = package.license.as_deref().unwrap_or_default();
            !Expression::met(licence, &allowed)
        })
        .map(|package| format!("{} {}: {:?}", package.name, package.version, package.license))
        .collect();
    assert!(refused.is_empty(), "not allowed in deny.toml:\n{}", refused.join("\n"));
}

#[test]
fn expressions_are_understood() {
    let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(String::from);
    for met in [
        "MIT",
        "GPL-3.0 OR MIT",
        "MIT/Apache-2.0",
        "GPL-3.0 / MIT",
        "(MIT OR GPL-3.0) AND Apache-2.0",
        "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
    ] {
        assert!(Expression::met(met, &allowed), "{met}");
    }
    for refused in ["", "GPL-3.0", "MIT AND GPL-3.0", "MIT WITH Strings", "(MIT", "MIT MIT"] {
        assert!(!Expression::met(refused, &allowed), "{refused}");
    }
}
