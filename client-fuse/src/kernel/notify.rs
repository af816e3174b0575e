//! What the kernel is told without having asked: messages on its device.
//!
//! fuser's own notifier drops a changed name out of the cache, which takes the working directory from
//! under a process. Here a name expires instead: the kernel asks again when it is used next.

use kiln_types::InodeId;
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};

const INVALIDATE_INODE: i32 = 2;
const INVALIDATE_NAME: i32 = 3;
const NEXT_EPOCH: i32 = 8;

const EXPIRE_ONLY: u32 = 1;

/// The kernel's device of one mount.
pub(super) struct Notifier(OwnedFd);

impl Notifier {
    pub(super) fn new(device: BorrowedFd<'_>) -> std::io::Result<Self> {
        device.try_clone_to_owned().map(Self)
    }

    /// The attributes of an inode are no longer known. Waits for nothing.
    pub(super) fn drop_attributes(&self, inode: InodeId) -> Result<(), Errno> {
        self.inode(inode, -1)
    }

    /// Attributes and pages of an inode are no longer known. Waits for the reads and writes of pages
    /// that are under way.
    pub(super) fn drop_content(&self, inode: InodeId) -> Result<(), Errno> {
        self.inode(inode, 0)
    }

    /// A name is no longer known. Waits for changes of its directory that are under way.
    pub(super) fn drop_name(&self, parent: InodeId, name: &[u8]) -> Result<(), Errno> {
        let Ok(length) = u32::try_from(name.len()) else { return Err(Errno::NAMETOOLONG) };
        let mut body = Vec::with_capacity(17 + name.len());
        body.extend(parent.0.to_ne_bytes());
        body.extend(length.to_ne_bytes());
        body.extend(EXPIRE_ONLY.to_ne_bytes());
        body.extend(name);
        body.push(0);
        self.send(INVALIDATE_NAME, &body)
    }

    /// No name is known any longer.
    ///
    /// # Errors
    /// INVAL from a kernel before 6.16, which cannot do it.
    pub(super) fn drop_all_names(&self) -> Result<(), Errno> {
        self.send(NEXT_EPOCH, &[])
    }

    fn inode(&self, inode: InodeId, from: i64) -> Result<(), Errno> {
        let mut body = Vec::with_capacity(24);
        body.extend(inode.0.to_ne_bytes());
        body.extend(from.to_ne_bytes());
        body.extend(0_i64.to_ne_bytes());
        self.send(INVALIDATE_INODE, &body)
    }

    /// A message: its length, what it is, and 0 where an answer has its request's number.
    fn send(&self, what: i32, body: &[u8]) -> Result<(), Errno> {
        let length = u32::try_from(16 + body.len()).map_err(|_| Errno::TOOBIG)?;
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend(length.to_ne_bytes());
        message.extend(what.to_ne_bytes());
        message.extend(0_u64.to_ne_bytes());
        message.extend(body);
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.0, &message)) {
            // The kernel does not know it (any more): that is what was wanted.
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
