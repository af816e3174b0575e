//! Servers die during a copy: what was reported as done is there, the rest is whole or absent.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use cluster::{TestCluster, tree};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

/// A copy under way, and the files that it has reported so far.
struct Copy {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Copy {
    fn start(cluster: &TestCluster, source: &Path) -> Self {
        let mut command = cluster.command(["cp", "-r", "-v", source.to_str().unwrap(), "kiln:/"]);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        #[allow(
            clippy::disallowed_methods,
            reason = "a test reads a pipe beside the test's thread"
        )]
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|l| sender.send(l))
        });
        Self { child, lines }
    }

    fn wait_for(&self, count: usize) -> Vec<String> {
        let next = || self.lines.recv_timeout(Duration::from_secs(60)).expect("progress");
        (0..count).map(|_| next()).collect()
    }

    fn finish(mut self) -> (bool, Vec<String>, String) {
        let output = self.child.wait().unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut said).unwrap();
        (output.success(), self.lines.iter().collect(), said)
    }
}

/// The part of a reported path behind the copied directory's name.
fn relative(line: &str) -> &str {
    line.split_once("source/").map_or("", |(_, rest)| rest.trim_end())
}

/// What came back is what went in, and everything that was reported came back.
fn check_survivors(source: &Path, back: &Path, reported: &[String]) {
    let names = tree::paths(back);
    for path in &names {
        let (left, right) = (source.join(path), back.join(path));
        let meta = std::fs::symlink_metadata(&right).unwrap();
        assert!(left.symlink_metadata().is_ok(), "{} was never copied", path.display());
        if meta.is_file() {
            let same = std::fs::read(&left).unwrap() == std::fs::read(&right).unwrap();
            assert!(same, "{} is not whole", path.display());
        }
    }
    for line in reported {
        let path = Path::new(relative(line));
        assert!(names.iter().any(|name| name == path), "{line} was reported and is gone");
    }
}

#[test]
fn kill_9_of_every_server_at_once_loses_nothing_that_was_reported() {
    let local = tempfile::tempdir().unwrap();
    let (source, back) = (local.path().join("source"), local.path().join("back"));
    tree::make(&source, 600, 2);
    let mut cluster = TestCluster::start(3, 3);
    let mut copy = Copy::start(&cluster, &source);
    let mut reported = copy.wait_for(250);
    cluster.kill_all();
    copy.child.kill().unwrap();
    reported.extend(copy.finish().1);
    cluster.up();
    cluster.ok(&["cp", "-r", "kiln:/source", back.to_str().unwrap()]);
    // Temporary names of files that were under way are no survivors.
    for path in tree::paths(&back).iter().rev() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with(".kiln-cp") {
            std::fs::remove_file(back.join(path)).unwrap();
        }
    }
    check_survivors(&source, &back, &reported);
    // And the cluster takes writes as before.
    cluster.ok(&["rm", "-r", "kiln:/source"]);
    cluster.ok(&["cp", "-r", source.to_str().unwrap(), "kiln:/"]);
    // Replicas agree, and no chunk is without a file.
    cluster.check();
}

#[test]
fn a_copy_goes_on_when_one_storage_server_of_three_dies() {
    let local = tempfile::tempdir().unwrap();
    let (source, back) = (local.path().join("source"), local.path().join("back"));
    tree::make(&source, 500, 3);
    let mut cluster = TestCluster::start(3, 3);
    let copy = Copy::start(&cluster, &source);
    copy.wait_for(100);
    cluster.kill("storage-2");
    let (done, _, said) = copy.finish();
    assert!(done, "{said}\n{}", cluster.logs());
    cluster.ok(&["cp", "-r", "kiln:/source", back.to_str().unwrap()]);
    tree::assert_same(&source, &back);
    // Back again, it gets what it missed, and can do without the others.
    cluster.restart("storage-2");
    cluster.await_serving(18);
    cluster.check();
    cluster.kill("storage-1");
    cluster.kill("storage-3");
    let again = local.path().join("again");
    cluster.ok(&["cp", "-r", "kiln:/source", again.to_str().unwrap()]);
    tree::assert_same(&source, &again);
}

#[test]
fn a_quick_restart_of_each_server_in_turn_is_a_pause() {
    let local = tempfile::tempdir().unwrap();
    let (source, back) = (local.path().join("source"), local.path().join("back"));
    tree::make(&source, 700, 4);
    let mut cluster = TestCluster::start(3, 3);
    let copy = Copy::start(&cluster, &source);
    copy.wait_for(50);
    for server in ["storage-1", "meta", "storage-3", "mgmtd", "storage-2"] {
        cluster.kill(server);
        cluster.restart(server);
        cluster.sleep(Duration::from_millis(700));
    }
    let (done, _, said) = copy.finish();
    assert!(done, "{said}\n{}", cluster.logs());
    cluster.ok(&["cp", "-r", "kiln:/source", back.to_str().unwrap()]);
    tree::assert_same(&source, &back);
    cluster.await_serving(18);
    cluster.check();
}
