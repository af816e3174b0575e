//! Files that are made without a name.

use super::{By, Code, CreateArgs, NO_INODE, OpenArgs, Run, Who, code_of};
use crate::tests::abandon;

impl Run {
    pub(super) async fn create_nameless(&mut self, who: &Who) {
        let (parent, mode, client) = (self.any_parent(), self.any_mode(), self.any_client());
        let open = OpenArgs { read: self.rng.bool(), write: true, truncate: false };
        let args = CreateArgs { parent, mode, open, ..CreateArgs::default() };
        let change = self.change(client, who);
        let made = insist!(self, s => async { s.create_nameless(&change, &args).await });
        let id = made.as_ref().map_or(NO_INODE, |opened| opened.attr.inode);
        let by = By { caller: &who.caller, now: self.span() };
        let expected = self.model.within(|m| m.make_nameless(&by, parent, mode, id));
        self.expect(format!("create nameless {args:?} by {who:?}"), &made, expected);
        if let Ok(opened) = made {
            self.note_open(client, &opened, true);
        }
    }

    /// Also what has no name yet.
    pub(super) async fn link(&mut self, who: &Who) {
        let (inode, parent, name) = (self.any_inode(), self.any_parent(), self.any_name());
        let change = self.any_change(who);
        let linked = insist!(self, s => async { s.link(&change, inode, parent, &name).await });
        let by = By { caller: &who.caller, now: self.span() };
        let expected = self.model.within(|m| m.link(&by, inode, parent, &name).map(drop));
        self.expect(format!("link {inode} {parent} {name:?} by {who:?}"), &linked, expected);
    }
}
