//! Open files and directories by their handles.

use crate::data::{ErrorMark, Stream};
use crate::filesystem::{Handle, OpenFlags};
use crate::tree::directory::OpenDirectory;
use crate::tree::open_inode::OpenInode;
use kiln_client::File;
use kiln_types::{Code, Error, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An open file.
pub(crate) struct OpenFile {
    pub(crate) open: Arc<OpenInode>,
    /// The session that this open made: what the caller may do was checked for it.
    pub(crate) file: Arc<File>,
    pub(crate) flags: OpenFlags,
    pub(crate) stream: Stream,
    /// Errors of writing in the background that fsync, and that close, has told already.
    pub(crate) fsync_told: Mutex<ErrorMark>,
    pub(crate) close_told: Mutex<ErrorMark>,
}

/// All that is open on a mount.
#[derive(Default)]
pub(crate) struct Handles {
    next: AtomicU64,
    files: Mutex<HashMap<Handle, Arc<OpenFile>>>,
    directories: Mutex<HashMap<Handle, Arc<OpenDirectory>>>,
}

impl Handles {
    fn next(&self) -> Handle {
        Handle(self.next.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(crate) fn add_file(&self, file: OpenFile) -> Handle {
        let handle = self.next();
        self.files.lock().insert(handle, Arc::new(file));
        handle
    }

    pub(crate) fn file(&self, handle: Handle) -> Result<Arc<OpenFile>> {
        self.files.lock().get(&handle).cloned().ok_or_else(unknown)
    }

    pub(crate) fn remove_file(&self, handle: Handle) -> Option<Arc<OpenFile>> {
        self.files.lock().remove(&handle)
    }

    pub(crate) fn add_directory(&self, directory: OpenDirectory) -> Handle {
        let handle = self.next();
        self.directories.lock().insert(handle, Arc::new(directory));
        handle
    }

    pub(crate) fn directory(&self, handle: Handle) -> Result<Arc<OpenDirectory>> {
        self.directories.lock().get(&handle).cloned().ok_or_else(unknown)
    }

    pub(crate) fn remove_directory(&self, handle: Handle) {
        self.directories.lock().remove(&handle);
    }
}

fn unknown() -> Error {
    Error::new(Code::BadHandle, "no such handle")
}
