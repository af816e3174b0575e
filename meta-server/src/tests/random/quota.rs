//! Quotas: limits that are reached again and again, and usage that is right after every step.

use super::{By, Code, Run, Who, code_of};
use crate::counter::Counter;
use crate::store::QuotaChange;
use crate::tests::{abandon, root};
use kiln_types::{Account, QuotaLimits};
use std::sync::Arc;
use std::time::Duration;

const USERS: [u32; 5] = [0, 10, 11, 12, 13];
const GROUPS: [u32; 5] = [0, 100, 200, 300, 400];

impl Run {
    pub(super) async fn set_quota(&mut self, who: &Who) {
        let who = if self.rng.u8(..8) == 0 { who.clone() } else { root() };
        let account = match self.rng.u8(..4) {
            0 => Account::User(*self.rng.choice(&USERS).expect("one")),
            1 => Account::Group(*self.rng.choice(&GROUPS).expect("one")),
            _ => Account::Directory(self.any_parent()),
        };
        let clears = self.rng.u8(..3) == 0;
        let used = self.model.usage(account);
        let limits = QuotaLimits {
            bytes: self.rng.bool().then(|| used.bytes + self.rng.u64(..300_000)),
            inodes: self.rng.bool().then(|| used.inodes + self.rng.u64(..4)),
        };
        let to = if clears { QuotaChange::Clear } else { QuotaChange::Set(limits) };
        let change = self.any_change(&who);
        let set = insist!(self, s => async { s.set_quota(&change, account, to).await });
        let by = By { caller: &who.caller, now: self.span() };
        let expected = self.model.set_quota(&by, account, (!clears).then_some(limits));
        self.expect(format!("quota {account} {to:?} by {who:?}"), &set, expected);
        self.count().await;
        // Other servers know the limits by then.
        self.world.env.sleep(Duration::from_millis(1100)).await;
    }

    /// Counts what was there before, whichever server goes on with it.
    pub(super) async fn count(&mut self) {
        loop {
            let counting = Counter::new(Arc::clone(&self.any_server()));
            match abandon(counting.round(), self.any_polls()).await {
                Some(Ok(())) => return,
                Some(Err(error)) => {
                    let lost = [Code::Unreachable, Code::Conflict, Code::MaybeCommitted];
                    assert!(lost.contains(&error.code()), "{error}");
                }
                None => {}
            }
        }
    }

    pub(super) async fn check_quotas(&mut self) {
        if self.model.end_quotas() {
            // All servers know it by then.
            self.world.env.sleep(Duration::from_millis(1100)).await;
        }
        let users = USERS.into_iter().map(Account::User);
        let groups = GROUPS.into_iter().map(Account::Group);
        let limited: Vec<_> = self.model.limits.keys().copied().collect();
        for account in users.chain(groups).chain(limited.iter().copied()) {
            let quota = insist!(self, s => async { s.quota(&root(), account).await });
            let quota = quota.expect("a quota");
            let limits = self.model.limits.get(&account).copied().unwrap_or_default();
            let is_same = (quota.limits, quota.usage) == (limits, self.model.usage(account));
            assert!(is_same, "{quota:?} after {}", self.recent());
            assert!(!quota.counting, "{quota:?}");
        }
        let listed = insist!(self, s => async { s.quotas(&root(), None).await });
        let (listed, _) = listed.expect("a list");
        let listed: Vec<_> = listed.into_iter().map(|quota| quota.account).collect();
        assert_eq!(listed, limited, "after {}", self.recent());
    }
}
