//! Settings of the whole cluster reach running servers, outlive the manager, and have a history.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use cluster::TestCluster;
use cluster::mount::wait_for;
use std::time::Duration;

/// Waits until a server's log has something.
fn await_log(cluster: &TestCluster, server: &str, text: &str) {
    let log = cluster.path().join(format!("logs/{server}.log"));
    let has = || std::fs::read_to_string(&log).is_ok_and(|log| log.contains(text)).then_some(());
    let found = wait_for(Duration::from_secs(10), has);
    assert!(found.is_some(), "'{text}' is not in the log of {server}\n{}", cluster.logs());
}

#[test]
fn a_setting_reaches_running_servers_and_stays() {
    let mut cluster = TestCluster::start(2, 1);
    cluster.ok(&["admin", "config", "set", "storage.recovery.rate", "50MiB"]);
    cluster.ok(&["admin", "config", "set", "storage.log.slow", "1us"]);
    for server in ["storage-1", "storage-2"] {
        await_log(
            &cluster,
            server,
            "\"storage.log.slow\": \"1us\", \"storage.recovery.rate\": \"50MiB\"",
        );
    }
    let file = cluster.path().join("file");
    std::fs::write(&file, [7; 4096]).unwrap();
    cluster.ok(&["cp", file.to_str().unwrap(), "kiln:/"]);
    let slow = |server| {
        let log = cluster.path().join(format!("logs/{server}.log"));
        std::fs::read_to_string(log).unwrap().contains("slow request")
    };
    assert!(slow("storage-1") || slow("storage-2"), "everything is slow now");
    let wrong = cluster.run(&["admin", "config", "set", "storage.scrub.rate", "much"]);
    assert!(!wrong.status.success());
    let wrong = cluster.run(&["admin", "config", "set", "storage.disks", "[]"]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(said.contains("storage.scrub.rate"), "it says what there is: {said}");

    cluster.kill_all();
    cluster.up();
    let get = ["admin", "config", "get", "storage.recovery.rate"];
    assert!(cluster.ok(&get).contains("50MiB"));
    cluster.ok(&["admin", "config", "reset", "storage.recovery.rate"]);
    assert!(!cluster.ok(&get).contains("50MiB"));
    let history = cluster.ok(&["admin", "config", "history", "storage.recovery.rate"]);
    let lines: Vec<_> = history.lines().skip(1).collect();
    assert_eq!(lines.len(), 2, "{history}");
    assert!(lines.iter().all(|line| line.contains(" admin ")), "{history}");
    // What was logged before its restart shows that it had it at its start.
    await_log(
        &cluster,
        "storage-1",
        "the cluster's settings are taken up settings={\"storage.log.slow\"",
    );
}
