//! Who may name whom. ARCHITECTURE.md shows the same table; change both together, with a reason.
//!
//! A room may also name what the rooms that it may name may name. Tests may name engines and simulators
//! beside that, but never another server than their own.

use cargo_metadata::{DependencyKind, MetadataCommand, Package};
use std::collections::{BTreeMap, BTreeSet};

/// Room, and the rooms that it may name.
const ROOMS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("config", &["types"]),
    ("env", &["types"]),
    ("chain", &["types"]),
    ("wire", &["types"]),
    ("rpc", &["types"]),
    ("memory", &["types"]),
    ("telemetry", &["types"]),
    ("disk", &["types", "env", "telemetry", "memory"]),
    ("net", &["types", "env", "telemetry", "memory", "wire"]),
    ("kv", &["types", "env", "telemetry", "memory"]),
    ("kv-embedded", &["kv"]),
    ("chunk-store", &["disk"]),
    // Registration, heartbeats, lease and routing: the same for servers, and in part for clients.
    ("manager-link", &["chain", "rpc", "net"]),
    ("client", &["chain", "net", "rpc", "config", "manager-link"]),
    ("mgmtd", &["chain", "kv", "rpc", "net", "config"]),
    ("meta-server", &["kv", "rpc", "net", "client", "config", "manager-link"]),
    ("storage-server", &["chain", "chunk-store", "net", "rpc", "config", "manager-link"]),
    // It draws a new cluster's id and key, and derives its first credential.
    ("launch", &["config", "env", "wire"]),
    ("bench", ANY),
    ("cli", ANY),
];

/// What drives the others names what it drives.
const ANY: &[&str] = &["*"];
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

/// What each room may name, directly or through others.
fn allowed() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut allowed = BTreeMap::<_, BTreeSet<_>>::new();
    // The table names a room after all that it may name, so one pass is enough; and no cycle fits in it.
    for (room, direct) in ROOMS {
        let mut all = BTreeSet::new();
        for other in *direct {
            if *other != "*" {
                let below = allowed.get(other).unwrap_or_else(|| panic!("{room} before {other}"));
                all.extend(below);
            }
            all.insert(*other);
        }
        allowed.insert(*room, all);
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
        } else if !arrow.in_tests && !may.contains(to) && !may.contains("*") {
            wrong.push(format!("{from} names {to}"));
        }
    }
    assert!(wrong.is_empty(), "against the table in tests/arrows.rs:\n{}", wrong.join("\n"));
}

#[test]
fn engines_are_named_by_the_command_alone() {
    let metadata = MetadataCommand::new().no_deps().exec().expect("cargo metadata");
    for arrow in arrows(&metadata.packages) {
        let fine = arrow.in_tests || arrow.from == "cli" || !arrow.to.starts_with("kv-");
        assert!(fine, "{} names the engine {}", arrow.from, arrow.to);
    }
}
