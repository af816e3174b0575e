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
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
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

/// A program that makes, changes, removes and reads files, and keeps one open, until it is told to end.
fn use_files(directory: &Path, ends: &AtomicBool, count: &AtomicU32) {
    use std::os::unix::fs::FileExt;
    let kept = fs::File::create_new(directory.join("kept")).unwrap();
    let reader = fs::File::open(directory.join("kept")).unwrap();
    while !ends.load(Ordering::Relaxed) {
        let at = count.load(Ordering::Relaxed);
        let (file, content) = (directory.join(format!("{at}")), vec![at as u8; 10_000]);
        fs::write(&file, &content).unwrap();
        kept.write_all_at(&at.to_le_bytes(), 0).unwrap();
        kept.sync_all().unwrap();
        fs::rename(&file, directory.join("renamed")).unwrap();
        assert_eq!(fs::read(directory.join("renamed")).unwrap(), content);
        let mut bytes = [0; 4];
        reader.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), at);
        count.store(at + 1, Ordering::Relaxed);
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
    // However slow the machine is: programs wait for a move.
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
    let (ends, count) = (AtomicBool::new(false), AtomicU32::new(0));
    #[allow(clippy::disallowed_methods, reason = "a program beside the test")]
    std::thread::scope(|scope| {
        let program = scope.spawn(|| use_files(&work, &ends, &count));
        for (number, engine) in engines.iter().enumerate() {
            cluster.sleep(Duration::from_secs(1));
            cluster.kill("meta");
            move_to(&cluster, engine, number + 1 == engines.len());
            let before = count.load(Ordering::Relaxed);
            cluster.restart("meta");
            cluster.until("the program goes on", || {
                program.is_finished() || count.load(Ordering::Relaxed) > before + 2
            });
            tree::assert_same(&source, &copied);
        }
        ends.store(true, Ordering::Relaxed);
        program.join().unwrap();
    });
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
