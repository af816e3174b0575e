//! Quotas: everything is counted anew each time.

use super::{By, Model, Node, Outcome};
use kiln_types::{Account, Code, FileKind, InodeId, QuotaLimits, Usage};

impl Model {
    pub(crate) fn usage(&self, account: Account) -> Usage {
        let counts = |node: &&Node| match account {
            Account::Directory(id) => node.quota == id,
            Account::User(uid) => node.uid == uid,
            Account::Group(gid) => node.gid == gid,
        };
        let nodes: Vec<_> = self.nodes.values().filter(counts).collect();
        Usage { bytes: nodes.iter().map(|node| node.length).sum(), inodes: nodes.len() as u64 }
    }

    /// Does something as far as limits allow it: all or nothing.
    pub(crate) fn within<T>(&mut self, work: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        let before = self.clone();
        let outcome = work(self)?;
        for (account, limits) in &before.limits {
            let (old, new) = (before.usage(*account), self.usage(*account));
            let exceeds = |limit: Option<u64>, old: u64, new: u64| {
                new > old && limit.is_some_and(|limit| new > limit)
            };
            if exceeds(limits.bytes, old.bytes, new.bytes)
                || exceeds(limits.inodes, old.inodes, new.inodes)
            {
                *self = before;
                return Err(Code::QuotaExceeded);
            }
        }
        Ok(outcome)
    }

    /// Whether a writer may make a file reach to `end`.
    pub(crate) fn may_reach(&self, id: InodeId, end: u64) -> Outcome<()> {
        self.clone().within(|model| {
            let node = model.edit(id);
            node.length = node.length.max(end);
            Ok(())
        })
    }

    pub(super) fn has_own(&self, id: InodeId) -> bool {
        self.nodes[&id].quota == id
    }

    /// What takes others along may not move between quotas.
    pub(super) fn within_quota(&self, id: InodeId, from: InodeId, to: InodeId) -> Outcome<()> {
        let is_directory = self.nodes[&id].kind == FileKind::Directory;
        let takes = if is_directory { !self.has_own(id) } else { self.links(id) > 1 };
        match takes && self.nodes[&from].quota != self.nodes[&to].quota {
            true => Err(Code::OtherQuota),
            false => Ok(()),
        }
    }

    pub(super) fn follow(&mut self, id: InodeId, parent: InodeId) {
        if !self.has_own(id) {
            self.edit(id).quota = self.nodes[&parent].quota;
        }
    }

    /// `None`: it is taken away.
    pub(crate) fn set_quota(
        &mut self,
        by: &By<'_>,
        account: Account,
        limits: Option<QuotaLimits>,
    ) -> Outcome<()> {
        if by.caller.uid != 0 {
            return Err(Code::NotPermitted);
        }
        let old = self.limits.get(&account).copied();
        let Some(limits) = limits else {
            self.limits.remove(&account).ok_or(Code::NotFound)?;
            if let Account::Directory(id) = account {
                let parent = self.nodes[&id].parent;
                let above = self.nodes.get(&parent).filter(|_| parent != id);
                let above = above.map_or(InodeId(0), |above| above.quota);
                self.count_for(id, above);
            }
            return Ok(());
        };
        if let Account::Directory(id) = account {
            self.directory(by, id, 1)?;
            self.attached(id)?;
            self.count_for(id, id);
        }
        let old = old.unwrap_or_default();
        let (bytes, inodes) = (limits.bytes.or(old.bytes), limits.inodes.or(old.inodes));
        self.limits.insert(account, QuotaLimits { bytes, inodes });
        Ok(())
    }

    /// A directory counts for another quota, and what is in it.
    pub(super) fn count_for(&mut self, id: InodeId, quota: InodeId) {
        if self.nodes[&id].quota == quota {
            return;
        }
        self.edit(id).quota = quota;
        for child in self.nodes[&id].names.clone().into_values() {
            if !self.has_own(child) {
                self.count_for(child, quota);
            }
        }
    }

    /// Quotas end with their directories; whether any did.
    pub(crate) fn end_quotas(&mut self) -> bool {
        let (nodes, before) = (&self.nodes, self.limits.len());
        self.limits.retain(|account, _| match account {
            Account::Directory(id) => nodes.contains_key(id),
            _ => true,
        });
        self.limits.len() < before
    }
}
