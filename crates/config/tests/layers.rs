//! The layers, the examples and the messages, as a binary uses them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use kiln_config::*;
use kiln_types::{Code, Error, NodeId, ServiceKind};
use std::path::PathBuf;

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kiln.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn refused<C: ServiceConfig + std::fmt::Debug>(text: &str) -> String {
    let (_dir, path) = file(text);
    let error: Error = load::<C>(Some(&path), [], &[]).unwrap_err();
    assert_eq!(error.code(), Code::Invalid, "{error}");
    assert!(error.to_string().contains("kiln.toml"), "{error}");
    error.to_string()
}

#[test]
fn each_example_parses_to_the_defaults_and_names_every_key() {
    fn check<C: ServiceConfig + PartialEq + std::fmt::Debug>() {
        let text = example(C::SERVICE);
        let parsed: C = toml::from_str(text).unwrap();
        assert_eq!(parsed, C::default());
        let example: toml::Table = text.parse().unwrap();
        let mut defaults = toml::Table::try_from(C::default()).unwrap();
        defaults.remove("disks");
        assert_eq!(example, defaults, "the example of {} lacks keys", C::SERVICE);
        let (_dir, path) = file(&to_toml(&parsed).unwrap());
        if C::SERVICE != ServiceKind::Storage {
            assert_eq!(load::<C>(Some(&path), [], &[]).unwrap(), parsed);
        }
    }
    check::<MgmtdConfig>();
    check::<MetaConfig>();
    check::<StorageConfig>();
    assert!(refused::<StorageConfig>(example(ServiceKind::Storage)).contains("[[disks]]"));
}

#[test]
fn a_flag_beats_the_environment_and_it_beats_the_file() {
    let (_dir, path) = file("[lease]\nduration = \"9s\"\nheartbeat = \"200ms\"\n");
    let config = load::<MgmtdConfig>(Some(&path), [], &[]).unwrap();
    assert_eq!(config.lease.duration.as_secs(), 9);
    assert_eq!(config.bootstrap, BootstrapConfig::default());

    let variables =
        environment(&[("KILN_LEASE_DURATION", "8s"), ("KILN_NODE_ID", "5"), ("KILN_DIR", "/x")]);
    let config = load::<MgmtdConfig>(Some(&path), variables.clone(), &[]).unwrap();
    assert_eq!((config.lease.duration.as_secs(), config.node.id), (8, NodeId(5)));

    let flags = [Setting::parse("lease.duration=7s").unwrap()];
    let config = load::<MgmtdConfig>(Some(&path), variables, &flags).unwrap();
    assert_eq!(config.lease.duration.as_secs(), 7);
    assert_eq!(config.lease.heartbeat.as_millis(), 200);
}

