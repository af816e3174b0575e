//! Whole trees removed as one change.

use super::{By, Model, Outcome};
use kiln_types::{Code, FileKind, InodeId};

impl Model {
    /// The errors of looking through the tree are all `PermissionDenied` here.
    pub(crate) fn remove_tree(&mut self, by: &By<'_>, parent: InodeId, name: &[u8]) -> Outcome<()> {
        self.directory(by, parent, 1)?;
        let id = self.child(parent, name)?;
        let tree = self.tree(id);
        if !tree.iter().all(|at| self.may_empty(by, *at)) {
            return Err(Code::PermissionDenied);
        }
        self.need(by, parent, 3)?;
        self.sticky(by, parent, id)?;
        if self.nodes[&id].kind != FileKind::Directory {
            return Err(Code::NotDirectory);
        }
        self.edit(parent).names.remove(name);
        self.changed(by, parent);
        self.lose(by, id, (parent, name));
        Ok(())
    }

    /// A directory without a name goes with what is in it.
    pub(super) fn drop_tree(&mut self, by: &By<'_>, id: InodeId) {
        for at in self.tree(id).into_iter().rev() {
            for child in self.nodes.get(&at).map(|node| node.names.clone()).unwrap_or_default() {
                self.nodes.entry(child.1).and_modify(|node| node.ctime = by.now);
                self.edit(at).names.remove(&child.0);
                self.settle(child.1);
            }
        }
        self.nodes.remove(&id);
    }

    /// A directory and those below it, from the top.
    fn tree(&self, top: InodeId) -> Vec<InodeId> {
        let mut tree = vec![top];
        let mut at = 0;
        while let Some(id) = tree.get(at) {
            let children = self.nodes[id].names.values();
            let directories = children.filter(|id| self.nodes[id].kind == FileKind::Directory);
            tree.extend(directories.collect::<Vec<_>>());
            at += 1;
        }
        tree
    }

    fn may_empty(&self, by: &By<'_>, id: InodeId) -> bool {
        let mut children = self.nodes[&id].names.values();
        let allowed = children.len() == 0 || self.need(by, id, 7).is_ok();
        allowed && children.all(|child| self.sticky(by, id, *child).is_ok())
    }
}
