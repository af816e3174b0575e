//! Advisory locks through an open file.

use crate::chunks::Grant;
use crate::file::File;
use kiln_rpc::convert::{id_bytes, required};
use kiln_rpc::v1;
use kiln_types::{Attr, Code, Error, Lock, LockFamily, LockMode, LockOwner, LockRange, Result};

impl File {
    /// Locks; what `owner` held of the range is replaced. The attributes at that moment, or `None` when somebody
    /// else's lock excludes it. With `wait`, [`Change::Unlocked`](crate::Change::Unlocked) tells when to try
    /// again; what owners of this client unlock is not told.
    ///
    /// # Errors
    /// `NoLocks`, or what the metadata service says. After one that does not say so it may be locked.
    pub async fn lock(&self, owner: LockOwner, lock: Lock, wait: bool) -> Result<Option<Attr>> {
        let reply = self.set_lock(owner, lock, false, wait).await?;
        reply.attr.map(|attr| self.shared.take(attr)).transpose()
    }

    /// Unlocks what `owner` holds in a family and range.
    ///
    /// # Errors
    /// `NoLocks` when the rest of a lock would be one lock too many, or what the metadata service says.
    pub async fn unlock(
        &self,
        owner: LockOwner,
        family: LockFamily,
        range: LockRange,
    ) -> Result<()> {
        let lock = Lock { family, mode: LockMode::Shared, range, pid: 0 };
        self.set_lock(owner, lock, true, false).await.map(drop)
    }

    /// Somebody else's lock that excludes `lock`; its process is 0 when it is another client's.
    ///
    /// # Errors
    /// What the metadata service says.
    pub async fn lock_holder(&self, owner: LockOwner, lock: Lock) -> Result<Option<Lock>> {
        let shared = &self.shared;
        let request = v1::GetLockRequest {
            caller: Some(shared.session.caller().into()),
            client: id_bytes(shared.session.client()),
            inode: self.inode().0,
            session: shared.session.id().to_vec().into(),
            owner: owner.0,
            lock: Some((&lock).into()),
        };
        let reply = match shared.meta.get_lock(request.clone()).await {
            Err(error) if self.may_be_unknown(&error) => {
                shared.session.renew().await?;
                shared.meta.get_lock(request).await?
            }
            reply => reply?,
        };
        if reply.lock.is_none() {
            return Ok(None);
        }
        let mut held: Lock = required(reply.lock, "lock")?;
        if !reply.own_client {
            held.pid = 0;
        }
        Ok(Some(held))
    }

    async fn set_lock(
        &self,
        owner: LockOwner,
        lock: Lock,
        unlock: bool,
        wait: bool,
    ) -> Result<v1::SetLockReply> {
        let shared = &self.shared;
        let turn = shared.meta.turn(shared.session.caller());
        let request = v1::SetLockRequest {
            origin: turn.origin(),
            inode: self.inode().0,
            session: shared.session.id().to_vec().into(),
            owner: owner.0,
            lock: Some((&lock).into()),
            unlock,
            wait,
        };
        match shared.meta.set_lock(request.clone()).await {
            Err(error) if self.may_be_unknown(&error) => {
                shared.session.renew().await?;
                shared.meta.set_lock(request).await
            }
            reply => reply,
        }
    }

    /// Whether a server that began anew may not have been told yet that the file is open; a renewal tells it.
    fn may_be_unknown(&self, error: &Error) -> bool {
        error.code() == Code::StaleHandle && !self.mode().write
    }
}
