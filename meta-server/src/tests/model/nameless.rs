//! Files that are made without a name.

use super::{By, Model, Outcome};
use kiln_types::{FileKind, InodeId};

impl Model {
    pub(crate) fn make_nameless(
        &mut self,
        by: &By<'_>,
        parent: InodeId,
        mode: u32,
        id: InodeId,
    ) -> Outcome<()> {
        self.directory(by, parent, 3)?;
        self.attached(parent)?;
        let node = self.fresh(by, parent, FileKind::File, mode);
        self.nodes.insert(id, node);
        self.nameless.insert(id);
        Ok(())
    }
}
