//! Trees of files to copy, and whether two of them are the same.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Sizes on both sides of every border that a file can have.
const SIZES: [usize; 12] =
    [0, 1, 511, 4095, 4096, 4097, 65_536, 100_000, 1 << 20, (1 << 20) + 1, 3_000_000, 9_500_000];

/// Makes a tree of `files` files of random content below `root`, with directories, modes, old times and
/// symlinks.
pub(crate) fn make(root: &Path, files: usize, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    fs::create_dir_all(root).unwrap();
    for number in 0..files {
        let dir = root.join(format!("d{}", number % 7)).join(format!("e{}", number % 3));
        fs::create_dir_all(&dir).unwrap();
        let small = random.usize(..20_000);
        let size = SIZES.get(number).copied().unwrap_or(small);
        let path = dir.join(format!("file {number} ü"));
        fs::write(&path, bytes(&mut random, size)).unwrap();
        let mode = *random.choice([0o600, 0o644, 0o755, 0o440].as_slice()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        if number % 10 == 3 {
            symlink(format!("file {number} ü"), dir.join(format!("link {number}"))).unwrap();
        }
    }
    symlink("nowhere/at/all", root.join("dangling")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
}

/// `size` random bytes.
pub(crate) fn bytes(random: &mut fastrand::Rng, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    random.fill(&mut bytes);
    bytes
}

/// Every path below `root`, relative to it, sorted.
pub(crate) fn paths(root: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                open.push(entry.path());
            }
            all.push(entry.path().strip_prefix(root).unwrap().to_owned());
        }
    }
    all.sort();
    all
}

/// Fails unless both trees have the same names, kinds, modes, times, targets and contents.
pub(crate) fn assert_same(a: &Path, b: &Path) {
    assert_eq!(paths(a), paths(b), "the names differ");
    for path in paths(a) {
        let (left, right) = (a.join(&path), b.join(&path));
        let (m, n) = (fs::symlink_metadata(&left).unwrap(), fs::symlink_metadata(&right).unwrap());
        assert_eq!(m.file_type(), n.file_type(), "{}: kind", path.display());
        if m.is_symlink() {
            assert_eq!(fs::read_link(&left).unwrap(), fs::read_link(&right).unwrap());
            continue;
        }
        assert_eq!(m.mode(), n.mode(), "{}: mode", path.display());
        let times = |meta: &fs::Metadata| (meta.mtime(), meta.mtime_nsec());
        assert_eq!(times(&m), times(&n), "{}: time", path.display());
        if m.is_file() {
            assert!(fs::read(&left).unwrap() == fs::read(&right).unwrap(), "{}", path.display());
        }
    }
}
