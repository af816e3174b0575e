//! Set-user-id bits and capabilities go when a file is written to.
//!
//! The kernel leaves that to the file system (HANDLE_KILLPRIV_V2), which spares it a question before each
//! write. Files that have such privileges are few: those that the kernel was shown are remembered.

use crate::filesystem::{CAPABILITY, FileSystem, KernelCache, SetAttr};
use kiln_types::{Attr, Caller, Code, FileKind, InodeId, Result};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SET_USER: u32 = 0o4000;
const SET_GROUP: u32 = 0o2000;
const GROUP_RUNS: u32 = 0o010;

/// Files whose programs run with more rights than whoever starts them.
pub(super) struct Privileges {
    kernel: Arc<dyn KernelCache>,
    any: AtomicBool,
    files: Mutex<HashSet<InodeId>>,
}

/// The mode without what a write takes away. A set-group-id bit without the right to run is no privilege.
fn cleared(mode: u32) -> u32 {
    let group = if mode & GROUP_RUNS != 0 { SET_GROUP } else { 0 };
    mode & !(SET_USER | group)
}

impl Privileges {
    pub(super) fn new(kernel: Arc<dyn KernelCache>) -> Self {
        Self { kernel, any: AtomicBool::default(), files: Mutex::default() }
    }

    /// Remembers a file whose attributes the kernel is shown.
    pub(super) fn note(&self, attr: &Attr) {
        if attr.kind == FileKind::File && cleared(attr.mode) != attr.mode {
            self.note_capability(attr.inode);
        }
    }

    /// Remembers a file whose capabilities the kernel was shown.
    pub(super) fn note_capability(&self, inode: InodeId) {
        self.files.lock().insert(inode);
        self.any.store(true, Ordering::Release);
    }

    fn has(&self, inode: InodeId) -> bool {
        self.any.load(Ordering::Acquire) && self.files.lock().contains(&inode)
    }

    /// Takes a file's privileges away for a change of attributes that changes none: the kernel asks for
    /// that at chown(path, -1, -1), with no check of who may, and also before a write, which clears them
    /// itself. So nothing is done for others than the owner.
    pub(super) async fn give_up(
        &self,
        fs: &dyn FileSystem,
        inode: InodeId,
        caller: &Caller,
    ) -> Result<()> {
        if !self.has(inode) {
            return Ok(());
        }
        let owner = fs.get_attr(&Caller::root(), inode).await?.attr.uid;
        if caller.uid == 0 || caller.uid == owner {
            self.take_from(fs, inode, true).await?;
        }
        Ok(())
    }

    /// Takes a file's privileges away before it is written to. `set_ids`: its bits, too; a user who may
    /// keep them loses capabilities alone.
    pub(super) async fn take_from(
        &self,
        fs: &dyn FileSystem,
        inode: InodeId,
        set_ids: bool,
    ) -> Result<()> {
        if !self.has(inode) {
            return Ok(());
        }
        match fs.remove_xattr(&Caller::root(), inode, CAPABILITY).await {
            Err(error) if error.code() == Code::NoAttribute => {}
            removed => removed?,
        }
        if set_ids {
            let mode = fs.get_attr(&Caller::root(), inode).await?.attr.mode;
            if cleared(mode) != mode {
                let change = SetAttr { mode: Some(cleared(mode)), ..SetAttr::default() };
                fs.set_attr(&Caller::root(), inode, None, change).await?;
                self.kernel.drop_attributes(inode);
            }
            self.files.lock().remove(&inode);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_clears_what_gives_rights() {
        let cases =
            [(0o4755, 0o755), (0o6711, 0o711), (0o2644, 0o2644), (0o2755, 0o755), (0o1777, 0o1777)];
        for (mode, after) in cases {
            assert_eq!(cleared(mode), after, "{mode:o}");
        }
    }
}
