//! Files go in, come back through restarts, and the commands show them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use cluster::{TestCluster, tree};

#[test]
fn a_tree_comes_back_as_it_went_in_through_a_restart() {
    let local = tempfile::tempdir().unwrap();
    let (source, back) = (local.path().join("source"), local.path().join("back"));
    tree::make(&source, 400, 1);
    let mut cluster = TestCluster::start(3, 3);
    cluster.ok(&["cp", "-r", source.to_str().unwrap(), "kiln:/"]);
    cluster.down();
    cluster.up();
    cluster.ok(&["cp", "-r", "kiln:/source", back.to_str().unwrap()]);
    tree::assert_same(&source, &back);
    let checked = cluster.check();
    assert!(checked.contains("no problems"), "{checked}");
}

#[test]
fn commands_do_what_their_names_say() {
    let cluster = TestCluster::start(1, 1);
    let local = tempfile::tempdir().unwrap();
    let file = local.path().join("hello");
    std::fs::write(&file, "hello\n").unwrap();
    cluster.ok(&["mkdir", "-p", "kiln:/a/b"]);
    cluster.ok(&["cp", file.to_str().unwrap(), "kiln:/a/b/"]);
    assert_eq!(cluster.ok(&["cat", "kiln:/a/b/hello"]), "hello\n");
    assert_eq!(cluster.ok(&["ls", "kiln:/a/b"]), "hello\n");
    cluster.ok(&["mv", "kiln:/a/b/hello", "kiln:/a/world"]);
    cluster.ok(&["cp", "kiln:/a/world", "kiln:/again"]);
    let found = cluster.ok(&["find", "kiln:/"]);
    let mut found: Vec<_> = found.lines().collect();
    found.sort_unstable();
    assert_eq!(found, ["kiln:/", "kiln:/a", "kiln:/a/b", "kiln:/a/world", "kiln:/again"]);
    let stat: serde_json::Value =
        serde_json::from_str(&cluster.ok(&["stat", "--json", "kiln:/again"])).unwrap();
    assert!(stat.to_string().contains("\"length\":6"), "{stat}");
    let names = ["kiln:/a", "kiln:/again", "kiln:/a/world"];
    let stat = cluster.ok(&[&["stat", "--json"], &names[..]].concat());
    let stat: serde_json::Value = serde_json::from_str(&stat).unwrap();
    let shown: Vec<_> = stat.as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(shown, names);
    let missing = cluster.run(&["stat", "kiln:/again", "kiln:/nothing"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("kiln:/nothing"));
    // In the place of what is there.
    cluster.ok(&["cp", file.to_str().unwrap(), "kiln:/again"]);
    assert_eq!(cluster.ok(&["cat", "kiln:/again"]), "hello\n");
    cluster.ok(&["layout", "--chunk-size", "64KiB", "kiln:/a/b"]);
    cluster.ok(&["cp", file.to_str().unwrap(), "kiln:/a/b/"]);
    let layout = cluster.ok(&["layout", "kiln:/a/b", "kiln:/a/b/hello", "kiln:/a"]);
    assert_eq!(layout.matches("chunks of 64.0 KiB").count(), 2, "{layout}");
    cluster.ok(&["df"]);
    let refused = cluster.run(&["rm", "kiln:/a"]);
    assert_eq!(refused.status.code(), Some(1), "a directory wants -r");
    cluster.ok(&["rm", "-r", "kiln:/a"]);
    assert_eq!(cluster.ok(&["ls", "kiln:/"]), "again\n");
    let missing = cluster.run(&["cat", "kiln:/a"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("kiln:/a"));
    assert_eq!(cluster.run(&["cat"]).status.code(), Some(2));
}

#[test]
fn operators_see_nodes_targets_and_chains() {
    let cluster = TestCluster::start(3, 3);
    for what in ["nodes", "targets", "chains", "chain-table", "config"] {
        let shown = cluster.ok(&["admin", what]);
        assert!(!shown.trim().is_empty(), "admin {what} shows something");
    }
    let chains: serde_json::Value =
        serde_json::from_str(&cluster.ok(&["admin", "chains", "--json"])).unwrap();
    let text = chains.to_string();
    assert_eq!(text.matches("\"serving\"").count(), 18, "6 chains of 3: {text}");
}
