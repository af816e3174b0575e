//! Servers are drained, added and lost for good under a program that writes: every target moves, and every
//! byte is there.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use cluster::{TestCluster, tree};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Stdio};

/// A copy that goes on while the operator works.
fn copy(cluster: &TestCluster, source: &Path, name: &str) -> Child {
    cluster.ok(&["mkdir", &format!("kiln:/{name}")]);
    let to = format!("kiln:/{name}/");
    let mut command = cluster.command(["cp", "-r", source.to_str().unwrap(), &to]);
    command.stdout(Stdio::null()).spawn().unwrap()
}

fn list(cluster: &TestCluster, what: &str) -> Vec<serde_json::Value> {
    serde_json::from_str(&cluster.ok(&["admin", what, "--json"])).unwrap()
}

/// Targets by node.
fn targets(cluster: &TestCluster) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    for target in list(cluster, "targets") {
        *counts.entry(target["node"].as_u64().unwrap()).or_default() += 1;
    }
    counts
}

/// The disks of a node that are there.
fn disks(cluster: &TestCluster, node: u64) -> Vec<String> {
    let mut disks = list(cluster, "disks");
    disks.retain(|disk| disk["node"] == node && disk["present"] == true);
    disks.iter().map(|disk| disk["disk"].as_str().unwrap().to_string()).collect()
}

fn assert_content(cluster: &TestCluster, source: &Path, local: &Path, name: &str) {
    let back = local.join(format!("{name}-back"));
    cluster.ok(&["cp", "-r", &format!("kiln:/{name}/source"), back.to_str().unwrap()]);
    tree::assert_same(source, &back);
    std::fs::remove_dir_all(&back).unwrap();
}

fn assert_refused(cluster: &TestCluster, arguments: &[&str], why: &str) {
    let output = cluster.run(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(why), "{arguments:?}: {said}");
}

#[test]
fn targets_move_under_a_writer_and_nothing_is_lost() {
    let local = tempfile::tempdir().unwrap();
    let source = local.path().join("source");
    tree::make(&source, 300, 5);
    let mut cluster = TestCluster::start(4, 3);
    cluster.configure("mgmtd", "after", "\"4s\"");
    cluster.kill("mgmtd");
    cluster.restart("mgmtd");
    assert!(copy(&cluster, &source, "first").wait().unwrap().success());

    // A server is drained, and leaves.
    let mut writer = copy(&cluster, &source, "second");
    cluster.ok(&["admin", "drain", "101", "--wait"]);
    assert_eq!(targets(&cluster), BTreeMap::from([(102, 8), (103, 8), (104, 8)]));
    assert!(writer.wait().unwrap().success());
    assert_refused(&cluster, &["admin", "forget-node", "101"], "is alive");
    cluster.kill("storage-1");
    cluster.await_node("dead");
    cluster.ok(&["admin", "forget-node", "101"]);
    cluster.check();

    // Another one comes and gets its share, although the manager dies meanwhile.
    let _fifth = cluster.add_storage(5);
    cluster.await_node("105");
    let mut writer = copy(&cluster, &source, "third");
    cluster.ok(&["admin", "rebalance"]);
    cluster.kill("mgmtd");
    cluster.restart("mgmtd");
    let share = BTreeMap::from([(102, 6), (103, 6), (104, 6), (105, 6)]);
    cluster.until("a share for each", || targets(&cluster) == share);
    assert!(writer.wait().unwrap().success());
    cluster.await_serving(24);

    // One is lost for good: what it had is rebuilt by itself.
    let mut writer = copy(&cluster, &source, "fourth");
    cluster.kill("storage-2");
    let rest = BTreeMap::from([(103, 8), (104, 8), (105, 8)]);
    cluster.until("everything rebuilt", || targets(&cluster) == rest);
    assert!(writer.wait().unwrap().success());
    cluster.await_serving(24);
    cluster.ok(&["admin", "forget-node", "102"]);
    assert_refused(
        &cluster,
        &["admin", "recover-chain", "1", "--from", "1", "--i-accept-data-loss"],
        "serves",
    );

    // A disk is replaced by another one of its server: no other server could take its targets.
    let old = disks(&cluster, 103).remove(0);
    cluster.add_disk("storage-3");
    cluster.kill("storage-3");
    cluster.restart("storage-3");
    cluster.until("the new disk", || disks(&cluster, 103).len() == 2);
    let mut writer = copy(&cluster, &source, "fifth");
    cluster.ok(&["admin", "replace-disk", &old, "--wait"]);
    assert!(writer.wait().unwrap().success());
    assert_eq!(targets(&cluster), rest);
    assert!(!cluster.ok(&["admin", "targets"]).contains(&old));
    cluster.await_serving(24);

    // More chains are for new files; the others stay where they are.
    cluster.ok(&["admin", "chain-table", "extend", "--targets-per-disk", "10"]);
    cluster.await_serving(30);
    assert!(copy(&cluster, &source, "sixth").wait().unwrap().success());
    for name in ["first", "second", "third", "fourth", "fifth", "sixth"] {
        assert_content(&cluster, &source, local.path(), name);
    }
    cluster.check();
}
