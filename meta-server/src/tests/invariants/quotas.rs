//! What counts for whom, as the records say it, is what the counters say.

use super::{Found, KEYS, Pairs, inode_in};
use crate::keys::account_of;
use crate::quota::{accounts, has_own};
use crate::records::{Body, Record, Recount, Slot, number};
use kiln_types::{Account, InodeId, Usage};
use std::collections::BTreeMap;

impl Found {
    pub(super) fn check_usage(&self, counters: &Pairs) {
        let mut used: BTreeMap<Account, Usage> = BTreeMap::new();
        for inode in self.inodes.values() {
            assert!(inode.counted, "inode {}", inode.id);
            let length = if let Body::File(file) = &inode.body { file.length } else { 0 };
            for account in accounts(inode.quota, inode.uid, inode.gid) {
                let usage = used.entry(account).or_default();
                usage.bytes = usage.bytes.wrapping_add(length);
                usage.inodes += 1;
            }
        }
        let mut counted: BTreeMap<_, _> = counters
            .iter()
            .map(|(key, value)| (key.clone(), number(Some(value)).expect("a counter")))
            .collect();
        for (account, Usage { bytes, inodes }) in used {
            for (key, number) in KEYS.usage(account).into_iter().zip([bytes, inodes]) {
                assert_eq!(counted.remove(&key).unwrap_or(0), number, "{account}");
            }
        }
        assert!(counted.values().all(|number| *number == 0), "{counted:?}");
    }

    /// Each directory with a quota counts for itself, and what is `queued` is what waits for a quota.
    pub(super) fn check_quotas(&self, quotas: &Pairs, queued: &Pairs, counters: &Pairs) {
        let of = |key: &Vec<u8>| account_of(key).expect("an account");
        let with_own = self.inodes.values().filter(|inode| has_own(inode));
        let with_own: Vec<_> = with_own.map(|inode| Account::Directory(inode.id)).collect();
        let quotas = quotas.iter().map(|(key, _)| of(key));
        let quotas: Vec<_> = quotas.filter(|q| matches!(q, Account::Directory(_))).collect();
        assert_eq!(quotas, with_own);
        let mut waiting: BTreeMap<InodeId, u64> = BTreeMap::new();
        for (key, value) in queued {
            let at = Recount::decode(value).expect("a count");
            *waiting.entry(at.quota).or_default() += 1;
            let directory = self.inodes.get(&inode_in(key));
            assert!(directory.is_none_or(|directory| directory.quota == at.quota));
        }
        for (key, value) in counters {
            let waits = waiting.remove(&inode_in(key)).unwrap_or(0);
            assert_eq!(number(Some(value)), Ok(waits));
        }
        assert!(waiting.is_empty(), "{waiting:?}");
    }

    /// Directories count for what the one above them counts for, unless that is `queued` or they have a quota
    /// themselves. Files may have names elsewhere, or have had.
    pub(super) fn check_entry_quotas(&self, entries: &Pairs, queued: &Pairs) {
        for (key, value) in entries {
            let directory = &self.inodes[&inode_in(key)];
            let Some(entry) = Slot::decode(value).expect("a slot").entry else { continue };
            let inode = &self.inodes[&entry.inode];
            let is_queued = queued.iter().any(|(key, _)| inode_in(key) == directory.id);
            let may_differ = is_queued || has_own(inode) || !inode.is_directory();
            assert!(may_differ || inode.quota == directory.quota, "{inode:?} in {directory:?}");
        }
    }
}
