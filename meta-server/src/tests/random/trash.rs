//! The trash: what is removed comes back, or goes for good when its time has come.

use super::{By, Code, Model, Run, Who, code_of};
use crate::expirer::Expirer;
use crate::tests::model::Span;
use crate::tests::{abandon, root};
use kiln_types::{InodeId, TrashItem};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

impl Run {
    pub(super) async fn trash(&mut self, who: &Who) {
        match self.rng.u8(..8) {
            0 => self.set_trash(who).await,
            1 => self.remove_tree(who).await,
            2..=5 => self.restore(who).await,
            6 => self.empty_trash(who).await,
            _ => self.expire().await,
        }
    }

    async fn set_trash(&mut self, who: &Who) {
        let who = if self.rng.u8(..8) == 0 { who.clone() } else { root() };
        let times = [None, Some(2), Some(30), Some(300), Some(300), Some(300)];
        let keep = self.rng.choice(&times).expect("one").map(Duration::from_secs);
        let change = self.any_change(&who);
        let set = insist!(self, s => async { s.set_trash(&change, keep).await });
        let by = By { caller: &who.caller, now: self.span() };
        let expected = self.model.set_trash(&by, keep);
        self.expect(format!("trash {keep:?} by {who:?}"), &set, expected);
        // Other servers know it by then.
        self.world.env.sleep(Duration::from_millis(1100)).await;
    }

    /// Mostly of an item.
    fn any_item(&mut self) -> InodeId {
        let items: Vec<_> = self.model.trash.items.keys().copied().collect();
        match self.rng.choice(&items) {
            Some(item) if self.rng.u8(..12) > 0 => *item,
            _ => self.any_inode(),
        }
    }

    async fn restore(&mut self, who: &Who) {
        let (id, to) = (self.any_item(), (self.any_parent(), self.any_name()));
        let to = self.rng.bool().then_some((to.0, &to.1[..]));
        let change = self.any_change(who);
        let restored = insist!(self, s => async { s.restore(&change, id, to).await });
        let by = By { caller: &who.caller, now: self.span() };
        let quota = |model: &Model| model.nodes.get(&id).map(|node| node.quota);
        let before = quota(&self.model);
        let expected = self.model.within(|m| m.restore(&by, id, to));
        if quota(&self.model) != before {
            self.model.count_below(id);
        }
        self.expect(format!("restore {id} {to:?} by {who:?}"), &restored, expected);
        self.count().await;
    }

    async fn empty_trash(&mut self, who: &Who) {
        let ids: Vec<_> = (0..self.rng.u8(1..4)).map(|_| self.any_item()).collect();
        let change = self.any_change(who);
        let emptied = insist!(self, s => async { s.empty_trash(&change, &ids).await });
        self.prune().await;
        let by = By { caller: &who.caller, now: self.span() };
        let expected = self.model.empty_trash(&by, &ids);
        self.expect(format!("empty {ids:?} by {who:?}"), &emptied, expected);
    }

    /// Some time goes by, and what is due goes, whichever server goes on with it.
    async fn expire(&mut self) {
        self.world.env.sleep(Duration::from_secs(self.rng.u64(..20))).await;
        self.begin();
        loop {
            let expirer = Expirer::new(Arc::clone(&self.any_server()));
            match abandon(expirer.round(), self.any_polls()).await {
                Some(Ok(_)) => break,
                Some(Err(error)) => {
                    let lost = [Code::Unreachable, Code::Conflict, Code::MaybeCommitted];
                    assert!(lost.contains(&error.code()), "{error}");
                }
                None => {}
            }
        }
        self.follow_expiry(true).await;
    }

    /// The model lets go of what is gone, which has to be due; with `all` everything that was due before is gone.
    pub(super) async fn follow_expiry(&mut self, all: bool) {
        self.prune().await;
        let Span(begin, end) = self.span();
        let there: BTreeSet<_> =
            self.listed(&root(), true).await.iter().map(|item| item.attr.inode).collect();
        for (id, item) in self.model.trash.items.clone() {
            let (first, last) = (self.model.expires(item.at.0), self.model.expires(item.at.1));
            if there.contains(&id) {
                assert!(!all || last > begin, "{item:?} stays after {}", self.recent());
                continue;
            }
            assert!(first.0 <= end.0 + 1000, "{item:?} is gone after {}", self.recent());
            let by = By { caller: &root().caller, now: Span(begin, end) };
            self.model.let_go(&by, id);
            self.log.push(format!("expired {id}"));
        }
    }

    /// The whole trash as somebody sees it.
    async fn listed(&mut self, who: &Who, all: bool) -> Vec<TrashItem> {
        let (mut items, mut after) = (Vec::new(), None);
        loop {
            let page = insist!(self, s => async { s.trash_items(who, all, after).await });
            let (page, next) = page.expect("a page");
            items.extend(page);
            match next {
                Some(next) => after = Some(next),
                None => return items,
            }
        }
    }

    /// The trash is that of the model, for root and for somebody else.
    pub(super) async fn check_trash(&mut self, step: u64) {
        let is_new = self.model.trash.items.values().any(|item| item.at.0 != item.at.1);
        if !is_new && !step.is_multiple_of(16) {
            return;
        }
        let listed = self.listed(&root(), true).await;
        assert!(listed.is_sorted_by_key(|item| (item.removed, item.attr.inode)));
        let ids: BTreeSet<_> = listed.iter().map(|item| item.attr.inode).collect();
        let expected = self.model.trash.items.keys().copied().collect();
        assert_eq!(ids, expected, "after {}", self.recent());
        for found in &listed {
            let id = found.attr.inode;
            let path = self.model.path(self.model.trash.items[&id].directory);
            let expires = self.model.expires(found.removed);
            let item = self.model.trash.items.get_mut(&id).expect("an item");
            assert!(item.at.holds(found.removed), "{item:?} {found:?}");
            item.at = Span::exactly(found.removed);
            assert_eq!((&item.name, item.by), (&found.name, found.by));
            assert_eq!((path, expires), (found.directory.clone(), found.expires));
        }
        let who = self.rng.choice(&self.users).expect("a user").clone();
        let own: BTreeSet<_> =
            self.listed(&who, false).await.iter().map(|item| item.attr.inode).collect();
        let by = By { caller: &who.caller, now: self.span() };
        let expected = ids.into_iter().filter(|id| self.model.is_own(&by, *id));
        assert_eq!(own, expected.collect(), "of {who:?} after {}", self.recent());
    }
}
