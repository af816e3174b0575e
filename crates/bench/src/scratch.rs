//! Directories that go when the run ends.

use kiln_env::Env;
use kiln_types::{Context, Result};
use std::path::{Path, PathBuf};

/// How all test files are called.
pub(crate) fn name(env: &Env) -> String {
    format!(".kiln-bench-{:016x}", env.random_u64())
}

/// A directory of this run; it is removed, with what is in it, when it is dropped.
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(crate) fn create(env: &Env, parent: &Path) -> Result<Self> {
        let path = parent.join(name(env));
        std::fs::create_dir(&path).context(format_args!("test directory {}", path.display()))?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a test directory stays");
        }
    }
}
