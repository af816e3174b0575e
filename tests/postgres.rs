//! A cluster whose manager and metadata server keep their state in a PostgreSQL.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;
#[path = "../crates/kv-postgres/tests/server/mod.rs"]
mod server;

use cluster::{TestCluster, tree};
use server::Server;

#[test]
fn a_cluster_and_its_postgresql_are_killed_and_go_on() {
    let Some(mut postgres) = Server::start() else { return };
    let local = tempfile::tempdir().unwrap();
    let (source, back) = (local.path().join("source"), local.path().join("back"));
    tree::make(&source, 200, 3);
    let mut cluster = TestCluster::start_on_postgres(3, 3, postgres.url());
    assert!(!cluster.path().join("meta/kv").exists(), "nothing is kept in this machine's files");
    cluster.ok(&["cp", "-r", source.to_str().unwrap(), "kiln:/"]);
    // Everything at once, then the PostgreSQL alone: the servers connect anew.
    cluster.kill_all();
    postgres.kill();
    postgres.run();
    cluster.up();
    cluster.ok(&["mkdir", "kiln:/after"]);
    postgres.kill();
    postgres.run();
    cluster.ok(&["mkdir", "kiln:/later"]);
    cluster.ok(&["cp", "-r", "kiln:/source", back.to_str().unwrap()]);
    assert_eq!(tree::paths(&source), tree::paths(&back));
    let listed = cluster.ok(&["ls", "kiln:/"]);
    assert!(["after", "later", "source"].iter().all(|name| listed.contains(name)), "{listed}");
    cluster.check();
}
