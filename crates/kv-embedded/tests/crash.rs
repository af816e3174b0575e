//! kill -9, power loss and failing syncs, on a child process that writes as fast as it can.
//!
//! The child is this test binary again, with `KILN_KV_CHILD` set. It notes every acknowledged commit in
//! a file beside the store; the parent kills it, takes what is left, and compares.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod power;
mod workload;

use kiln_env::Env;
use power::{Left, Shim};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use workload::{Acknowledged, verify};

/// One child: where it works, and what the shim does to it.
struct Child<'a> {
    root: &'a Path,
    acknowledged: &'a Path,
    shim: Option<(&'a Shim, &'a Path)>,
    swallow: Option<&'a str>,
}

impl Child<'_> {
    fn command(&self, mode: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
        command.env("KILN_KV_CHILD", mode).env("KILN_KV_ROOT", self.root);
        command.env("KILN_KV_ACKNOWLEDGED", self.acknowledged).stdout(Stdio::null());
        if let Some((shim, shadow)) = self.shim {
            command.env("LD_PRELOAD", &shim.library);
            command.env("POWERLOSS_ROOT", self.root).env("POWERLOSS_SHADOW", shadow);
        }
        if let Some(kind) = self.swallow {
            command.env("POWERLOSS_SWALLOW", kind);
        }
        command
    }

    /// Lets the child run for `time` and until it has `least` acknowledged commits, and kills it.
    async fn run_and_kill(&self, env: &Env, mode: &str, time: Duration, least: usize) {
        let mut child = self.command(mode).spawn().unwrap();
        let deadline = env.deadline_after(Duration::from_secs(30));
        while self.shim.is_some_and(|(_, shadow)| !shadow.join("ready").exists()) {
            assert!(!deadline.passed(env.now()), "the shim does not start");
            env.sleep(Duration::from_millis(1)).await;
        }
        env.sleep(time).await;
        while Acknowledged::read(self.acknowledged).count() < least {
            assert!(!deadline.passed(env.now()), "the child acknowledges too little");
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
            env.sleep(Duration::from_millis(5)).await;
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "the child ended by itself: {status}");
    }
}

/// Not a test of its own: what the children of the other tests run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(mode) = std::env::var("KILN_KV_CHILD") else { return };
    let variable = |name| PathBuf::from(std::env::var_os(name).unwrap());
    let (root, acknowledged) = (variable("KILN_KV_ROOT"), variable("KILN_KV_ACKNOWLEDGED"));
    match mode.as_str() {
        "write" => workload::write(&root.join("kv"), 0, &acknowledged).await,
        "bulk" => workload::write(&root.join("kv"), 10, &acknowledged).await,
        "fail" => workload::write_until_failure(&root.join("kv"), &acknowledged).await,
        other => panic!("unknown mode {other}"),
    }
}

fn seed(env: &Env) -> u64 {
    let given = std::env::var("KILN_KV_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| env.random_u64());
    println!("seed: KILN_KV_SEED={seed}");
    seed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_loses_nothing_acknowledged() {
    let env = Env::real();
    let mut random = fastrand::Rng::with_seed(seed(&env));
    let directory = tempfile::tempdir().unwrap();
    let acknowledged = directory.path().join("acknowledged");
    let root = directory.path().join("disk");
    std::fs::create_dir(&root).unwrap();
    let child = Child { root: &root, acknowledged: &acknowledged, shim: None, swallow: None };
    for round in 0..8 {
        let time = Duration::from_millis(random.u64(..[60, 500][round % 2]));
        child.run_and_kill(&env, "write", time, 0).await;
        let outcome = verify(&root.join("kv"), &Acknowledged::read(&acknowledged)).await;
        assert_eq!(outcome, Ok(()), "round {round}");
    }
    assert!(Acknowledged::read(&acknowledged).count() > 100, "the children wrote too little");
}

/// Kills the child under the shim, again and again, and goes on with what a power loss would have left;
/// says what was lost.
async fn lose_power(
    shim: &Shim,
    directory: &Path,
    mode: &str,
    swallow: Option<&str>,
) -> Result<(), String> {
    let env = Env::real();
    let mut random = fastrand::Rng::with_seed(seed(&env));
    let acknowledged = directory.join("acknowledged");
    let mut root = directory.join("disk");
    std::fs::create_dir(&root).unwrap();
    // Without a sync each round must have something to lose, and must lose all that it may.
    let (rounds, least) = match (mode, swallow) {
        ("bulk", _) | (_, Some(_)) => (2, 110),
        _ => (10, 0),
    };
    for round in 0..rounds {
        let shadow = directory.join(format!("shadow {round}"));
        std::fs::create_dir(&shadow).unwrap();
        let shim = Some((shim, shadow.as_path()));
        let child = Child { root: &root, acknowledged: &acknowledged, shim, swallow };
        let time = Duration::from_millis(random.u64(..[60, 500][round % 2]));
        child.run_and_kill(&env, mode, time, least * (round + 1)).await;
        let all = swallow.is_some() || random.bool();
        let left = if all { Left::OnlySynced } else { Left::Mixed };
        let next = directory.join(format!("disk {round}"));
        power::reconstruct(&shadow, &root, &next, left, &mut random);
        let outcome = verify(&next.join("kv"), &Acknowledged::read(&acknowledged)).await;
        outcome.map_err(|fault| format!("round {round}, {left:?}: {fault}"))?;
        std::fs::remove_dir_all(&root).unwrap();
        root = next;
    }
    if mode == "bulk" {
        let names = std::fs::read_dir(root.join("kv/store/tree")).unwrap();
        let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(names.any(|name| name.ends_with(".jnl") && name != "0.jnl"), "no second journal");
    }
    assert!(Acknowledged::read(&acknowledged).count() > 100, "the children wrote too little");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_loss_loses_nothing_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let Some(shim) = Shim::build(directory.path()) else { return };
    assert_eq!(lose_power(&shim, directory.path(), "write", None).await, Ok(()));
}

/// The same with so much data that journals are sealed and removed on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_loss_across_journals_loses_nothing_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let Some(shim) = Shim::build(directory.path()) else { return };
    assert_eq!(lose_power(&shim, directory.path(), "bulk", None).await, Ok(()));
}

/// The tests above can fail: with one kind of sync left out, the first one does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_sync_is_found() {
    for swallow in ["fdatasync", "directory"] {
        let directory = tempfile::tempdir().unwrap();
        let Some(shim) = Shim::build(directory.path()) else { return };
        let outcome = lose_power(&shim, directory.path(), "write", Some(swallow)).await;
        println!("without {swallow}: {outcome:?}");
        assert!(outcome.is_err(), "a store that does not call {swallow} is not found");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_ends_the_engine_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let Some(shim) = Shim::build(directory.path()) else { return };
    let path = |name| directory.path().join(name);
    let (root, shadow, next) = (path("disk"), path("shadow"), path("after"));
    std::fs::create_dir(&root).unwrap();
    std::fs::create_dir(&shadow).unwrap();
    let acknowledged = path("acknowledged");
    let shimmed = Some((&shim, shadow.as_path()));
    let child = Child { root: &root, acknowledged: &acknowledged, shim: shimmed, swallow: None };
    let status = child.command("fail").env("POWERLOSS_FAIL_AFTER", "50").status().unwrap();
    assert!(status.success(), "{status}");
    let known = Acknowledged::read(&acknowledged);
    assert!(known.count() > 20);
    let mut random = fastrand::Rng::with_seed(1);
    power::reconstruct(&shadow, &root, &next, Left::OnlySynced, &mut random);
    assert_eq!(verify(&next.join("kv"), &known).await, Ok(()));
}
