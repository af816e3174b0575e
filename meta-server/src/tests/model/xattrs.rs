//! Extended attributes.

use super::{By, Model, Outcome};
use kiln_types::{Code, FileKind, InodeId};

impl Model {
    pub(crate) fn set_xattr(
        &mut self,
        by: &By<'_>,
        id: InodeId,
        name: &[u8],
        value: Option<&[u8]>,
    ) -> Outcome<()> {
        let node = self.node(id)?;
        if !matches!(node.kind, FileKind::File | FileKind::Directory) {
            return Err(Code::NotPermitted);
        }
        if node.kind == FileKind::Directory && node.mode & 0o1000 != 0 {
            self.need_owner(by, id)?;
        }
        self.need(by, id, 2)?;
        let node = self.edit(id);
        match value {
            Some(value) => {
                node.xattrs.insert(name.to_vec(), value.to_vec());
            }
            None => {
                node.xattrs.remove(name).ok_or(Code::NoAttribute)?;
            }
        }
        node.ctime = by.now;
        Ok(())
    }

    pub(crate) fn get_xattr(&self, by: &By<'_>, id: InodeId, name: &[u8]) -> Outcome<Vec<u8>> {
        if !matches!(self.node(id)?.kind, FileKind::File | FileKind::Directory) {
            return Err(Code::NoAttribute);
        }
        self.need(by, id, 4)?;
        self.nodes[&id].xattrs.get(name).cloned().ok_or(Code::NoAttribute)
    }
}
