//! Directories and what is in them.

use super::Adapter;
use crate::filesystem::{DirEntry, Handle, Looked, Opened};
use crate::kernel::abi::{Header, Listing, Reply};
use crate::kernel::caller::caller;
use kiln_types::{Error, FileKind, InodeId, MODE_PERMISSIONS, Result};
use rustix::fs::FileType;

/// About as many entries as fit into what getdents reads at once, without and with attributes.
const PAGE: usize = 1024;
const PAGE_WITH_ATTRIBUTES: usize = 200;

impl Adapter {
    pub(super) async fn lookup(&self, header: &Header, name: &[u8]) -> Result<Reply> {
        Ok(match self.fs.lookup(&caller(header), header.inode, name).await? {
            Looked::Up(known) => self.entry(header.inode, name, &known),
            Looked::Nothing(time) => {
                self.note_name(header.inode, name, time);
                Reply::no_entry(time)
            }
        })
    }

    pub(super) async fn make_node(
        &self,
        header: &Header,
        name: &[u8],
        mode: u32,
        device: u32,
    ) -> Result<Reply> {
        let kind = node_kind(mode).ok_or_else(|| Error::invalid("mknod makes no such thing"))?;
        let (caller, parent, mode) = (caller(header), header.inode, mode & MODE_PERMISSIONS);
        let known = match kind {
            FileKind::File => self.fs.make_file(&caller, parent, name, mode).await,
            kind => self.fs.make_node(&caller, (parent, name), mode, (kind, device)).await,
        };
        Ok(self.entry(parent, name, &known?))
    }

    pub(super) async fn open_dir(&self, header: &Header) -> Result<Reply> {
        let handle = self.fs.open_dir(&caller(header), header.inode).await?;
        Ok(Reply::opened(Opened { handle, keep_cache: false, direct: false }))
    }

    pub(super) async fn read_dir(
        &self,
        directory: InodeId,
        handle: Handle,
        after: u64,
        (room, with_attributes): (usize, bool),
    ) -> Result<Reply> {
        let limit = if with_attributes { PAGE_WITH_ATTRIBUTES } else { PAGE };
        let entries = self.fs.read_dir(handle, after, limit).await?;
        let mut listing = Listing::new(room);
        let added = entries.iter().take_while(|entry| listing.add(entry, with_attributes));
        for DirEntry { name, known, bare, .. } in added {
            // Before the answer goes, and with it the right to forget.
            if with_attributes && !bare {
                self.fs.looked_up(known.attr.inode);
                self.note(directory, name, known);
            }
        }
        Ok(listing.finish())
    }
}

/// What mknod(2) with this mode makes; `None` when the mode names nothing that it can make.
fn node_kind(mode: u32) -> Option<FileKind> {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Some(FileKind::File),
        FileType::Fifo => Some(FileKind::Fifo),
        FileType::Socket => Some(FileKind::Socket),
        FileType::CharacterDevice => Some(FileKind::CharDevice),
        FileType::BlockDevice => Some(FileKind::BlockDevice),
        _ => None,
    }
}
