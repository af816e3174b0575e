//! What earlier versions wrote is opened by this one: whole clusters, and dumps of their metadata.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;
#[path = "../crates/kv-postgres/tests/server/mod.rs"]
mod server;

use cluster::mount::find;
use server::Server;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A cluster that an earlier version made. It ends with this.
struct Old {
    directory: tempfile::TempDir,
}

impl Old {
    fn unpack(archive: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let unpacked =
            Command::new("tar").arg("-C").arg(directory.path()).arg("-xJf").arg(archive).status();
        assert!(unpacked.unwrap().success(), "{}", archive.display());
        Self { directory }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(arguments).env("KILN_DIR", self.directory.path().join("cluster"));
        command.env_remove("KILN_CLUSTER").env_remove("KILN_CREDENTIAL");
        command.output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kiln {arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("cluster/meta/config.toml")
    }
}

impl Drop for Old {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}

/// The files of one kind that earlier versions left.
fn of_earlier(extension: &str) -> Vec<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/formats");
    let paths = std::fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|end| end == extension)).collect();
    found.sort();
    assert!(!found.is_empty());
    found
}

fn numbers(last: u32) -> String {
    (1..=last).map(|number| format!("{number}\n")).collect()
}

#[test]
fn clusters_of_earlier_versions_are_opened_with_all_that_is_in_them() {
    if find("xz").is_none() {
        cluster::mount::skip("xz is not installed");
        return;
    }
    for archive in of_earlier("xz") {
        println!("{}", archive.display());
        let old = Old::unpack(&archive);
        let config = old.config();
        let place = ["--config", config.to_str().unwrap()];
        let checked = old.ok(&[&["admin", "meta", "check"][..], &place].concat());
        assert!(checked.starts_with("no problems"), "{checked}");
        old.ok(&["up", "--detach"]);
        look(&old);
        old.ok(&["cp", "/proc/self/status", "kiln:/tree/new"]);
        let checked = old.ok(&["admin", "check"]);
        assert!(checked.starts_with("no problems"), "{checked}");
        old.ok(&["down"]);

        // The same from its dump.
        std::fs::rename(config.with_file_name("kv"), old.directory.path().join("kv")).unwrap();
        let dump = old.directory.path().join("meta.dump");
        let import = ["admin", "meta", "import", dump.to_str().unwrap()];
        old.ok(&[&import[..], &place].concat());
        old.ok(&["up", "--detach"]);
        look(&old);
    }
}

/// See `tests/data/formats/make.sh`.
fn look(old: &Old) {
    let cat = |name: &str| old.ok(&["cat", &format!("kiln:/tree/{name}")]);
    assert_eq!(cat("small"), "a small file\n");
    assert_eq!(cat("deep/again"), "a small file\n");
    assert_eq!(cat("link"), "a small file\n");
    assert_eq!(cat("numbers"), numbers(20_000));
    assert_eq!(cat("cut"), numbers(100_000)[..1000]);
    assert_eq!(cat("empty"), "");
    let sparse = cat("sparse");
    assert!(sparse.len() == 3 << 20 && sparse.ends_with("\0end"));
    let small = old.ok(&["stat", "kiln:/tree/small"]);
    assert!(small.contains("4755"), "{small}");
    let numbers = old.ok(&["stat", "kiln:/tree/numbers"]);
    assert!(numbers.contains("1234") && numbers.contains("5678"), "{numbers}");
    let empty = old.ok(&["stat", "kiln:/tree/empty"]);
    assert!(empty.contains("1999-12-31T23:59:59.5"), "{empty}");
    let listed = old.ok(&["ls", "kiln:/tree/deep/er"]);
    assert!(listed.contains("n\u{e4}me"), "{listed}");
    let quota = old.ok(&["quota", "list"]);
    assert!(quota.contains("1.0 GiB") || quota.contains("1 GiB"), "{quota}");
    let trash = old.ok(&["trash", "list"]);
    assert!(trash.contains("/tree/removed"), "{trash}");
}

#[test]
fn metadata_that_earlier_versions_put_into_a_postgresql_is_read() {
    if find("xz").is_none() {
        cluster::mount::skip("xz is not installed");
        return;
    }
    let Some(server) = Server::start() else { return };
    // For its configuration.
    let old = Old::unpack(&of_earlier("xz")[0]);
    let config = old.config();
    let url = format!("kv.postgres.url={}", server.url());
    let place =
        ["--config", config.to_str().unwrap(), "--set", "kv.engine=postgres", "--set", &url];
    for sql in of_earlier("sql") {
        println!("{}", sql.display());
        server.sql(&std::fs::read_to_string(&sql).unwrap());
        let checked = old.ok(&[&["admin", "meta", "check"][..], &place].concat());
        assert!(checked.starts_with("no problems: 13 inodes"), "{checked}");
        server.sql("DROP SCHEMA kiln CASCADE");
    }
}
