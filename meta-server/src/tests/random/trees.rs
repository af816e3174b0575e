//! Names that are removed, and whole trees as one change.

use super::{By, Change, Code, Run, code_of};
use crate::pruner::Pruner;
use crate::store::Who;
use crate::tests::abandon;
use kiln_types::{FileKind, InodeId};
use std::sync::Arc;

impl Run {
    /// Mostly of a directory, or of something else.
    fn any_entry(&mut self, directory: bool) -> (InodeId, Vec<u8>) {
        let mut entries = Vec::new();
        for (id, node) in &self.model.nodes {
            let is_directory = |id| self.model.nodes[id].kind == FileKind::Directory;
            let fits = node.names.iter().filter(|(_, child)| is_directory(child) == directory);
            entries.extend(fits.map(|(name, _)| (*id, name.clone())));
        }
        match self.rng.choice(&entries) {
            Some(entry) if self.rng.u8(..4) > 0 => entry.clone(),
            _ => (self.any_parent(), self.any_name()),
        }
    }

    fn any_removal(&mut self, who: &Who) -> Change {
        self.model.trash.passed_by = self.rng.u8(..4) == 0;
        Change { past_trash: self.model.trash.passed_by, ..self.any_change(who) }
    }

    pub(super) async fn remove(&mut self, who: &Who) {
        let dir = self.rng.bool();
        let (parent, name) = self.any_entry(dir);
        let change = self.any_removal(who);
        let removed = insist!(self, s => async { match dir {
                true => s.remove_dir(&change, parent, &name).await,
                false => s.unlink(&change, parent, &name).await,
            } });
        let by = By { caller: &who.caller, now: self.span() };
        let expected = match dir {
            true => self.model.rmdir(&by, parent, &name),
            false => self.model.unlink(&by, parent, &name),
        };
        self.model.trash.passed_by = false;
        self.expect(format!("remove {dir} {parent} {name:?} by {who:?}"), &removed, expected);
    }

    /// What was removed goes for good, whichever server goes on with it.
    pub(super) async fn prune(&mut self) {
        let pruner = Pruner::new(Arc::clone(&self.any_server()));
        while let Err(error) = pruner.round().await {
            let lost = [Code::Unreachable, Code::Conflict, Code::MaybeCommitted];
            assert!(lost.contains(&error.code()), "{error}");
        }
    }

    pub(super) async fn remove_tree(&mut self, who: &Who) {
        let (parent, name) = self.any_entry(true);
        let change = self.any_removal(who);
        let removed = insist!(self, s => async { s.remove_tree(&change, parent, &name).await });
        let removed = removed.map_err(|error| match error.code() {
            Code::NotPermitted => Code::PermissionDenied.into(),
            _ => error,
        });
        self.prune().await;
        let by = By { caller: &who.caller, now: self.span() };
        let expected = self.model.remove_tree(&by, parent, &name).map_err(|code| match code {
            Code::NotPermitted => Code::PermissionDenied,
            code => code,
        });
        self.model.trash.passed_by = false;
        self.expect(format!("remove tree {parent} {name:?} by {who:?}"), &removed, expected);
    }
}
