//! A cluster whose manager and metadata server keep their state in a PostgreSQL.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;
#[path = "../crates/kv-postgres/tests/server/mod.rs"]
mod server;

use cluster::{TestCluster, tree};
use kiln_env::Env;
use server::Server;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A second manager of a cluster.
struct Another(Child);

impl Another {
    fn start(cluster: &TestCluster, id: u32) -> Self {
        let directory = cluster.path().join(format!("mgmtd-{id}"));
        std::fs::create_dir_all(&directory).unwrap();
        let config = cluster.path().join("mgmtd/config.toml");
        let config = std::fs::read_to_string(config).unwrap();
        let line = config.lines().find(|line| line.starts_with("id = ")).unwrap();
        let config = config.replacen(line, &format!("id = {id}"), 1);
        std::fs::write(directory.join("config.toml"), config).unwrap();
        let log = cluster.path().join(format!("logs/mgmtd-{id}.log"));
        let log = std::fs::File::create(log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(["mgmtd", "--listen", "127.0.0.1:0", "--config"]);
        command.arg(directory.join("config.toml"));
        // Ends with this thread.
        command.env("KILN_SUPERVISOR", std::process::id().to_string());
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let another = Self(command.spawn().unwrap());
        for _ in 0..150 {
            if managers(cluster).len() == 2 {
                return another;
            }
            cluster.sleep(Duration::from_millis(100));
        }
        panic!("it does not join\n{}", cluster.logs());
    }
}

/// The addresses of the living managers.
fn managers(cluster: &TestCluster) -> Vec<String> {
    let nodes = cluster.ok(&["admin", "nodes"]);
    let words = nodes.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let alive = words.filter(|words| words.len() > 3 && words[1] == "mgmtd" && words[2] == "alive");
    alive.map(|words| words[3].to_owned()).collect()
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
    let mut cluster = TestCluster::start_on_postgres(1, 1, 2, postgres.url());
    cluster.ok(&["mkdir", "kiln:/first"]);
    for at in 0..10 {
        cluster.ok(&["mkdir", &format!("kiln:/both-{at}")]);
    }
    cluster.kill("meta-1");
    cluster.ok(&["mkdir", "kiln:/second"]);
    cluster.restart("meta-1");
    cluster.kill("meta-2");
    let listed = cluster.ok(&["ls", "kiln:/"]);
    assert_eq!(listed.split_whitespace().count(), 12, "{listed}");
    cluster.restart("meta-2");
    cluster.check();
}

#[test]
fn a_cluster_and_its_postgresql_are_killed_and_go_on() {
    let Some(mut postgres) = Server::start() else { return };
    let local = tempfile::tempdir().unwrap();
    let (source, back) = (local.path().join("source"), local.path().join("back"));
    tree::make(&source, 200, 3);
    let mut cluster = TestCluster::start_on_postgres(3, 3, 1, postgres.url());
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

/// A program that writes files and reads them back, as long as it may; how long the longest step took.
fn use_files(directory: &Path, ends: &AtomicBool) -> (u32, Duration) {
    let env = Env::real();
    let (mut count, mut longest) = (0, Duration::ZERO);
    while !ends.load(Ordering::Relaxed) {
        let begun = env.now();
        let (file, content) = (directory.join(format!("{count}")), vec![count as u8; 100_000]);
        std::fs::write(&file, &content).unwrap();
        std::fs::File::open(&file).unwrap().sync_all().unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), content);
        longest = longest.max(env.now().since(begun));
        count += 1;
    }
    (count, longest)
}

#[test]
fn the_primary_manager_dies_and_programs_do_not_notice() {
    let Some(postgres) = Server::start() else { return };
    if !cluster::mount::possible() {
        return;
    }
    let mut cluster = TestCluster::start_on_postgres(3, 3, 1, postgres.url());
    let second = Another::start(&cluster, 11);
    let managers = managers(&cluster).join(",");
    let credential = cluster.path().join("credentials/admin.toml");
    let credential = credential.to_str().unwrap();
    let anywhere = ["--cluster", &managers, "--credential", credential];
    let chains = || cluster_chains(&cluster, &anywhere);
    let before = chains();
    assert!(before.contains("serving") && !before.contains("offline"), "{before}");
    let mount = cluster.mount();
    let ends = AtomicBool::new(false);
    #[allow(clippy::disallowed_methods, reason = "a program beside the test")]
    let (count, longest) = std::thread::scope(|scope| {
        let program = scope.spawn(|| use_files(mount.path(), &ends));
        cluster.sleep(Duration::from_secs(1));
        kill(cluster.pid("mgmtd"));
        let died = Env::real();
        let start = died.now();
        // Answered by the one that takes over; nobody lost its role meanwhile, nor later.
        assert_eq!(chains(), before, "{}", cluster.logs());
        println!("another manager answers after {:?}", died.now().since(start));
        cluster.sleep(Duration::from_secs(9));
        assert_eq!(chains(), before, "{}", cluster.logs());
        ends.store(true, Ordering::Relaxed);
        program.join().unwrap()
    });
    println!("{count} files, the longest took {longest:?}");
    drop(mount);
    // The first one stands by, and gets its role back when the second one ends.
    cluster.kill("mgmtd");
    cluster.restart("mgmtd");
    drop(second);
    assert_eq!(cluster_chains(&cluster, &[]), before, "{}", cluster.logs());
    let _second = Another::start(&cluster, 11);
    cluster.check();
}

fn cluster_chains(cluster: &TestCluster, place: &[&str]) -> String {
    let output = cluster.run(&[&["admin", "chains", "--json"], place].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", cluster.logs());
    String::from_utf8(output.stdout).unwrap()
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
