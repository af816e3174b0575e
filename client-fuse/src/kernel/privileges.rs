//! Set-user-id bits and capabilities go when a file is written to.
//!
//! The kernel leaves that to the file system (HANDLE_KILLPRIV_V2), which spares it a question before each
//! write. Files that have such privileges are few: those that the kernel was shown are remembered.

use super::abi::Header;
use super::caller::caller;
use crate::filesystem::{CAPABILITY, FileSystem, Handle, KernelCache, SetAttr};
use kiln_types::{Attr, Caller, Code, FileKind, InodeId, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SET_USER: u32 = 0o4000;
const SET_GROUP: u32 = 0o2000;
const GROUP_RUNS: u32 = 0o010;

/// Files whose programs run with more rights than whoever starts them.
pub(super) struct Privileges {
    kernel: Arc<dyn KernelCache>,
    any: AtomicBool,
    /// How often each was remembered.
    files: Mutex<HashMap<InodeId, u64>>,
}

/// The mode without what `by` takes away with a write. A set-group-id bit without the right to run is no
/// privilege: it goes if `by` could not have set it.
fn cleared((mode, gid): (u32, u32), by: &Caller) -> u32 {
    let may_set = by.uid == 0 || by.in_group(gid);
    let stays = mode & GROUP_RUNS == 0 && may_set;
    mode & !(SET_USER | if stays { 0 } else { SET_GROUP })
}

impl Privileges {
    pub(super) fn new(kernel: Arc<dyn KernelCache>) -> Self {
        Self { kernel, any: AtomicBool::default(), files: Mutex::default() }
    }

    /// Remembers a file whose attributes the kernel is shown.
    pub(super) fn note(&self, attr: &Attr) {
        if attr.kind == FileKind::File && attr.mode & (SET_USER | SET_GROUP) != 0 {
            self.note_capability(attr.inode);
        }
    }

    /// Remembers a file whose capabilities the kernel was shown.
    pub(super) fn note_capability(&self, inode: InodeId) {
        self.remember(&mut self.files.lock(), inode);
    }

    fn remember(&self, files: &mut HashMap<InodeId, u64>, inode: InodeId) {
        *files.entry(inode).or_default() += 1;
        self.any.store(true, Ordering::Release);
    }

    fn has(&self, inode: InodeId) -> bool {
        self.any.load(Ordering::Acquire) && self.files.lock().contains_key(&inode)
    }

    /// Takes a file's privileges away for a change of attributes that changes none: the kernel asks for
    /// that at chown(path, -1, -1), with no check of who may, and also before a write, which clears them
    /// itself. So nothing is done for others than the owner.
    pub(super) async fn give_up(&self, fs: &dyn FileSystem, header: &Header) -> Result<()> {
        let inode = header.inode;
        if !self.has(inode) {
            return Ok(());
        }
        let owner = fs.get_attr(&Caller::root(), inode).await?.attr.uid;
        if header.uid == 0 || header.uid == owner {
            self.take_from(fs, inode, Some(header)).await?;
        }
        Ok(())
    }

    /// Takes a file's privileges away before it is written to. `by`: who takes its set-id bits, too; who may
    /// keep them takes capabilities alone.
    pub(super) async fn take_from(
        &self,
        fs: &dyn FileSystem,
        inode: InodeId,
        by: Option<&Header>,
    ) -> Result<()> {
        if !self.has(inode) {
            return Ok(());
        }
        match self.take(fs, inode, by).await {
            // A credential that may not act as root: the metadata service does it when it is told of the write.
            Err(error) if error.code() == Code::NotAuthorized => Ok(()),
            taken => taken,
        }
    }

    /// The same before an open file is written to, whose attributes the kernel may not have seen since somebody
    /// else changed them.
    pub(super) async fn take_before_write(
        &self,
        fs: &dyn FileSystem,
        (inode, handle): (InodeId, Handle),
        by: Option<&Header>,
    ) -> Result<()> {
        if by.is_some() {
            // Under the lock, so that no other write slips in between.
            let mut files = self.files.lock();
            if fs.changed_elsewhere(handle) {
                self.remember(&mut files, inode);
            }
        }
        self.take_from(fs, inode, by).await
    }

    async fn take(&self, fs: &dyn FileSystem, inode: InodeId, by: Option<&Header>) -> Result<()> {
        let noted = self.files.lock().get(&inode).copied();
        match fs.remove_xattr(&Caller::root(), inode, CAPABILITY).await {
            Err(error) if error.code() == Code::NoAttribute => {}
            removed => removed?,
        }
        let Some(by) = by else { return Ok(()) };
        let attr = fs.get_attr(&Caller::root(), inode).await?.attr;
        let left = cleared((attr.mode, attr.gid), &caller(by));
        if left != attr.mode {
            let change = SetAttr { mode: Some(left), ..SetAttr::default() };
            fs.set_attr(&Caller::root(), inode, None, change).await?;
            self.kernel.drop_attributes(inode);
        }
        // Others that write wait until here. What may go with another one's write, or was remembered meanwhile,
        // counts again.
        let mut files = self.files.lock();
        if left & SET_GROUP == 0 && files.get(&inode).copied() == noted {
            files.remove(&inode);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_clears_what_gives_rights() {
        let by = |gid| Caller { uid: 1, gid, groups: Vec::new() };
        let cases = [
            (0o4755, [0o755, 0o755]),
            (0o6711, [0o711, 0o711]),
            (0o2644, [0o2644, 0o644]),
            (0o2755, [0o755, 0o755]),
            (0o1777, [0o1777, 0o1777]),
        ];
        for (mode, after) in cases {
            assert_eq!([7, 8].map(|gid| cleared((mode, 7), &by(gid))), after, "{mode:o}");
        }
        assert_eq!(cleared((0o6644, 7), &Caller::root()), 0o2644);
    }
}
