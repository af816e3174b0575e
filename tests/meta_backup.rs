//! A backup of the metadata is made while files change, and put back later: what is newer stays where it is.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use cluster::{TestCluster, tree};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

fn copy(cluster: &TestCluster, from: &Path, to: &str) {
    cluster.ok(&["cp", "-r", from.to_str().unwrap(), to]);
}

#[test]
fn an_older_backup_is_put_back_and_nothing_newer_is_removed() {
    let local = tempfile::tempdir().unwrap();
    let path = |name: &str| local.path().join(name);
    let (old, new) = (path("old"), path("new"));
    tree::make(&old, 300, 1);
    tree::make(&new, 100, 2);
    let mut cluster = TestCluster::start(3, 3);
    copy(&cluster, &old, "kiln:/");
    // Meanwhile files come and go.
    let (ends, place) = (AtomicBool::new(false), cluster.path().to_path_buf());
    #[allow(clippy::disallowed_methods, reason = "a program beside the test")]
    let backup = std::thread::scope(|scope| {
        let churn = || {
            for number in 0.. {
                let name = format!("kiln:/churn-{number}");
                let made = [&["cp", "/proc/self/status", &name][..], &["rm", &name]];
                let mut commands = made.iter().map(|arguments| cluster_command(&place, arguments));
                if ends.load(Ordering::Relaxed) || !commands.all(|ok| ok) {
                    break;
                }
            }
        };
        let churn = scope.spawn(churn);
        let dump = path("backup");
        let said = cluster.ok(&["admin", "meta", "backup", dump.to_str().unwrap()]);
        assert!(said.contains("pairs are in"), "{said}");
        ends.store(true, Ordering::Relaxed);
        churn.join().unwrap();
        dump
    });
    assert!(!path("backup.part").exists());
    copy(&cluster, &new, "kiln:/");
    cluster.ok(&["rm", "-r", "kiln:/old/d1"]);
    cluster.down();

    // The store is lost.
    std::fs::rename(cluster.path().join("meta/kv"), path("lost")).unwrap();
    let config = cluster.path().join("meta/config.toml");
    let place = ["--config", config.to_str().unwrap()];
    let import = ["admin", "meta", "import", backup.to_str().unwrap()];
    cluster.ok(&[&import[..], &place].concat());
    let checked = cluster.ok(&[&["admin", "meta", "check"][..], &place].concat());
    assert!(checked.starts_with("no problems"), "{checked}");
    cluster.up();

    // What was there then is there, less what was removed since; what was made since is told of, and kept.
    let checked = || {
        let output = cluster.run(&["admin", "check", "--json", "--remove-leaks"]);
        String::from_utf8(output.stdout).unwrap()
    };
    cluster.until("the check ends", || checked().contains("\"newer\""));
    let (first, second) = (checked(), checked());
    for said in [&first, &second] {
        assert!(said.contains("\"kind\": \"newer\""), "nothing newer is removed: {said}");
        assert!(!said.contains("\"kind\": \"leak\""), "{said}");
    }
    assert_eq!(newer(&first), newer(&second));
    assert!(newer(&first) > 0);
    let back = path("back");
    copy_back(&cluster, "kiln:/old/d0", &back);
    tree::assert_same(&old.join("d0"), &back);
    // New files do not meet what is left of those.
    copy(&cluster, &new, "kiln:/");
    let again = path("again");
    copy_back(&cluster, "kiln:/new", &again);
    tree::assert_same(&new, &again);
    assert_eq!(newer(&checked()), newer(&first));
}

fn newer(report: &str) -> usize {
    report.matches("\"kind\": \"newer\"").count()
}

fn copy_back(cluster: &TestCluster, from: &str, to: &Path) {
    cluster.ok(&["cp", "-r", from, to.to_str().unwrap()]);
}

/// Runs a command from another thread than the cluster's.
fn cluster_command(cluster: &Path, arguments: &[&str]) -> bool {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(arguments).env("KILN_DIR", cluster);
    command.output().unwrap().status.success()
}
