//! The workloads, through the client library.

mod io;
mod names;

pub(crate) use io::io;
pub(crate) use names::names;

use crate::run::Bench;
use crate::scratch;
use kiln_client::{Client, NewFile, OpenMode};
use kiln_types::{Caller, Context, FileKind, InodeId, Result};
use std::sync::Arc;

/// A directory of this run in the root of the file system.
pub(crate) struct Directory {
    client: Arc<Client>,
    caller: Caller,
    name: String,
    inode: InodeId,
}

impl Directory {
    pub(crate) async fn create(bench: &Bench) -> Result<Self> {
        let (client, caller) = (Arc::clone(&bench.client), bench.caller.clone());
        let name = scratch::name(&bench.env);
        let made = client.make_dir(&caller, InodeId::ROOT, name.as_bytes(), 0o700).await;
        let inode = made.context("test directory in the cluster")?.inode;
        Ok(Self { client, caller, name, inode })
    }

    pub(crate) fn inode(&self) -> InodeId {
        self.inode
    }

    /// Removes it with what is in it.
    pub(crate) async fn remove(self) -> Result<()> {
        let (client, caller) = (&self.client, &self.caller);
        let (mut found, mut open) = (Vec::new(), vec![self.inode]);
        while let Some(directory) = open.pop() {
            for entry in client.list_dir(caller, directory).await? {
                let is_directory = entry.attr.kind == FileKind::Directory;
                found.push((directory, entry.name, is_directory));
                open.extend(is_directory.then_some(entry.attr.inode));
            }
        }
        // What is in a directory was found behind it.
        for (parent, name, is_directory) in found.into_iter().rev() {
            client.remove_past_trash(caller, parent, &name, is_directory).await?;
        }
        let name = self.name.as_bytes();
        client.remove_past_trash(caller, InodeId::ROOT, name, true).await.map(drop)
    }
}

/// A file of this run.
fn new_file(parent: InodeId, name: &[u8]) -> NewFile<'_> {
    NewFile { parent, name, mode: 0o600, exclusive: true, open: OpenMode::EDIT }
}
