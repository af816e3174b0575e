//! The kernel's requests, each passed on to the file system.

mod attributes;
mod files;
mod names;

use super::abi::{Header, Operation, Reply};
use super::caller::caller;
use super::link::KernelLink;
use super::pending::Pending;
use super::privileges::Privileges;
use super::requests::Requests;
use crate::filesystem::{FileSystem, Known};
use kiln_env::Env;
use kiln_telemetry::MOUNT;
use kiln_types::{Error, InodeId, Result};
use std::sync::Arc;
use std::time::Duration;

/// One mount's.
pub(super) struct Adapter {
    fs: Arc<dyn FileSystem>,
    requests: Requests,
    privileges: Privileges,
    link: Arc<KernelLink>,
}

impl Adapter {
    /// Requests are worked out in the runtime of the calling task.
    pub(super) fn new(fs: Arc<dyn FileSystem>, link: Arc<KernelLink>, env: Env) -> Self {
        let privileges = Privileges::new(Arc::clone(&link) as _);
        Self { fs, requests: Requests::new(env), privileges, link }
    }

    /// The kernel forgets inodes, each so many times.
    pub(super) fn forget(&self, lookups: &[(InodeId, u64)]) {
        for (inode, count) in lookups {
            self.fs.forget(*inode, *count);
        }
    }

    /// Answers what cannot be understood.
    pub(super) fn refuse(&self, error: &Error, pending: Pending) {
        pending.answer(Err(self.requests.errno("not understood", error)));
    }

    /// Answers a request, now or later.
    pub(super) fn serve(self: &Arc<Self>, header: Header, operation: Operation, pending: Pending) {
        match operation {
            Operation::ReleaseDir { handle } => {
                self.fs.release_dir(handle);
                pending.answer(Ok(Reply::Done));
            }
            // Names are durable when the change of a directory is answered.
            Operation::FsyncDir | Operation::Destroy => pending.answer(Ok(Reply::Done)),
            Operation::Other => pending.answer(Ok(Reply::NoSuchCall)),
            operation => {
                let (name, adapter) = (operation.name(), Arc::clone(self));
                self.requests.run(name, async move {
                    let answer = adapter.measured(&header, operation, &pending).await;
                    pending.answer(answer.map_err(|error| adapter.requests.errno(name, &error)));
                });
            }
        }
    }

    async fn measured(
        &self,
        header: &Header,
        operation: Operation,
        pending: &Pending,
    ) -> Result<Reply> {
        let (name, env) = (operation.name(), self.requests.env());
        // How long another program keeps its lock is no work of the mount.
        let waits = matches!(operation, Operation::SetLock { waits: true, .. });
        let answer = self.answer(header, operation, pending);
        if waits { answer.await } else { MOUNT.measure(env, name, "the kernel", answer).await }
    }

    async fn answer(
        &self,
        header: &Header,
        operation: Operation,
        pending: &Pending,
    ) -> Result<Reply> {
        use Operation as Op;
        let (fs, inode) = (&*self.fs, header.inode);
        let who = || caller(header);
        match operation {
            Op::Lookup { name } => self.lookup(header, &name).await,
            Op::Symlink { name, target } => {
                Ok(self.entry(inode, &name, &fs.symlink(&who(), inode, &name, &target).await?))
            }
            Op::MakeNode { name, mode, device } => {
                self.make_node(header, &name, mode, device).await
            }
            Op::MakeDir { name, mode } => {
                Ok(self.entry(inode, &name, &fs.make_dir(&who(), inode, &name, mode).await?))
            }
            Op::Unlink { name } => done(fs.unlink(&who(), inode, &name).await),
            Op::RemoveDir { name } => done(fs.remove_dir(&who(), inode, &name).await),
            Op::Rename { from, to, flags } => {
                done(fs.rename(&who(), (inode, &from), (to.0, &to.1), flags).await)
            }
            Op::Link { inode: linked, name } => {
                Ok(self.entry(inode, &name, &fs.link(&who(), linked, inode, &name).await?))
            }
            Op::OpenDir => self.open_dir(header).await,
            Op::GetAttr => Ok(self.attributes(&fs.get_attr(&who(), inode).await?)),
            Op::SetAttr { change, through } => self.set_attr(header, change, through).await,
            Op::ReadLink => fs.read_link(&who(), inode).await.map(Reply::Fields),
            Op::StatFs => Ok(Reply::space(&fs.stat_fs(&who(), inode).await?)),
            Op::GetXattr { name, room } => self.get_xattr(header, &name, room).await,
            Op::SetXattr { name, value, how } => self.set_xattr(header, &name, &value, how).await,
            Op::ListXattrs { room } => self.list_xattrs(header, room).await,
            Op::RemoveXattr { name } => done(fs.remove_xattr(&who(), inode, &name).await),
            Op::Open { flags } => self.open(header, flags).await,
            Op::Create { name, mode, exclusive, flags } => {
                self.create(header, &name, (mode, exclusive), flags).await
            }
            Op::MakeTemporary { mode, flags } => self.make_temporary(header, mode, flags).await,
            operation => self.through_handle(header, operation, pending).await,
        }
    }

    /// An entry for the kernel, which now has it.
    fn entry(&self, parent: InodeId, name: &[u8], known: &Known) -> Reply {
        self.note(parent, name, known);
        Reply::entry(known)
    }

    /// The kernel is about to have a name, and what it leads to.
    fn note(&self, parent: InodeId, name: &[u8], known: &Known) {
        self.privileges.note(&known.attr);
        self.note_name(parent, name, known.name_for);
    }

    fn note_name(&self, parent: InodeId, name: &[u8], keep_for: Duration) {
        if !keep_for.is_zero() {
            let now = self.requests.env().now();
            self.link.give_name((parent, name.to_vec()), keep_for, now);
        }
    }

    fn attributes(&self, known: &Known) -> Reply {
        self.privileges.note(&known.attr);
        Reply::attributes(known)
    }
}

fn done(result: Result<()>) -> Result<Reply> {
    result.map(|()| Reply::Done)
}
