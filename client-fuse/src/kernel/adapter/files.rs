//! Open files and their content.

use super::{Adapter, done};
use crate::filesystem::{Handle, NewFile, OpenFlags, SeekTo, WriteAt};
use crate::kernel::abi::{Header, Operation, Reply};
use crate::kernel::caller::caller;
use crate::kernel::pending::Pending;
use kiln_memory::Bytes;
use kiln_telemetry::metrics;
use kiln_types::{Code, InodeId, Result};

impl Adapter {
    /// Answers what is asked of an open file or directory.
    pub(super) async fn through_handle(
        &self,
        header: &Header,
        operation: Operation,
        pending: &Pending,
    ) -> Result<Reply> {
        use Operation as Op;
        let fs = &*self.fs;
        match operation {
            Op::ReadDir { handle, after, room, with_attributes } => {
                self.read_dir(header.inode, handle, after, (room, with_attributes)).await
            }
            Op::Read { handle, offset, length } => self.read(handle, offset, length).await,
            Op::Write { handle, at, bytes, drop_set_ids } => {
                self.write(header, (handle, at), bytes, drop_set_ids).await
            }
            Op::Flush { handle, owner } => done(fs.flush(handle, owner).await),
            Op::Release { handle } => {
                fs.release(handle).await;
                Ok(Reply::Done)
            }
            Op::Fsync { handle } => done(fs.fsync(handle).await),
            Op::Fallocate { handle, mode, offset, length } => {
                self.before_write(header, (header.inode, handle), header.uid != 0).await?;
                done(fs.fallocate(handle, mode, offset, length).await)
            }
            Op::Seek { handle, offset, to } => self.seek(handle, offset, to).await,
            Op::CopyRange { from, to, to_inode, length, wide } => {
                self.before_write(header, (to_inode, to.0), header.uid != 0).await?;
                self.copy_range(from, to, length, wide).await
            }
            Op::GetLock { handle, owner, lock } => {
                fs.get_lock(handle, owner, lock).await.map(|found| Reply::lock(found.as_ref()))
            }
            Op::SetLock { handle, owner, lock, waits } => {
                let interrupt = waits.then(|| pending.interrupt());
                done(fs.set_lock(handle, owner, lock, interrupt).await)
            }
            Op::Unlock { handle, owner, family, range } => {
                done(fs.unlock(handle, owner, family, range).await)
            }
            _ => Ok(Reply::NoSuchCall),
        }
    }

    pub(super) async fn open(&self, header: &Header, flags: OpenFlags) -> Result<Reply> {
        let (caller, inode) = (caller(header), header.inode);
        if flags.truncate {
            let by = (caller.uid != 0).then_some(header);
            self.privileges.take_from(&*self.fs, inode, by).await?;
        }
        let opened = self.fs.open(&caller, inode, flags).await?;
        Ok(Reply::opened(opened))
    }

    pub(super) async fn create(
        &self,
        header: &Header,
        name: &[u8],
        (mode, exclusive): (u32, bool),
        flags: OpenFlags,
    ) -> Result<Reply> {
        let new = NewFile { parent: header.inode, name, mode, exclusive, flags };
        let (known, opened) = self.fs.create(&caller(header), new).await?;
        self.note(header.inode, name, &known);
        Ok(Reply::created(&known, opened))
    }

    pub(super) async fn make_temporary(
        &self,
        header: &Header,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<Reply> {
        let made = self.fs.make_temporary(&caller(header), header.inode, mode, flags).await;
        let (known, opened) = made?;
        self.privileges.note(&known.attr);
        Ok(Reply::created(&known, opened))
    }

    async fn read(&self, handle: Handle, offset: u64, length: usize) -> Result<Reply> {
        let bytes = self.fs.read(handle, offset, length).await?;
        metrics::MOUNT_READ.add(bytes.len() as u64);
        Ok(Reply::Data(bytes))
    }

    async fn write(
        &self,
        header: &Header,
        (handle, at): (Handle, WriteAt),
        bytes: Bytes,
        drop_set_ids: bool,
    ) -> Result<Reply> {
        let length = bytes.len();
        self.before_write(header, (header.inode, handle), drop_set_ids).await?;
        self.fs.write(handle, at, bytes).await?;
        metrics::MOUNT_WRITTEN.add(length as u64);
        Ok(Reply::count(length))
    }

    async fn before_write(
        &self,
        header: &Header,
        file: (InodeId, Handle),
        drop_set_ids: bool,
    ) -> Result<()> {
        let by = drop_set_ids.then_some(header);
        self.privileges.take_before_write(&*self.fs, file, by).await
    }

    async fn seek(&self, handle: Handle, offset: u64, to: SeekTo) -> Result<Reply> {
        match self.fs.seek(handle, offset, to).await {
            // Told otherwise, the program would see an error; so the kernel answers for itself.
            Err(error) if error.code() == Code::Unsupported => Ok(Reply::NoSuchCall),
            found => found.map(Reply::place),
        }
    }

    async fn copy_range(
        &self,
        from: (Handle, u64),
        to: (Handle, u64),
        length: u64,
        wide: bool,
    ) -> Result<Reply> {
        let copied = self.fs.copy_range(from, to, length).await?;
        Ok(if wide { Reply::place(copied) } else { Reply::count(copied as usize) })
    }
}
