//! A whole tree as it is, and how two of them differ.

use super::op::{Attr, first_difference};
use super::world::{attr, xattr_names};
use rustix::fs as sys;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What one name of a tree leads to.
#[derive(PartialEq, Eq, Debug)]
struct Entry {
    attr: Attr,
    /// The first name of the same file.
    same_as: PathBuf,
    target: Vec<u8>,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// A tree's names, and each file's content.
pub(crate) struct Snapshot {
    entries: BTreeMap<PathBuf, Entry>,
    contents: HashMap<PathBuf, Vec<u8>>,
}

/// The names of a tree and whether they are directories, in order; what vanishes meanwhile is left out.
pub(crate) fn names(root: &Path) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    let mut open = vec![String::new()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = std::fs::read_dir(root.join(&dir)) else { continue };
        for entry in entries.map_while(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir {
                open.push(path.clone());
            }
            found.push((path, is_dir));
        }
    }
    found.sort();
    found
}

impl Snapshot {
    /// Takes one of the tree at `root`.
    pub(crate) fn take(root: &Path) -> std::io::Result<Self> {
        let mut snapshot = Self { entries: BTreeMap::new(), contents: HashMap::new() };
        let mut inodes = HashMap::new();
        for (name, _) in names(root) {
            snapshot.add(root, PathBuf::from(name), &mut inodes)?;
        }
        Ok(snapshot)
    }

    fn add(
        &mut self,
        root: &Path,
        name: PathBuf,
        inodes: &mut HashMap<u64, PathBuf>,
    ) -> std::io::Result<()> {
        let path = root.join(&name);
        let stat = sys::lstat(&path)?;
        let same_as = inodes.entry(stat.st_ino).or_insert_with(|| name.clone()).clone();
        let attr = attr(&stat);
        let mut entry = Entry { attr, same_as, target: Vec::new(), xattrs: Vec::new() };
        match entry.attr.kind {
            "symlink" => {
                entry.target = std::fs::read_link(&path)?.as_os_str().as_bytes().to_vec();
            }
            "file" => {
                if entry.same_as == name {
                    self.contents.insert(name.clone(), std::fs::read(&path)?);
                }
                entry.xattrs = xattrs(&path)?;
            }
            _ => entry.xattrs = xattrs(&path)?,
        }
        self.entries.insert(name, entry);
        Ok(())
    }

    /// How `found` differs from this one, if it does.
    pub(crate) fn difference(&self, found: &Self) -> Option<String> {
        for name in self.entries.keys().chain(found.entries.keys()) {
            let (expected, entry) = (self.entries.get(name), found.entries.get(name));
            if expected != entry {
                let name = name.display();
                return Some(format!("{name}: expected {expected:#?}\n   found {entry:#?}"));
            }
        }
        for (name, expected) in &self.contents {
            let content = &found.contents[name];
            if content != expected {
                let how = first_difference(expected, content);
                return Some(format!("{}: the content differs{how}", name.display()));
            }
        }
        None
    }
}

fn xattrs(path: &Path) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for name in xattr_names(path)? {
        let mut value = vec![0; 4096];
        let length = sys::lgetxattr(path, name.as_str(), value.as_mut_slice())?;
        value.truncate(length);
        found.push((name, value));
    }
    Ok(found)
}
