//! Which name each inode number of the passthrough daemon has.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// The root's number, in FUSE.
pub(super) const ROOT: u64 = 1;

/// The names that the kernel knows; numbers are never reused.
pub(super) struct Nodes {
    root: PathBuf,
    last: u64,
    by_number: HashMap<u64, Node>,
    by_name: HashMap<(u64, OsString), u64>,
}

struct Node {
    parent: u64,
    name: OsString,
    lookups: u64,
}

impl Nodes {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, last: ROOT, by_number: HashMap::new(), by_name: HashMap::new() }
    }

    /// The path of a number; of one that is unknown, a path that does not exist.
    pub(super) fn path(&self, number: u64) -> PathBuf {
        let mut names = Vec::new();
        let mut at = number;
        while at != ROOT {
            let Some(node) = self.by_number.get(&at) else { return PathBuf::new() };
            names.push(&node.name);
            at = node.parent;
        }
        let mut path = self.root.clone();
        path.extend(names.into_iter().rev());
        path
    }

    /// The number of a name that the kernel looks up.
    pub(super) fn look_up(&mut self, parent: u64, name: &OsStr) -> u64 {
        let key = (parent, name.to_os_string());
        let number = *self.by_name.entry(key).or_insert_with(|| {
            self.last += 1;
            self.last
        });
        let new = || Node { parent, name: name.to_os_string(), lookups: 0 };
        self.by_number.entry(number).or_insert_with(new).lookups += 1;
        number
    }

    pub(super) fn forget(&mut self, number: u64, lookups: u64) {
        let Some(node) = self.by_number.get_mut(&number) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0 {
            let key = (node.parent, std::mem::take(&mut node.name));
            self.by_number.remove(&number);
            if self.by_name.get(&key) == Some(&number) {
                self.by_name.remove(&key);
            }
        }
    }

    pub(super) fn remove(&mut self, parent: u64, name: &OsStr) {
        self.by_name.remove(&(parent, name.to_os_string()));
    }

    pub(super) fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) {
        let to = (to.0, to.1.to_os_string());
        self.by_name.remove(&to);
        let Some(number) = self.by_name.remove(&(from.0, from.1.to_os_string())) else { return };
        if let Some(node) = self.by_number.get_mut(&number) {
            (node.parent, node.name) = to.clone();
        }
        self.by_name.insert(to, number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn names_follow_their_directories_and_numbers_are_not_reused() {
        let mut nodes = Nodes::new("/r".into());
        let dir = nodes.look_up(ROOT, OsStr::new("d"));
        let file = nodes.look_up(dir, OsStr::new("f"));
        nodes.rename((ROOT, OsStr::new("d")), (ROOT, OsStr::new("e")));
        assert_eq!(nodes.path(file), Path::new("/r/e/f"));
        nodes.remove(dir, OsStr::new("f"));
        let again = nodes.look_up(dir, OsStr::new("f"));
        assert_ne!(again, file);
        nodes.forget(file, 1);
        assert_eq!(nodes.path(file), Path::new(""), "forgotten");
        assert_eq!(nodes.look_up(dir, OsStr::new("f")), again, "the name's number stays");
        assert_eq!(nodes.path(ROOT), Path::new("/r"));
    }
}
