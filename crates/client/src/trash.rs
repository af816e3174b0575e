//! The trash.

use crate::client::Client;
use kiln_rpc::convert::required;
use kiln_rpc::v1;
use kiln_types::{Attr, Caller, Code, InodeId, Result, Trash, TrashItem};
use std::time::Duration;

/// The most items that go in one call of [`Client::empty_trash`].
const EMPTY_MAX: usize = 128;

/// A listing of the trash, page by page.
pub struct TrashListing<'a> {
    client: &'a Client,
    request: v1::ListTrashRequest,
    is_end: bool,
}

impl Client {
    /// Says for how long what is removed, and what is in the trash, is kept; `None`: nothing goes there any more.
    ///
    /// # Errors
    /// `NotPermitted` unless root asks, with a credential for the whole file system; `Invalid` for less than a
    /// second or more than 100 years.
    pub async fn set_trash(&self, caller: &Caller, keep: Option<Duration>) -> Result<()> {
        let turn = self.meta.turn(caller);
        let keep_ns = keep.map(|keep| u64::try_from(keep.as_nanos()).unwrap_or(u64::MAX));
        let request = v1::SetTrashRequest { origin: turn.origin(), keep_ns };
        self.meta.set_trash(request).await.map(drop)
    }

    /// How the trash is set, and how much is in it.
    ///
    /// # Errors
    /// What the metadata service says.
    pub async fn trash(&self, caller: &Caller) -> Result<Trash> {
        let request = v1::GetTrashRequest { caller: Some(caller.into()) };
        Ok(self.meta.get_trash(request).await?.into())
    }

    /// What is in the trash, the oldest first: what the caller removed or owns; with `all`, which only root may
    /// ask, everything.
    pub fn trash_items(&self, caller: &Caller, all: bool) -> TrashListing<'_> {
        let request = v1::ListTrashRequest { caller: Some(caller.into()), all, after: None };
        TrashListing { client: self, request, is_end: false }
    }

    /// Restores an item of the trash, which its inode names: to a name in a directory (empty: the one that it had),
    /// or to where it was.
    ///
    /// # Errors
    /// `NotFound` when there is no such item, or its directory is gone; `Exists`, `OtherQuota`, `QuotaExceeded`,
    /// `NotPermitted` for what another user removed and owns, `PermissionDenied`.
    pub async fn restore(
        &self,
        caller: &Caller,
        inode: InodeId,
        to: Option<(InodeId, &[u8])>,
    ) -> Result<Attr> {
        let turn = self.meta.turn(caller);
        let (parent, name) = to.unwrap_or((InodeId(0), &[]));
        let request = v1::RestoreRequest {
            origin: turn.origin(),
            inode: inode.0,
            parent: parent.0,
            name: name.to_vec().into(),
        };
        required(self.meta.restore(request).await?.attr, "attr")
    }

    /// Lets go of items of the trash for good, the space of which is free soon. Those that are gone already are no
    /// error unless all of them are.
    ///
    /// # Errors
    /// `NotFound`, `NotPermitted` for what another user removed and owns.
    pub async fn empty_trash(&self, caller: &Caller, inodes: &[InodeId]) -> Result<()> {
        let (mut any, mut missing) = (false, None);
        for inodes in inodes.chunks(EMPTY_MAX) {
            let turn = self.meta.turn(caller);
            let inodes = inodes.iter().map(|inode| inode.0).collect();
            let request = v1::EmptyTrashRequest { origin: turn.origin(), inodes };
            match self.meta.empty_trash(request).await {
                Ok(_) => any = true,
                Err(error) if error.code() == Code::NotFound => missing = Some(error),
                Err(error) => return Err(error),
            }
        }
        missing.filter(|_| !any).map_or(Ok(()), Err)
    }
}

impl TrashListing<'_> {
    /// The next items; `None` at the end.
    ///
    /// # Errors
    /// `NotPermitted` unless root asks for all.
    pub async fn next(&mut self) -> Result<Option<Vec<TrashItem>>> {
        if self.is_end {
            return Ok(None);
        }
        let page = self.client.meta.list_trash(self.request.clone()).await?;
        self.request.after = page.next;
        self.is_end = page.next.is_none();
        Ok(Some(page.items.into_iter().map(TrashItem::try_from).collect::<Result<_>>()?))
    }
}
