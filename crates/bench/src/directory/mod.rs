//! The workloads, through system calls, in any mounted directory.

mod io;
mod names;

pub(crate) use io::io;
pub(crate) use names::names;

use std::path::{Path, PathBuf};

/// A directory that is measured.
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    /// Where the same files can be seen on the local disk.
    pub(crate) backing: Option<PathBuf>,
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// All places where the kernel may cache the content of a file.
    fn cached(&self, name: &str) -> Vec<PathBuf> {
        let behind = self.backing.as_deref().map(|dir: &Path| dir.join(name));
        [self.path(name)].into_iter().chain(behind).collect()
    }
}
