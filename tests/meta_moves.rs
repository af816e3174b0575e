//! The metadata of a cluster in use moves from engine to engine, and every move is interrupted.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;
#[path = "../crates/kv-postgres/tests/server/mod.rs"]
mod server;

use cluster::mount::{ended, possible};
use cluster::{TestCluster, tree};
use server::Server;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Runs a command until it is not killed on its way any more; each time it gets a bit further. How often it was.
fn insist(cluster: &TestCluster, arguments: &[&str]) -> u32 {
    let mut patience = Duration::from_millis(30);
    for attempt in 1..40 {
        patience = patience * 13 / 10;
        let mut command: Command = cluster.command(arguments);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        if let Some(status) = ended(&mut child, patience) {
            let said = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
            assert!(status.success(), "{arguments:?}: {said}");
            return attempt - 1;
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    panic!("{arguments:?} never ends");
}

/// An engine, as keys and values of the configuration.
struct Engine {
    name: &'static str,
    settings: Vec<(&'static str, String)>,
}

/// Moves the metadata of `cluster`, whose metadata server stands still.
fn move_to(cluster: &TestCluster, engine: &Engine, replace: bool) {
    let (old, dump) = (cluster.path().join("meta/config.toml"), cluster.path().join(engine.name));
    let [old, dump] = [&old, &dump].map(|path| path.to_str().unwrap());
    let exports = insist(cluster, &["admin", "meta", "export", "--config", old, dump]);
    for (key, value) in &engine.settings {
        cluster.configure("meta", key, value);
    }
    let mut import = vec!["admin", "meta", "import", "--config", old, dump];
    import.extend(replace.then_some("--replace"));
    let imports = insist(cluster, &import);
    let checked = cluster.ok(&["admin", "meta", "check", "--config", old]);
    assert!(checked.starts_with("no problems"), "{checked}");
    println!("to {}: export killed {exports} times, import {imports} times", engine.name);
}

/// Makes, changes, renames and reads files in a directory, keeps one open, and counts in a local file, until that is
/// gone. A process of its own: what this one starts would close a thread's files on its way, and wait for the mount.
const PROGRAM: &str = r#"
import os, sys
work, counter = sys.argv[1:]
kept = open(f"{work}/kept", "xb", buffering=0)
reader = open(f"{work}/kept", "rb", buffering=0)
at = 0
while os.path.exists(counter):
    path, content = f"{work}/{at}", b"%d " % at * 2000
    with open(path, "wb") as file: file.write(content)
    os.pwrite(kept.fileno(), b"%08d" % at, 0)
    os.fsync(kept.fileno())
    os.rename(path, f"{work}/renamed")
    with open(f"{work}/renamed", "rb") as file: assert file.read() == content
    assert os.pread(reader.fileno(), 8, 0) == b"%08d" % at
    at += 1
    # Gone: the end.
    try:
        with open(counter, "r+") as file: file.write(str(at))
    except FileNotFoundError: break
"#;

struct Program {
    child: Child,
    counter: PathBuf,
}

impl Program {
    fn start(work: &Path, counter: PathBuf) -> Self {
        fs::write(&counter, "0").unwrap();
        let mut command = Command::new("python3");
        let child = command.args(["-c", PROGRAM]).args([work, &counter]).spawn().unwrap();
        Self { child, counter }
    }

    /// How many rounds it has made.
    fn count(&self) -> u64 {
        fs::read_to_string(&self.counter).unwrap().parse().unwrap_or(0)
    }

    /// Ends it: nothing went wrong.
    fn end(mut self) {
        fs::remove_file(&self.counter).unwrap();
        let status = ended(&mut self.child, Duration::from_secs(60));
        assert!(status.is_some_and(|status| status.success()), "{status:?}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
    }
}

#[cfg(feature = "foundationdb")]
fn foundationdb(directory: &Path) -> Vec<Engine> {
    let file = directory.join("fdb.cluster");
    fs::write(&file, format!("directory = {}\n", directory.join("double").display())).unwrap();
    let double = std::env::current_exe().unwrap().with_file_name("libkiln_fdb_double.so");
    assert!(double.exists(), "cargo build -p kiln-fdb-double builds it");
    let text = |path: &Path| format!("\"{}\"", path.display());
    let settings = vec![
        ("engine", "\"foundationdb\"".into()),
        ("cluster_file", text(&file)),
        ("library", text(&double)),
    ];
    vec![Engine { name: "foundationdb", settings }]
}

#[cfg(not(feature = "foundationdb"))]
fn foundationdb(_directory: &Path) -> Vec<Engine> {
    Vec::new()
}

#[test]
fn metadata_moves_between_engines_under_programs() {
    let Some(postgres) = Server::start() else { return };
    if !possible() {
        return;
    }
    let local = tempfile::tempdir().unwrap();
    let source: PathBuf = local.path().join("source");
    tree::make(&source, 600, 5);
    let mut cluster = TestCluster::start(3, 3);
    // However slow the machine is: the program waits for a move.
    let mount = cluster.mount_with(&["--io-timeout", "10m"]);
    let copied = mount.path().join("source");
    cluster.ok(&["cp", "-r", source.to_str().unwrap(), "kiln:/"]);
    let work = mount.make_dir("work");
    let url = format!("\"{}\"", postgres.url());
    let to = |engine: &str| ("engine", format!("\"{engine}\""));
    let mut engines =
        vec![Engine { name: "postgres", settings: vec![to("postgres"), ("url", url)] }];
    engines.extend(foundationdb(local.path()));
    engines.push(Engine { name: "embedded", settings: vec![to("embedded")] });
    let mut program = Program::start(&work, local.path().join("count"));
    for (number, engine) in engines.iter().enumerate() {
        cluster.sleep(Duration::from_secs(1));
        cluster.kill("meta");
        move_to(&cluster, engine, number + 1 == engines.len());
        let before = program.count();
        cluster.restart("meta");
        cluster.until("the program goes on", || program.count() > before + 2);
        assert_eq!(program.child.try_wait().unwrap(), None, "no program sees an error");
        tree::assert_same(&source, &copied);
    }
    program.end();
    // What was left behind serves nobody.
    cluster.configure("meta", "engine", "\"postgres\"");
    let config = cluster.path().join("meta/config.toml");
    let refused =
        cluster.run(&["meta", "--config", config.to_str().unwrap(), "--mgmtd", "127.0.0.1:1"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("was exported"), "{said}");
    cluster.configure("meta", "engine", "\"embedded\"");
    cluster.check();
    drop(mount);
}
