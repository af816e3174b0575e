//! Quotas as programs on a mount meet them, and as `kiln quota` sets and shows them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use cluster::TestCluster;
use cluster::mount::{Mount, possible, skip};
use cluster::program::{installed, refused, run};
use std::fs;
use std::os::unix::fs::MetadataExt;

const MIB: u64 = 1 << 20;
const TOLD: &str = "quota exceeded";

/// A cluster, a mount, and whether root runs the test: nobody else sets quotas.
fn start() -> Option<(TestCluster, Mount)> {
    if !possible() {
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        skip("only root sets quotas");
        return None;
    }
    let cluster = TestCluster::start(3, 3);
    let mount = cluster.mount();
    Some((cluster, mount))
}

impl TestCluster {
    fn quota(&self, whose: &[&str]) -> serde_json::Value {
        let shown = self.ok(&[&["quota", "show", "--json"], whose].concat());
        serde_json::from_str(&shown).unwrap()
    }

    /// What it uses, when everything is counted.
    fn used(&self, whose: &[&str]) -> (u64, u64) {
        self.until("a count", || self.quota(whose)["counting"] == false);
        let quota = self.quota(whose);
        (quota["bytes"].as_u64().unwrap(), quota["inodes"].as_u64().unwrap())
    }
}

#[test]
fn programs_meet_the_quota_of_a_directory_and_df_shows_it() {
    let Some((mut cluster, mut mount)) = start() else { return };
    let dir = mount.make_dir("project");
    let outside = mount.make_dir("outside");
    run(&dir, "mkdir -p a/b; head -c 1000000 /dev/zero > a/b/old; ln -s old a/b/link");
    cluster.ok(&["quota", "set", "kiln:/project", "--bytes", "10MiB", "--inodes", "9"]);
    assert_eq!(cluster.used(&["kiln:/project/a/b"]), (1_000_000, 5));

    // Bytes: all that fit and none more, and what was written is there.
    let said = refused(&dir, "dd if=/dev/urandom of=big bs=64K");
    assert!(said.to_lowercase().contains(TOLD), "{said}");
    let fits = (10 * MIB - 1_000_000) / 65536 * 65536;
    assert_eq!(fs::metadata(dir.join("big")).unwrap().len(), fits);
    assert_eq!(cluster.used(&["kiln:/project"]), (1_000_000 + fits, 6));
    for script in ["cp big a/copy", "truncate -s 1G a/b/old", "fallocate -l 9M a/b/link"] {
        let said = refused(&dir, script);
        assert!(said.to_lowercase().contains(TOLD), "{script}: {said}");
    }
    run(&dir, "rm a/copy; printf x | dd of=big conv=notrunc; truncate -s 0 big; cp a/b/old big");
    assert_eq!(cluster.used(&["kiln:/project"]), (2_000_000, 6));

    // What df says.
    let space = rustix::fs::statvfs(dir.join("a")).unwrap();
    assert_eq!(space.f_blocks * space.f_frsize, 10 * MIB);
    assert_eq!(space.f_bavail, (10 * MIB - 2_000_000) / space.f_frsize);
    assert_eq!((space.f_files, space.f_favail), (9, 3));
    let whole = rustix::fs::statvfs(&outside).unwrap();
    assert!(whole.f_blocks * whole.f_frsize > 100 * MIB);

    // Inodes.
    run(&dir, "touch 7; mkdir 8; ln -s x 9; ln 7 again");
    for script in ["mkdir d", "touch f", "ln -s x l", "mkfifo p", "mv ../outside/file ."] {
        run(&outside, "echo more > file");
        let said = refused(&dir, script);
        assert!(said.to_lowercase().contains(TOLD), "{script}: {said}");
    }
    run(&dir, "rm 7 again; rmdir 8; rm 9");

    // Files move at once, trees are copied, names of one file stay in one quota.
    let number = fs::metadata(outside.join("file")).unwrap().ino();
    run(&dir, "mv ../outside/file .");
    assert_eq!(fs::metadata(dir.join("file")).unwrap().ino(), number);
    let said = refused(&dir, "ln file ../outside/link");
    assert!(said.contains("Invalid cross-device link"), "{said}");
    run(&dir, "mv a ../outside/; ls ../outside/a/b/old");
    assert_eq!(cluster.used(&["kiln:/project"]), (1_000_005, 3));

    // Over restarts: the same.
    cluster.kill("meta");
    cluster.restart("meta");
    run(&dir, "mv ../outside/a .");
    assert_eq!(cluster.used(&["kiln:/project"]), (2_000_005, 7));
    cluster.ok(&["quota", "clear", "kiln:/project"]);
    assert!(!cluster.run(&["quota", "show", "kiln:/project"]).status.success());
    run(&dir, "head -c 20M /dev/zero > big; rm -r a big file");
    mount.unmount();
    cluster.check();
}

#[test]
fn users_and_groups_have_quotas_of_the_whole_file_system() {
    let Some((cluster, mut mount)) = start() else { return };
    let dir = mount.make_dir("work");
    run(&dir, "head -c 3M /dev/zero > given; chown 1234:4321 given; mkdir own; chown 1234 own");
    assert_eq!(cluster.used(&["--user", "1234"]), (3 * MIB, 2));
    cluster.ok(&["quota", "set", "--user", "1234", "--bytes", "8MiB"]);
    cluster.ok(&["quota", "set", "--group", "4321", "--inodes", "1"]);
    let said = refused(&dir, "head -c 6M /dev/zero > root; chown 1234 root");
    assert!(said.to_lowercase().contains(TOLD), "{said}");
    let said = refused(&dir, "touch second; chgrp 4321 second");
    assert!(said.to_lowercase().contains(TOLD), "{said}");
    run(&dir, "truncate -s 2M root; chown 1234 root");
    let listed = cluster.ok(&["quota", "list"]);
    assert!(listed.contains("user 1234") && listed.contains("group 4321"), "{listed}");
    if installed(&["setpriv"]) {
        // As the user: what is left of 8 MiB, and not more.
        let write = "head -c 9M /dev/zero > own/mine";
        let user = "setpriv --reuid 1234 --regid 1 --clear-groups sh -c";
        let said = refused(&dir, &format!("{user} '{write}'"));
        assert!(said.to_lowercase().contains(TOLD), "{said}");
        assert_eq!(cluster.used(&["--user", "1234"]), (8 * MIB, 4));
    }
    run(&dir, "chown -R 0:0 own root given; rm -r own root given");
    assert_eq!(cluster.used(&["--user", "1234"]), (0, 0));
    mount.unmount();
}
