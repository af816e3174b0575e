//! Damage in the metadata's store is found, named, and set right by the command; files come back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use cluster::{TestCluster, tree};
use kiln_env::Env;
use kiln_kv::{KeyRange, Kv, RangeOptions};
use kiln_kv_embedded::{EmbeddedKv, Options};
use std::path::Path;

/// Changes the embedded store of a metadata server that stands still.
fn with_store(cluster: &TestCluster, change: impl AsyncFnOnce(&dyn Kv)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let kv = cluster.path().join("meta/kv");
        let kv = EmbeddedKv::open(kv, &Env::real(), Options::default()).await.unwrap();
        change(&kv).await;
        kv.close().await.unwrap();
    });
}

/// The keys of the main tree's kind `kind`.
fn keys(kind: u8) -> KeyRange {
    KeyRange::prefix(&[0, 0, 0, 0, kind])
}

/// What `kiln admin meta check` says, and its exit code.
fn check(cluster: &TestCluster, arguments: &[&str]) -> (i32, String) {
    let config = cluster.path().join("meta/config.toml");
    let all =
        [&["admin", "meta", "check", "--config", config.to_str().unwrap()], arguments].concat();
    let output = cluster.run(&all);
    let said = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), said + &String::from_utf8_lossy(&output.stderr))
}

fn read_back(cluster: &TestCluster, from: &str, to: &Path) {
    cluster.ok(&["cp", "-r", from, to.to_str().unwrap()]);
}

#[test]
fn files_without_a_name_come_back_and_names_of_nothing_go() {
    let local = tempfile::tempdir().unwrap();
    let source = local.path().join("source");
    tree::make(&source, 60, 8);
    let mut cluster = TestCluster::start(1, 1);
    cluster.ok(&["cp", "-r", source.to_str().unwrap(), "kiln:/"]);
    cluster.ok(&["mkdir", "kiln:/empty"]);
    cluster.down();
    assert_eq!(check(&cluster, &[]).0, 0);

    // The root's names go, and the record of what is called empty.
    with_store(&cluster, async |kv| {
        let mut tx = kv.begin().await.unwrap();
        let names = KeyRange::prefix(&[&[0, 0, 0, 0, b'D'][..], &1u64.to_be_bytes()].concat());
        for (key, value) in tx.range(names, RangeOptions::default()).await.unwrap() {
            if value.windows(6).any(|window| window == b"source") {
                tx.clear(&key);
            }
        }
        let inodes = tx.range(keys(b'I'), RangeOptions::limit(1).reverse()).await.unwrap();
        tx.clear(&inodes[0].0);
        tx.commit().await.unwrap();
    });
    let (code, said) = check(&cluster, &[]);
    assert_eq!(code, 1, "{said}");
    for found in ["a directory without a name", "which is not there", "--repair"] {
        assert!(said.contains(found), "{said}");
    }
    let (code, said) = check(&cluster, &["--repair"]);
    assert!(code == 0 && said.contains("set right"), "{said}");
    assert_eq!(check(&cluster, &[]).0, 0);
    cluster.up();
    let listed = cluster.ok(&["ls", "kiln:/lost+found"]);
    let found = listed.trim();
    assert!(found.starts_with("inode-"), "{listed}");
    let back = local.path().join("back");
    read_back(&cluster, &format!("kiln:/lost+found/{found}"), &back);
    tree::assert_same(&source, &back);
    assert_eq!(cluster.ok(&["ls", "kiln:/"]).trim(), "lost+found");
    cluster.check();
}

#[test]
fn a_flipped_bit_is_named_and_kept_from_doing_harm() {
    let mut cluster = TestCluster::start(1, 1);
    let local = tempfile::tempdir().unwrap();
    let (file, other) = (local.path().join("file"), local.path().join("other"));
    [&file, &other].iter().for_each(|path| std::fs::write(path, vec![9; 100_000]).unwrap());
    cluster.ok(&["cp", other.to_str().unwrap(), "kiln:/"]);
    cluster.ok(&["cp", file.to_str().unwrap(), "kiln:/"]);
    cluster.down();
    with_store(&cluster, async |kv| {
        let mut tx = kv.begin().await.unwrap();
        let inodes = tx.range(keys(b'I'), RangeOptions::limit(1).reverse()).await.unwrap();
        let (key, mut value) = inodes[0].clone();
        value[4] ^= 1;
        tx.set(&key, &value);
        tx.commit().await.unwrap();
    });
    for arguments in [&[][..], &["--repair"]] {
        let (code, said) = check(&cluster, arguments);
        assert!(code == 1 && said.contains("only from a backup"), "{said}");
        assert!(said.contains("/file") || said.contains("inode"), "{said}");
    }
    let json = check(&cluster, &["--json"]).1;
    assert!(json.contains("\"kind\": \"unreadable\""), "{json}");
    // Everything else is there, and the damaged file's chunks stay.
    cluster.up();
    if cluster::mount::possible() {
        let mount = cluster.mount();
        let names =
            std::fs::read_dir(mount.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(
            names.collect::<std::collections::BTreeSet<_>>(),
            ["file".into(), "other".into()].into()
        );
        assert!(std::fs::read(mount.path().join("file")).is_err());
    }
    assert!(!cluster.run(&["cat", "kiln:/file"]).status.success());
    read_back(&cluster, "kiln:/other", &local.path().join("back"));
}
