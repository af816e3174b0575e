//! The trash.

use super::{By, Model, Outcome, Span};
use crate::store::trash::TRASHED;
use kiln_types::{Code, FileKind, InodeId, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Default)]
pub(crate) struct Trash {
    pub(crate) on: bool,
    pub(crate) keep: Duration,
    /// What is removed now goes for good.
    pub(crate) passed_by: bool,
    pub(crate) items: BTreeMap<InodeId, Item>,
}

#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) directory: InodeId,
    pub(crate) name: Vec<u8>,
    pub(crate) by: u32,
    /// To be narrowed to the moment that the store says.
    pub(crate) at: Span,
}

impl Model {
    pub(crate) fn set_trash(&mut self, by: &By<'_>, keep: Option<Duration>) -> Outcome<()> {
        if by.caller.uid != 0 {
            return Err(Code::NotPermitted);
        }
        self.trash.on = keep.is_some();
        self.trash.keep = keep.unwrap_or(self.trash.keep);
        Ok(())
    }

    /// A name is taken away.
    pub(super) fn lose(&mut self, by: &By<'_>, id: InodeId, (parent, name): (InodeId, &[u8])) {
        let kind = self.nodes[&id].kind;
        self.edit(id).ctime = by.now;
        let keeps = self.trash.on && !self.trash.passed_by && !kind.is_special();
        if keeps && !self.is_named(id) {
            let name = name.to_vec();
            let item = Item { directory: parent, name, by: by.caller.uid, at: by.now };
            self.trash.items.insert(id, item);
            self.edit(id).parent = TRASHED;
        } else if kind == FileKind::Directory {
            self.drop_tree(by, id);
        } else {
            self.settle(id);
        }
    }

    /// Nothing is made in a directory that was removed.
    pub(super) fn attached(&self, id: InodeId) -> Outcome<()> {
        if self.trash.items.contains_key(&id) { Err(Code::NotFound) } else { Ok(()) }
    }

    /// Whether a directory is in the tree.
    pub(super) fn rooted(&self, id: InodeId) -> Outcome<()> {
        self.attached(id)?;
        if id == InodeId::ROOT { Ok(()) } else { self.rooted(self.nodes[&id].parent) }
    }

    /// The path of a directory.
    pub(crate) fn path(&self, id: InodeId) -> Option<Vec<u8>> {
        if id == InodeId::ROOT {
            return Some(b"/".to_vec());
        }
        let parent = self.nodes.get(&id).filter(|_| self.attached(id).is_ok())?.parent;
        let mut names = self.nodes[&parent].names.iter();
        let (name, _) = names.find(|(_, child)| **child == id).expect("a name");
        let above = self.path(parent)?;
        Some([above.strip_suffix(b"/").unwrap_or(&above), b"/", name].concat())
    }

    pub(crate) fn is_own(&self, by: &By<'_>, id: InodeId) -> bool {
        [self.trash.items[&id].by, self.nodes[&id].uid].contains(&by.caller.uid)
    }

    fn item(&self, by: &By<'_>, id: InodeId) -> Outcome<Item> {
        let item = self.trash.items.get(&id).ok_or(Code::NotFound)?;
        match by.caller.uid == 0 || self.is_own(by, id) {
            true => Ok(item.clone()),
            false => Err(Code::NotPermitted),
        }
    }

    pub(crate) fn restore(
        &mut self,
        by: &By<'_>,
        id: InodeId,
        to: Option<(InodeId, &[u8])>,
    ) -> Outcome<()> {
        let item = self.item(by, id)?;
        let (parent, name) = to.unwrap_or((item.directory, &item.name));
        self.free(by, id, parent, name).map_err(|code| match code {
            Code::StaleHandle if to.is_none() => Code::NotFound,
            code => code,
        })?;
        let has_more = self.nodes[&id].kind == FileKind::Directory && !self.has_own(id);
        let changes_quota = self.nodes[&id].quota != self.nodes[&parent].quota;
        if parent != item.directory && has_more && changes_quota {
            return Err(Code::OtherQuota);
        }
        self.trash.items.remove(&id);
        self.edit(parent).names.insert(name.to_vec(), id);
        self.changed(by, parent);
        self.arrive(by, id, parent);
        Ok(())
    }

    fn free(&self, by: &By<'_>, id: InodeId, parent: InodeId, name: &[u8]) -> Outcome<()> {
        self.directory(by, parent, 1)?;
        if self.child(parent, name).is_ok() {
            return Err(Code::Exists);
        }
        self.need(by, parent, 3)?;
        self.attached(parent)?;
        if self.below(id).contains(&parent) {
            return Err(Code::Invalid);
        }
        self.rooted(parent)
    }

    /// What is in a directory counts for what it counts for.
    pub(crate) fn count_below(&mut self, id: InodeId) {
        let node = &self.nodes[&id];
        let quota = node.quota;
        for child in node.names.clone().into_values() {
            if !self.has_own(child) {
                self.count_for(child, quota);
            }
        }
    }

    pub(crate) fn empty_trash(&mut self, by: &By<'_>, ids: &[InodeId]) -> Outcome<()> {
        let before = self.clone();
        let mut outcome = Err(Code::NotFound);
        for id in ids {
            match self.item(by, *id) {
                Ok(_) => {
                    self.let_go(by, *id);
                    outcome = Ok(());
                }
                Err(Code::NotFound) => {}
                Err(code) => {
                    *self = before;
                    return Err(code);
                }
            }
        }
        outcome
    }

    pub(crate) fn let_go(&mut self, by: &By<'_>, id: InodeId) {
        self.trash.items.remove(&id);
        match self.nodes[&id].kind {
            FileKind::Directory => self.drop_tree(by, id),
            _ => self.settle(id),
        }
    }

    /// When an item goes for good.
    pub(crate) fn expires(&self, removed: Timestamp) -> Timestamp {
        Timestamp(removed.0 + self.trash.keep.as_nanos() as i64)
    }
}