#[test]
fn lists_come_from_the_environment_as_toml() {
    let variables = environment(&[
        ("KILN_DISKS", r#"[{ path = "/d", capacity = "1GiB" }]"#),
        ("KILN_CLUSTER_MGMTD", r#"["a:1", "b:2"]"#),
        ("KILN_NODE_TAGS", r#"{ rack = "r7" }"#),
    ]);
    let config = load::<StorageConfig>(None, variables, &[]).unwrap();
    assert_eq!(config.disks, [DiskConfig { path: "/d".into(), capacity: 1 << 30 }]);
    assert_eq!(config.cluster.mgmtd, ["a:1", "b:2"]);
    assert_eq!(config.node.tags["rack"], "r7");
}

#[test]
fn an_error_names_the_file_the_line_the_key_and_what_is_allowed() {
    let message = refused::<MetaConfig>("# comment\n[kv]\nengin = \"embedded\"\n");
    assert!(message.contains("kiln.toml:3: "), "{message}");
    assert!(message.contains("engin") && message.contains("cache"), "{message}");

    let message = refused::<MetaConfig>("[kv]\ncache = \"lots\"\n");
    assert!(message.contains(":2:") && message.contains("MiB"), "{message}");

    let message = refused::<MetaConfig>("[kv\n");
    assert!(message.contains(":1:"), "{message}");

    let message = refused::<StorageConfig>("[io]\nengine = \"fast\"\n");
    assert!(message.contains("uring") && message.contains("plain"), "{message}");

    let message = refused::<MgmtdConfig>("[bootstrap]\nreplicas = 5\n");
    assert!(message.contains("bootstrap.replicas is 5"), "{message}");

    let message = refused::<MetaConfig>("\u{0}\u{1}garbage\u{ff}");
    assert!(message.contains(":1:"), "{message}");
}

#[test]
fn a_postgresql_is_named_without_its_password() {
    let with = |url: &str| refused::<MetaConfig>(&format!("[kv]\nengine = \"postgres\"\n{url}"));
    assert!(with("").contains("kv.postgres.url"));
    for url in ["postgres://kiln:s3cret@db/kiln", "postgres://db/kiln?password=s3cret"] {
        let message = with(&format!("postgres.url = \"{url}\"\n"));
        assert!(message.contains("password_file") && !message.contains("s3cret"), "{message}");
    }
    let (dir, path) = file(
        "[kv]\nengine = \"postgres\"\n[kv.postgres]\nurl = \"postgres://kiln@db1,db2:5432/kiln\"\n\
         password_file = \"password\"\nallow = [\"unencrypted\"]\n",
    );
    let flags = [Setting::parse("kv.postgres.connections=4").unwrap()];
    let config = load::<MetaConfig>(Some(&path), [], &flags).unwrap();
    assert_eq!(config.kv.postgres.password_file, dir.path().join("password"));
    assert_eq!((config.kv.postgres.connections, config.kv.postgres.allow.len()), (4, 1));
}

#[test]
fn settings_that_are_wrong_are_named() {
    let wrong = |variables: &[(&str, &str)], flags: &[&str]| {
        let flags: Vec<_> = flags.iter().map(|flag| Setting::parse(flag).unwrap()).collect();
        load::<MetaConfig>(None, environment(variables), &flags).unwrap_err().to_string()
    };
    let message = wrong(&[("KILN_NODE_LISTN", "x")], &[]);
    assert!(message.contains("KILN_NODE_LISTN") && message.contains("KILN_NODE_LISTEN"));
    let message = wrong(&[("KILN_NODE_LISTEN", "here")], &[]);
    assert!(message.contains("KILN_NODE_LISTEN: node.listen"), "{message}");
    for flag in ["nope=1", "node=1", "node.listen.x=1", "node.nope=1", "=1"] {
        let message = wrong(&[], &[flag]);
        assert!(message.contains("--set: there is no key"), "{message}");
    }
    assert!(wrong(&[], &["new_file.stripe=many"]).contains("cannot be 'many'"));
    assert!(wrong(&[], &["node.listen=0.0.0.0:1"]).contains("node.advertise"));
    assert!(wrong(&[], &["client.capability=2h"]).contains("client.lease"));
}

#[test]
fn relative_paths_count_from_the_directory_of_the_file() {
    let (dir, path) = file(
        "disks = [{ path = \"d1\", capacity = \"1GiB\" }, { path = \"/d2\", capacity = \"1GiB\" }]\n\
         [node]\nid = 7\ndata_dir = \".\"\nserver_key = \"../server.key\"\n",
    );
    let flags = [Setting::flag("--log-file", "log.file", "here.log")];
    let config = load::<StorageConfig>(Some(&path), [], &flags).unwrap();
    assert_eq!(config.disks[0].path, dir.path().join("d1"));
    assert_eq!(config.disks[1].path, PathBuf::from("/d2"));
    assert_eq!(config.node.server_key, dir.path().join("../server.key"));
    assert_eq!(config.log.file, PathBuf::from("here.log"));
}

#[test]
fn a_missing_file_says_how_to_get_one() {
    let error = load::<MetaConfig>(Some("/nowhere/meta.toml".as_ref()), [], &[]).unwrap_err();
    assert!(error.message().contains("/nowhere/meta.toml"), "{error}");
    assert!(error.hint().unwrap().contains("kiln config example meta"), "{error}");
}

#[test]
fn a_majority_of_three_or_more_must_serve() {
    let with = |replicas, min_serving| BootstrapConfig {
        replicas,
        min_serving,
        ..BootstrapConfig::default()
    };
    let cases = [(1, 0, 1), (2, 0, 1), (3, 0, 2), (5, 0, 3), (3, 3, 3)];
    for (replicas, configured, expected) in cases {
        assert_eq!(with(replicas, configured).min_serving(), expected);
    }
}
