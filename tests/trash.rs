//! The trash as programs on a mount meet it, and as `kiln trash` sets, shows, restores and empties it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use cluster::TestCluster;
use cluster::mount::{Mount, possible, skip};
use cluster::program::{installed, run};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;

/// A cluster, a mount, and whether root runs the test: nobody else sets the trash.
fn start() -> Option<(TestCluster, Mount)> {
    if !possible() {
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        skip("only root sets the trash");
        return None;
    }
    let cluster = TestCluster::start(3, 3);
    let mount = cluster.mount();
    Some((cluster, mount))
}

impl TestCluster {
    fn trash(&self) -> Vec<Value> {
        serde_json::from_str(&self.ok(&["trash", "list", "--all", "--json"])).unwrap()
    }

    /// The item that had a path.
    fn item(&self, path: &str) -> String {
        let found = self.trash().into_iter().rfind(|item| item["path"] == path);
        found.unwrap_or_else(|| panic!("no {path} in {:?}", self.trash()))["item"].to_string()
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Bytes that the storage servers have, for the number of replicas.
    fn used(&self) -> u64 {
        let space: Value = serde_json::from_str(&self.ok(&["df", "--json"])).unwrap();
        space["total_bytes"].as_u64().unwrap() - space["free_bytes"].as_u64().unwrap()
    }
}

#[test]
fn what_programs_remove_comes_back_as_it_was() {
    let Some((mut cluster, mut mount)) = start() else { return };
    assert!(cluster.ok(&["trash"]).contains("no trash"));
    let dir = mount.make_dir("job");
    run(&dir, "head -c 3M /dev/urandom > big; cp big gone; rm gone");
    assert!(cluster.trash().is_empty(), "it is off");
    cluster.ok(&["trash", "keep", "1d"]);

    // What an open file, a removed directory and a program see does not change.
    run(&dir, "sha256sum big > sum; setfattr -n user.a -v b big 2>/dev/null || true");
    let mut open = File::options().read(true).append(true).open(dir.join("big")).unwrap();
    run(&dir, "mkdir empty; rm big; ! ls big; rmdir empty; ! ls empty");
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    open.write_all(b"x").unwrap();
    open.sync_all().unwrap();
    open.set_len(3 << 20).unwrap();
    open.rewind().unwrap();
    let mut content = Vec::new();
    open.read_to_end(&mut content).unwrap();
    assert_eq!(content.len(), 3 << 20);
    drop(open);
    let number = cluster.item("/job/big");
    cluster.ok(&["trash", "restore", &number]);
    run(&dir, "sha256sum -c sum; test $(stat -c %h big) = 1; test -f big");
    cluster.ok(&["trash", "restore", &cluster.item("/job/empty")]);
    run(&dir, "test $(stat -c %h empty) = 2; touch empty/f; rm empty/f; rmdir empty");

    // A program that was in a directory as it was removed leaves it to others.
    fs::create_dir(dir.join("held")).unwrap();
    let held = File::open(dir.join("held")).unwrap();
    fs::remove_dir(dir.join("held")).unwrap();
    assert_eq!(held.metadata().unwrap().nlink(), 0);
    cluster.ok(&["trash", "restore", &cluster.item("/job/held")]);
    fs::write(dir.join("held/file"), b"x").unwrap();
    drop(held);
    run(&dir, "test $(cat held/file) = x; rm -r held");

    // Replaced by rename, over a kill of the metadata server.
    run(&dir, "cp big other; echo new > new; mv new big");
    cluster.kill("meta");
    cluster.restart("meta");
    let said = cluster.refused(&["trash", "restore", &cluster.item("/job/big")]);
    assert!(said.contains("exists") && said.contains("--to"), "{said}");
    let item = cluster.item("/job/big");
    cluster.ok(&["trash", "restore", &item, "--to", "kiln:/job/old"]);
    run(&dir, "cmp old other; test $(cat big) = new");

    // A hard link is not the last name, and --now passes by.
    let before = cluster.trash().len();
    run(&dir, "ln old link; rm old; mv link old; mkfifo p; rm p");
    cluster.ok(&["rm", "--now", "kiln:/job/other"]);
    assert_eq!(cluster.trash().len(), before);
    mount.unmount();
    cluster.check();
}

#[test]
fn trees_come_back_with_git_in_them_and_go_when_their_time_has_come() {
    let Some((cluster, mut mount)) = start() else { return };
    let dir = mount.make_dir("job");
    cluster.ok(&["trash", "keep", "1h"]);
    let files = "find . -type f -not -path './.git/index' -exec sha256sum {} + | sort";
    run(&dir, "mkdir -p t/a/b; for i in $(seq 30); do echo $i > t/a/b/$i; done; ln -s 1 t/a/l");
    if installed(&["git"]) {
        run(&dir.join("t"), "git init -q; git add -A; git commit -qm one; echo 2 > a/b/1");
        run(&dir.join("t"), "git commit -qam two; git gc -q; git fsck --strict");
    }
    let sums = run(&dir.join("t"), files);
    cluster.ok(&["rm", "-r", "kiln:/job/t"]);
    assert!(!dir.join("t").exists());
    cluster.ok(&["trash", "restore", &cluster.item("/job/t"), "--to", "kiln:/job/u"]);
    assert_eq!(run(&dir.join("u"), files), sums);

    // One by one, as rm does it.
    run(&dir, "rm -r u/a");
    cluster.ok(&["trash", "restore", "--recursive", &cluster.item("/job/u/a")]);
    assert_eq!(run(&dir.join("u"), files), sums);
    if installed(&["git"]) {
        run(&dir.join("u"), "git fsck --strict; git diff --exit-code; git checkout -q HEAD~1");
    }

    // Its directory is gone: elsewhere. Other users see nothing of it.
    run(&dir, "mkdir d; echo x > d/f; rm d/f");
    cluster.ok(&["rm", "-r", "--now", "kiln:/job/d"]);
    let lost = cluster.trash().into_iter().rfind(|item| item["path"].is_null()).unwrap();
    let lost = lost["item"].to_string();
    let said = cluster.refused(&["trash", "restore", &lost]);
    assert!(said.contains("is gone") && said.contains("--to"), "{said}");
    cluster.ok(&["trash", "restore", &lost, "--to", "kiln:/job"]);
    assert_eq!(fs::read(dir.join("f")).unwrap(), b"x\n");

    // The space is free when its time has come, of trees and of files.
    run(&dir, "rm -r u; head -c 20M /dev/urandom > big; mkdir v; cp big v; sync big v/big; rm big");
    cluster.ok(&["rm", "-r", "kiln:/job/v"]);
    let used = cluster.used();
    assert!(cluster.refused(&["trash", "empty"]).contains("--all"));
    cluster.ok(&["trash", "empty", "--older-than", "1h"]);
    assert!(cluster.trash().len() >= 2);
    cluster.ok(&["trash", "keep", "1s"]);
    cluster.until("an empty trash", || cluster.trash().is_empty());
    cluster.until("free space", || cluster.used() + (40 << 20) <= used);
    cluster.ok(&["trash", "keep", "off"]);
    assert!(cluster.ok(&["trash"]).contains("no trash"));
    mount.unmount();
    cluster.check();
}
