//! Attributes, and extended ones.

use super::{Adapter, done};
use crate::filesystem::{CAPABILITY, Handle, SetAttr, SetXattr};
use crate::kernel::abi::{Header, Reply};
use crate::kernel::caller::caller;
use kiln_types::{Code, Error, Result};

impl Adapter {
    pub(super) async fn set_attr(
        &self,
        header: &Header,
        change: SetAttr,
        through: Option<Handle>,
    ) -> Result<Reply> {
        let (caller, inode, fs) = (caller(header), header.inode, &*self.fs);
        let gives_away = change.uid.is_some() || change.gid.is_some();
        if gives_away || change.length.is_some() {
            let by = (gives_away || caller.uid != 0).then_some(header);
            self.privileges.take_from(fs, inode, by).await?;
        } else if change == SetAttr::default() {
            self.privileges.give_up(fs, header).await?;
        }
        Ok(self.attributes(&fs.set_attr(&caller, inode, through, change).await?))
    }

    pub(super) async fn set_xattr(
        &self,
        header: &Header,
        name: &[u8],
        value: &[u8],
        how: SetXattr,
    ) -> Result<Reply> {
        if name == CAPABILITY {
            self.privileges.note_capability(header.inode);
        }
        done(self.fs.set_xattr(&caller(header), header.inode, name, value, how).await)
    }

    pub(super) async fn get_xattr(
        &self,
        header: &Header,
        name: &[u8],
        room: usize,
    ) -> Result<Reply> {
        let value = self.fs.get_xattr(&caller(header), header.inode, name).await?;
        if name == CAPABILITY {
            self.privileges.note_capability(header.inode);
        }
        extended(value, room)
    }

    pub(super) async fn list_xattrs(&self, header: &Header, room: usize) -> Result<Reply> {
        let names = self.fs.list_xattrs(&caller(header), header.inode).await?;
        let ended = |mut name: Vec<u8>| {
            name.push(0);
            name
        };
        extended(names.into_iter().flat_map(ended).collect(), room)
    }
}

/// An extended attribute, or its length where only that was asked.
fn extended(value: Vec<u8>, room: usize) -> Result<Reply> {
    match room {
        0 => Ok(Reply::count(value.len())),
        room if value.len() <= room => Ok(Reply::Fields(value)),
        _ => Err(Error::new(Code::OutOfRange, "the value does not fit")),
    }
}
