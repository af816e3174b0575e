//! Whole trees removed as one change.

use super::{By, Code, Run, code_of};
use crate::pruner::Pruner;
use crate::store::Who;
use crate::tests::abandon;
use std::sync::Arc;

impl Run {
    pub(super) async fn remove_tree(&mut self, who: &Who) {
        let (parent, name) = (self.any_parent(), self.any_name());
        let change = self.any_change(who);
        let removed = insist!(self, s => async { s.remove_tree(&change, parent, &name).await });
        let removed = removed.map_err(|error| match error.code() {
            Code::NotPermitted => Code::PermissionDenied.into(),
            _ => error,
        });
        // Not only the name goes, whichever server goes on with it.
        let pruner = Pruner::new(Arc::clone(&self.any_server()));
        while let Err(error) = pruner.round().await {
            let lost = [Code::Unreachable, Code::Conflict, Code::MaybeCommitted];
            assert!(lost.contains(&error.code()), "{error}");
        }
        let by = By { caller: &who.caller, now: self.span() };
        let expected = self.model.remove_tree(&by, parent, &name).map_err(|code| match code {
            Code::NotPermitted => Code::PermissionDenied,
            code => code,
        });
        self.expect(format!("remove tree {parent} {name:?} by {who:?}"), &removed, expected);
    }
}
