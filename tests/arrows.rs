//! Who may name whom. The table is ARCHITECTURE.md's; change it there, with a reason.
//!
//! A room may also name what the rooms that it may name may name. Tests may name engines and simulators
//! beside that, but never another server than their own.

use cargo_metadata::{DependencyKind, MetadataCommand, Package};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What drives the others names what it drives.
const DRIVERS: &[&str] = &["bench", "cli", "sim", "faults"];
const SERVERS: &[&str] = &["mgmtd", "meta-server", "storage-server"];

struct Arrow {
    from: String,
    to: String,
    in_tests: bool,
}

fn room(package: &str) -> Option<&str> {
    package.strip_prefix("kiln-")
}

fn arrows(packages: &[Package]) -> Vec<Arrow> {
    let of = |package: &Package| {
        let from = room(&package.name).expect("a crate here is called kiln-ROOM").to_string();
        let inside = package.dependencies.iter().filter_map(|dependency| {
            let in_tests = dependency.kind == DependencyKind::Development;
            Some((room(&dependency.name)?.to_string(), in_tests))
        });
        let arrow = |(to, in_tests)| Arrow { from: from.clone(), to, in_tests };
        inside.map(arrow).collect::<Vec<_>>()
    };
    packages.iter().flat_map(of).collect()
}

/// Each room of ARCHITECTURE.md's table `| room | what it is | may name |`, and what it may name.
fn table() -> Vec<(String, Vec<String>)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ARCHITECTURE.md");
    let text = std::fs::read_to_string(file).expect("ARCHITECTURE.md");
    let rows = text.lines().skip_while(|line| !line.starts_with("| room | what it is | may name"));
    let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
    let row = |line: &str| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [room, _, names] = cells[..] else { panic!("three cells: {line}") };
        let room =
            room.trim_matches('`').trim_start_matches("crates/").trim_start_matches("tests/");
        let room = room.to_string();
        let names = names.split(',').map(|name| name.trim().to_string());
        let names = names.filter(|name| !name.contains(' ')).collect();
        (room, names)
    };
    rows.map(row).filter(|(room, _)| room != "tests").collect()
}

/// What each room may name, directly or through others.
fn allowed() -> BTreeMap<String, BTreeSet<String>> {
    let table = table();
    assert!(table.len() > 15, "ARCHITECTURE.md has the table of the rooms");
    let mut allowed = BTreeMap::<String, BTreeSet<String>>::new();
    // A room stands below all that it may name, so one pass is enough; and no cycle fits in.
    for (room, direct) in table {
        let mut all = BTreeSet::new();
        for other in direct {
            let below = allowed.get(&other);
            all.extend(below.unwrap_or_else(|| panic!("{room}: {other} is not above")).clone());
            all.insert(other);
        }
        allowed.insert(room, all);
    }
    allowed
}

#[test]
fn rooms_name_only_what_the_table_allows() {
    let metadata = MetadataCommand::new().no_deps().exec().expect("cargo metadata");
    let allowed = allowed();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        if !allowed.contains_key(room(&package.name).unwrap_or_default()) {
            wrong.push(format!("{} is not in the table", package.name));
        }
    }
    for arrow in arrows(&metadata.packages) {
        let Some(may) = allowed.get(arrow.from.as_str()) else { continue };
        let (from, to) = (arrow.from.as_str(), arrow.to.as_str());
        if SERVERS.contains(&from) && SERVERS.contains(&to) && from != to {
            wrong.push(format!("{from} names the server {to}"));
        } else if !arrow.in_tests && !may.contains(to) && !DRIVERS.contains(&from) {
            wrong.push(format!("{from} names {to}"));
        }
    }
    assert!(wrong.is_empty(), "against the table in ARCHITECTURE.md:\n{}", wrong.join("\n"));
}

#[test]
fn engines_are_named_by_the_command_alone() {
    let metadata = MetadataCommand::new().no_deps().exec().expect("cargo metadata");
    for arrow in arrows(&metadata.packages) {
        let fine = arrow.in_tests || arrow.from == "cli" || !arrow.to.starts_with("kv-");
        assert!(fine, "{} names the engine {}", arrow.from, arrow.to);
    }
}
