//! The engine with this machine on both sides: what goes in comes out the same.

use super::Summary;
use super::engine::{Copier, Options};
use super::local::LocalTree;
use super::progress::Progress;
use crate::path::AnyPath;
use kiln_env::Env;
use kiln_types::{Code, Error, Result};
use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

fn copy(sources: &[&Path], to: &Path, recursive: bool) -> (Result<()>, Summary) {
    let runtime = crate::runtime::many().unwrap();
    runtime.block_on(async {
        let env = Env::real();
        let tree = || Arc::new(LocalTree::new(env.clone()));
        let options = Options { verbose: false, quiet: true };
        let copier = Copier::new(env.clone(), tree(), tree(), Progress::start(&env), options);
        let sources: Vec<_> = sources.iter().map(|path| AnyPath::Local(path.into())).collect();
        let copied = copier.copy_all(&sources, &AnyPath::Local(to.into()), recursive).await;
        copier.clean_up().await;
        (copied, copier.finish())
    })
}

fn whole(outcome: (Result<()>, Summary)) -> Summary {
    outcome.0.unwrap();
    assert!(outcome.1.failed.is_empty(), "{:?}", outcome.1.failed);
    outcome.1
}

fn error(outcome: (Result<()>, Summary)) -> Error {
    outcome.0.unwrap_err()
}

/// Everything that a copy keeps, by path below `top`.
fn picture(top: &Path) -> BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut open = vec![top.to_path_buf()];
    while let Some(path) = open.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let content = if metadata.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else if metadata.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            fs::read(&path).unwrap()
        };
        let kept = (metadata.mode(), metadata.mtime(), metadata.mtime_nsec(), content);
        found.insert(path.strip_prefix(top).unwrap().to_path_buf(), kept);
    }
    found
}

/// A random tree of files from empty to larger than several blocks, symlinks and directories.
fn make_tree(top: &Path, random: &mut fastrand::Rng) {
    let mut directories = vec![top.to_path_buf()];
    fs::create_dir(top).unwrap();
    for i in 0..60 {
        let parent = directories[random.usize(..directories.len())].clone();
        let path = parent.join(format!("{i} ü\n"));
        match random.u8(..10) {
            0..3 => {
                fs::create_dir(&path).unwrap();
                directories.push(path);
            }
            3 => symlink(format!("nowhere/{i}"), &path).unwrap(),
            kind => {
                let most = if kind == 9 { 10 << 20 } else { 10_000 };
                let content: Vec<u8> = vec![i; random.usize(..most)];
                fs::write(&path, content).unwrap();
            }
        }
    }
    for path in picture(top).into_keys().map(|path| top.join(path)).filter(|p| !p.is_symlink()) {
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(random.u64(..1 << 60));
        let times = FileTimes::new().set_modified(time).set_accessed(time);
        let mode = if path.is_dir() { 0o700 } else { 0o400 } | random.u32(..0o100);
        File::open(&path).unwrap().set_times(times).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
}

#[test]
fn a_tree_arrives_with_everything_that_is_kept() {
    for seed in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let (source, to) = (dir.path().join("source"), dir.path().join("to"));
        make_tree(&source, &mut fastrand::Rng::with_seed(seed));
        let summary = whole(copy(&[&source], &to, true));
        assert_eq!(picture(&to), picture(&source), "seed {seed}");
        assert!(summary.files > 10 && summary.directories > 5 && summary.bytes > 0);
        // Onto itself again, and into a directory that is there.
        whole(copy(&[&source], &dir.path().join("./to/.."), true));
        fs::create_dir(dir.path().join("into")).unwrap();
        whole(copy(&[&source], &dir.path().join("into"), true));
        assert_eq!(picture(&dir.path().join("into/source")), picture(&source), "seed {seed}");
    }
}

#[test]
fn destinations_follow_the_rules_of_cp() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["a", "b"] {
        fs::write(at(name), name).unwrap();
    }
    fs::create_dir(at("d")).unwrap();
    whole(copy(&[&at("a")], &at("new"), false));
    whole(copy(&[&at("b")], &at("new"), false));
    assert_eq!(fs::read(at("new")).unwrap(), b"b", "a file is replaced");
    whole(copy(&[&at("a"), &at("b")], &at("d"), false));
    assert_eq!(fs::read(at("d/b")).unwrap(), b"b");

    assert_eq!(error(copy(&[&at("d")], &at("x"), false)).code(), Code::IsDirectory);
    assert_eq!(error(copy(&[&at("none")], &at("x"), true)).code(), Code::NotFound);
    assert_eq!(error(copy(&[&at("a"), &at("b")], &at("new"), false)).code(), Code::NotDirectory);
    assert_eq!(error(copy(&[&at("a"), &at("b")], &at("x"), false)).code(), Code::NotFound);
    assert_eq!(error(copy(&[&at("a")], &at("x/"), false)).code(), Code::NotFound);
    assert_eq!(error(copy(&[&at("a")], &at("x/y"), false)).code(), Code::NotFound);
    assert_eq!(error(copy(&[&at("d")], &at("a"), true)).code(), Code::NotDirectory);
    symlink(at("a"), at("link")).unwrap();
    whole(copy(&[&at("link")], &at("followed"), false));
    assert!(at("followed").symlink_metadata().unwrap().is_file());
    whole(copy(&[&at("link")], &at("kept"), true));
    assert!(at("kept").is_symlink());
}

#[test]
fn what_cannot_be_copied_is_told_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    // A directory stands where a file has to go.
    fs::write(source.join("taken"), "content").unwrap();
    fs::create_dir_all(dir.path().join("to/source/taken/below")).unwrap();
    let (outcome, summary) = copy(&[&source], &dir.path().join("to"), true);
    outcome.unwrap();
    assert_eq!((summary.failed.len(), summary.files), (2, 1), "{:?}", summary.failed);
    assert_eq!(fs::read(dir.path().join("to/source/file")).unwrap(), b"content");
    let left: Vec<_> = picture(&dir.path().join("to")).into_keys().collect();
    assert!(left.iter().all(|path| !path.to_string_lossy().contains(".kiln-cp")), "{left:?}");
}
