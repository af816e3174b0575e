//! A cluster whose manager and metadata server keep their state in a PostgreSQL.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;
#[path = "../crates/kv-postgres/tests/server/mod.rs"]
mod server;

use cluster::{TestCluster, tree};
use server::Server;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Another metadata server of a cluster.
struct Another(Child);

impl Another {
    fn start(cluster: &TestCluster) -> Self {
        let nodes = cluster.ok(&["admin", "nodes"]);
        let words = |line: &str| line.split_whitespace().map(String::from).collect::<Vec<_>>();
        let manager =
            nodes.lines().map(words).find(|line| line.get(1).is_some_and(|k| k == "mgmtd"));
        let address = manager.unwrap()[3].clone();
        let directory = cluster.path().join("meta-2");
        std::fs::create_dir_all(&directory).unwrap();
        let config = std::fs::read_to_string(cluster.path().join("meta/config.toml")).unwrap();
        let config = config.replace("id = 2\n", "id = 3\n");
        std::fs::write(directory.join("config.toml"), config).unwrap();
        let log = std::fs::File::create(cluster.path().join("logs/meta-2.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(["meta", "--mgmtd", &address, "--config"]).arg(directory.join("config.toml"));
        // Ends with this thread.
        command.env("KILN_SUPERVISOR", std::process::id().to_string());
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let another = Self(command.spawn().unwrap());
        another.await_alive(cluster);
        another
    }

    fn await_alive(&self, cluster: &TestCluster) {
        let is_alive = |line: &str| line.contains(" meta ") && line.contains(" alive ");
        for _ in 0..100 {
            if cluster.ok(&["admin", "nodes"]).lines().filter(|line| is_alive(line)).count() == 2 {
                return;
            }
            cluster.sleep(Duration::from_millis(100));
        }
        panic!("it does not join\n{}", cluster.logs());
    }
}

impl Drop for Another {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn two_metadata_servers_share_a_tree() {
    let Some(postgres) = Server::start() else { return };
    let mut cluster = TestCluster::start_on_postgres(1, 1, postgres.url());
    cluster.ok(&["mkdir", "kiln:/first"]);
    let another = Another::start(&cluster);
    for at in 0..10 {
        cluster.ok(&["mkdir", &format!("kiln:/both-{at}")]);
    }
    cluster.kill("meta");
    cluster.ok(&["mkdir", "kiln:/another"]);
    cluster.restart("meta");
    another.await_alive(&cluster);
    drop(another);
    let listed = cluster.ok(&["ls", "kiln:/"]);
    assert_eq!(listed.split_whitespace().count(), 12, "{listed}");
    cluster.check();
}

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
