//! Extended attributes.

use super::{By, Run, Who, XattrMode, code_of};
use crate::tests::{abandon, code};
use kiln_types::Code;

impl Run {
    pub(super) async fn xattr(&mut self, who: &Who) {
        let inode = self.any_inode();
        let name = format!("user.{}", self.rng.u8(..3)).into_bytes();
        let value = self.rng.bool().then(|| vec![self.rng.u8(..); self.rng.usize(..9)]);
        let change = self.any_change(who);
        let set = insist!(self, s => async { match &value {
                Some(value) => s.set_xattr(&change, inode, &name, value, XattrMode::Any).await,
                None => s.remove_xattr(&change, inode, &name).await,
            } });
        let by = By { caller: &who.caller, now: self.span() };
        let expected = self.model.set_xattr(&by, inode, &name, value.as_deref());
        self.expect(format!("xattr {inode} {name:?} {value:?} by {who:?}"), &set, expected);
        let got = insist!(self, s => async { s.get_xattr(who, inode, &name).await });
        assert_eq!(code(got), self.model.get_xattr(&by, inode, &name));
    }
}
