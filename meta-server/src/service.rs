//! What clients may ask: messages in, operations of the [`Store`], messages out.

mod convert;
mod many;

use crate::chunks::ChunkService;
use crate::store::{
    Change, CreateArgs, LockArgs, OpenArgs, QuotaChange, RenameArgs, Renewal, SetAttrArgs, Store,
    Who, XattrMode,
};
use convert::{
    claim, dir_entry, entry, inode_chunks, item_name, may_be_root, moved, opened, session,
    set_time, trash_place, within, written,
};
use kiln_net::Peer;
use kiln_rpc::convert::{file_kind, id_from, required};
use kiln_rpc::metadata::fitting;
use kiln_rpc::{Origin, v1};
use kiln_types::LayoutWish;
use kiln_types::{Caller, Code, Error, InodeId, LockOwner, QuotaLimits, Result, RoutingInfo};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The metadata service.
pub struct Service {
    pub(crate) store: Arc<Store>,
    pub(crate) chunks: Arc<dyn ChunkService>,
    pub(crate) routing: watch::Receiver<Arc<RoutingInfo>>,
}

/// As whom a peer's request is made, within what its credential allows.
fn who(peer: &Peer, caller: Caller) -> Result<Who> {
    let kiln_net::PeerKind::Client { name, limits } = &peer.kind else {
        return Ok(Who { caller, credential: String::new(), subtree: None });
    };
    if !limits.allows_uid(caller.uid) {
        let text = format!("credential '{name}' does not allow to act as user {}", caller.uid);
        return Err(Error::new(Code::NotAuthorized, text));
    }
    let subtree = (limits.subtree != "/").then(|| limits.subtree.clone());
    Ok(Who { caller, credential: name.clone(), subtree })
}

/// The credential alone counts: no user acts.
fn no_user(peer: &Peer) -> Who {
    let credential = match &peer.kind {
        kiln_net::PeerKind::Client { name, .. } => name.clone(),
        kiln_net::PeerKind::Server => String::new(),
    };
    Who { credential, ..Who::default() }
}

fn asker(peer: &Peer, caller: Option<v1::Caller>) -> Result<Who> {
    who(peer, required(caller, "caller")?)
}

fn change(peer: &Peer, origin: Option<v1::Origin>) -> Result<Change> {
    let Origin { caller, client, request } = required(origin, "origin")?;
    Ok(Change { who: who(peer, caller)?, client, request, past_trash: false })
}

/// A change that takes a name away.
fn removal(peer: &Peer, origin: Option<v1::Origin>, past_trash: bool) -> Result<Change> {
    Ok(Change { past_trash, ..change(peer, origin)? })
}

impl Service {
    pub(crate) async fn lookup(&self, peer: &Peer, ask: v1::LookupRequest) -> Result<v1::Entry> {
        let who = asker(peer, ask.caller)?;
        Ok(entry(&self.store.lookup(&who, InodeId(ask.parent), &ask.name).await?))
    }

    pub(crate) async fn resolve(&self, peer: &Peer, ask: v1::ResolveRequest) -> Result<v1::Entry> {
        let who = asker(peer, ask.caller)?;
        let start = InodeId(ask.start);
        Ok(entry(&self.store.resolve(&who, start, &ask.path, ask.follow).await?))
    }

    pub(crate) async fn get_attr(&self, peer: &Peer, ask: v1::GetAttrRequest) -> Result<v1::Attr> {
        let who = asker(peer, ask.caller)?;
        Ok((&self.store.get_attr(&who, InodeId(ask.inode)).await?).into())
    }

    pub(crate) async fn set_attr(&self, peer: &Peer, ask: v1::SetAttrRequest) -> Result<v1::Attr> {
        let change = change(peer, ask.origin)?;
        let through = (!ask.session.is_empty()).then(|| session(&ask.session)).transpose()?;
        let args = SetAttrArgs {
            mode: ask.mode,
            uid: ask.uid,
            gid: ask.gid,
            length: ask.length,
            atime: set_time(ask.atime_ns, ask.atime_now),
            mtime: set_time(ask.mtime_ns, ask.mtime_now),
            layout: ask
                .layout
                .map(|wish| LayoutWish { chunk_bytes: wish.chunk_bytes, stripe: wish.stripe }),
            session: through,
            written: written(peer, ask.written),
            keeps_set_ids: ask.keeps_set_ids && may_be_root(peer),
        };
        Ok((&self.store.set_attr(&change, InodeId(ask.inode), &args).await?).into())
    }

    pub(crate) async fn create(
        &self,
        peer: &Peer,
        ask: v1::CreateRequest,
    ) -> Result<v1::OpenReply> {
        let change = change(peer, ask.origin)?;
        let open = OpenArgs { read: ask.read, write: ask.write, truncate: ask.truncate };
        let args = CreateArgs {
            parent: InodeId(ask.parent),
            name: ask.name.into(),
            mode: ask.mode,
            exclusive: ask.exclusive,
            open,
            wish: LayoutWish { chunk_bytes: ask.chunk_bytes, stripe: ask.stripe },
        };
        let made = match ask.nameless {
            true => self.store.create_nameless(&change, &args).await?,
            false => self.store.create(&change, &args).await?,
        };
        Ok(opened(made))
    }

    pub(crate) async fn open(&self, peer: &Peer, ask: v1::OpenRequest) -> Result<v1::OpenReply> {
        let change = change(peer, ask.origin)?;
        let args = OpenArgs { read: ask.read, write: ask.write, truncate: ask.truncate };
        Ok(opened(self.store.open_file(&change, InodeId(ask.inode), args).await?))
    }

    pub(crate) async fn close(&self, peer: &Peer, ask: v1::CloseRequest) -> Result<v1::Attr> {
        let change = change(peer, ask.origin)?;
        let (session, written) = (session(&ask.session)?, written(peer, ask.written));
        let inode = InodeId(ask.inode);
        Ok((&self.store.close(&change, inode, session, &written).await?).into())
    }

    pub(crate) async fn sync(&self, peer: &Peer, ask: v1::SyncRequest) -> Result<v1::Attr> {
        let change = change(peer, ask.origin)?;
        let (session, written) = (session(&ask.session)?, written(peer, ask.written));
        let inode = InodeId(ask.inode);
        Ok((&self.store.sync(&change, inode, session, &written).await?).into())
    }

    pub(crate) async fn report(
        &self,
        peer: &Peer,
        ask: v1::ReportRequest,
    ) -> Result<v1::AttrResults> {
        let change = change(peer, ask.origin)?;
        let reports: Vec<_> =
            ask.files.into_iter().map(|file| many::report(peer, file)).collect::<Result<_>>()?;
        many::attrs(self.store.report(&change, &reports).await?)
    }

    pub(crate) async fn create_many(
        &self,
        peer: &Peer,
        ask: v1::CreateManyRequest,
    ) -> Result<v1::OpenResults> {
        let change = change(peer, ask.origin)?;
        let open = OpenArgs { read: ask.read, write: ask.write, truncate: false };
        let files: Vec<_> = ask.files.into_iter().map(|f| many::create(f, open)).collect();
        Ok(many::results(self.store.create_many(&change, &files, ask.nameless).await?))
    }

    pub(crate) async fn close_many(
        &self,
        peer: &Peer,
        ask: v1::CloseManyRequest,
    ) -> Result<v1::AttrResults> {
        let change = change(peer, ask.origin)?;
        let files: Vec<_> =
            ask.files.into_iter().map(|file| many::close(peer, file)).collect::<Result<_>>()?;
        many::attrs(self.store.close_many(&change, &files).await?)
    }

    pub(crate) async fn stat_many(
        &self,
        peer: &Peer,
        ask: v1::StatManyRequest,
    ) -> Result<v1::AttrResults> {
        let who = asker(peer, ask.caller)?;
        let inodes: Vec<_> = ask.inodes.into_iter().map(InodeId).collect();
        let names: Vec<_> = ask.names.into_iter().map(Vec::from).collect();
        let place = (InodeId(ask.parent), &names[..]);
        many::attrs(self.store.stat_many(&who, &inodes, place).await?)
    }

    pub(crate) async fn open_path(
        &self,
        peer: &Peer,
        ask: v1::OpenPathRequest,
    ) -> Result<v1::OpenReply> {
        let change = change(peer, ask.origin)?;
        let args = OpenArgs { read: ask.read, write: ask.write, truncate: ask.truncate };
        let place = (InodeId(ask.start), &ask.path[..]);
        Ok(opened(self.store.open_path(&change, place, args).await?))
    }

    pub(crate) async fn end_sessions(
        &self,
        peer: &Peer,
        ask: v1::EndSessionsRequest,
    ) -> Result<v1::Empty> {
        let sessions: Vec<_> =
            ask.sessions.iter().map(|bytes| session(bytes)).collect::<Result<_>>()?;
        let client = id_from(&ask.client)?;
        self.store.end_sessions(&no_user(peer), client, &sessions).await?;
        Ok(v1::Empty {})
    }

    pub(crate) async fn claim(&self, peer: &Peer, ask: v1::ClaimRequest) -> Result<v1::Empty> {
        let client = id_from(&ask.client)?;
        let claims: Vec<_> = ask.claims.into_iter().map(claim).collect::<Result<_>>()?;
        self.store.claim(&no_user(peer), client, &claims, ask.all).await?;
        Ok(v1::Empty {})
    }

    pub(crate) async fn set_lock(
        &self,
        peer: &Peer,
        ask: v1::SetLockRequest,
    ) -> Result<v1::SetLockReply> {
        let change = change(peer, ask.origin)?;
        let args = LockArgs {
            inode: InodeId(ask.inode),
            session: session(&ask.session)?,
            owner: LockOwner(ask.owner),
            lock: required(ask.lock, "lock")?,
        };
        if ask.unlock {
            self.store.unlock(&change, &args).await?;
            return Ok(v1::SetLockReply { attr: None });
        }
        let attr = self.store.lock(&change, &args, ask.wait).await?;
        Ok(v1::SetLockReply { attr: attr.as_ref().map(Into::into) })
    }

    pub(crate) async fn get_lock(
        &self,
        peer: &Peer,
        ask: v1::GetLockRequest,
    ) -> Result<v1::GetLockReply> {
        let who = asker(peer, ask.caller)?;
        let args = LockArgs {
            inode: InodeId(ask.inode),
            session: session(&ask.session)?,
            owner: LockOwner(ask.owner),
            lock: required(ask.lock, "lock")?,
        };
        let held = self.store.lock_holder(&who, id_from(&ask.client)?, &args).await?;
        let own_client = held.is_some_and(|(_, own)| own);
        Ok(v1::GetLockReply { lock: held.map(|(lock, _)| (&lock).into()), own_client })
    }

    pub(crate) async fn renew(&self, peer: &Peer, ask: v1::RenewRequest) -> Result<v1::OpenReply> {
        let who = asker(peer, ask.caller)?;
        let (client, session) = (id_from(&ask.client)?, session(&ask.session)?);
        let (end, promised) = (ask.end, ask.promised);
        let wanted = Renewal { end, promised, capability: ask.capability.into() };
        let inode = InodeId(ask.inode);
        Ok(opened(self.store.renew(&who, client, inode, session, &wanted).await?))
    }

    pub(crate) async fn keep_alive(
        &self,
        peer: &Peer,
        ask: v1::KeepAliveRequest,
    ) -> Result<v1::Empty> {
        self.store.keep_alive(&no_user(peer), id_from(&ask.client)?, ask.goodbye).await?;
        Ok(v1::Empty {})
    }

    pub(crate) async fn read_dir(
        &self,
        peer: &Peer,
        ask: v1::ReadDirRequest,
    ) -> Result<v1::ReadDirReply> {
        let who = asker(peer, ask.caller)?;
        let (inode, limit) = (InodeId(ask.inode), ask.limit as usize);
        let page = self.store.read_dir(&who, inode, ask.after, limit, ask.with_attrs).await?;
        let (entries, end) = page;
        let (entries, all) = fitting(entries.into_iter().map(dir_entry));
        Ok(v1::ReadDirReply { entries, end: end && all })
    }

    pub(crate) async fn make_dir(&self, peer: &Peer, ask: v1::MakeDirRequest) -> Result<v1::Entry> {
        let change = change(peer, ask.origin)?;
        let made = self.store.make_dir(&change, InodeId(ask.parent), &ask.name, ask.mode);
        Ok(entry(&made.await?))
    }

    pub(crate) async fn remove_dir(
        &self,
        peer: &Peer,
        ask: v1::RemoveRequest,
    ) -> Result<v1::Moved> {
        let change = removal(peer, ask.origin, ask.past_trash)?;
        let gone = self.store.remove_dir(&change, InodeId(ask.parent), &ask.name);
        Ok(moved(gone.await?.as_ref()))
    }

    pub(crate) async fn remove_tree(
        &self,
        peer: &Peer,
        ask: v1::RemoveRequest,
    ) -> Result<v1::Empty> {
        let change = removal(peer, ask.origin, ask.past_trash)?;
        self.store.remove_tree(&change, InodeId(ask.parent), &ask.name).await?;
        Ok(v1::Empty {})
    }

    pub(crate) async fn unlink(&self, peer: &Peer, ask: v1::RemoveRequest) -> Result<v1::Moved> {
        let change = removal(peer, ask.origin, ask.past_trash)?;
        let gone = self.store.unlink(&change, InodeId(ask.parent), &ask.name);
        Ok(moved(gone.await?.as_ref()))
    }

    pub(crate) async fn rename(&self, peer: &Peer, ask: v1::RenameRequest) -> Result<v1::Moved> {
        let change = change(peer, ask.origin)?;
        let args = RenameArgs {
            parent: InodeId(ask.parent),
            name: ask.name.into(),
            new_parent: InodeId(ask.new_parent),
            new_name: ask.new_name.into(),
            no_replace: ask.no_replace,
            exchange: ask.exchange,
        };
        Ok(moved(self.store.rename(&change, &args).await?.as_ref()))
    }

    pub(crate) async fn symlink(&self, peer: &Peer, ask: v1::SymlinkRequest) -> Result<v1::Entry> {
        let change = change(peer, ask.origin)?;
        let made = self.store.symlink(&change, InodeId(ask.parent), &ask.name, &ask.target);
        Ok(entry(&made.await?))
    }

    pub(crate) async fn make_node(
        &self,
        peer: &Peer,
        ask: v1::MakeNodeRequest,
    ) -> Result<v1::Entry> {
        let change = change(peer, ask.origin)?;
        let kind = file_kind(ask.kind)?;
        let place = (InodeId(ask.parent), &ask.name[..]);
        let made = self.store.make_node(&change, place, ask.mode, kind, ask.device);
        Ok(entry(&made.await?))
    }

    pub(crate) async fn read_link(
        &self,
        peer: &Peer,
        ask: v1::GetAttrRequest,
    ) -> Result<v1::LinkTarget> {
        let who = asker(peer, ask.caller)?;
        let target = self.store.read_link(&who, InodeId(ask.inode)).await?;
        Ok(v1::LinkTarget { target: target.into() })
    }

    pub(crate) async fn link(&self, peer: &Peer, ask: v1::LinkRequest) -> Result<v1::Entry> {
        let change = change(peer, ask.origin)?;
        let (inode, parent) = (InodeId(ask.inode), InodeId(ask.parent));
        Ok(entry(&self.store.link(&change, inode, parent, &ask.name).await?))
    }

    pub(crate) async fn stat_fs(
        &self,
        peer: &Peer,
        ask: v1::StatFsRequest,
    ) -> Result<v1::StatFsReply> {
        let space = self.chunks.space().await?;
        let mut reply = v1::StatFsReply {
            total_bytes: space.total_bytes,
            free_bytes: space.free_bytes,
            inodes: self.store.inode_count().await?,
            free_inodes: None,
        };
        if ask.inode != 0 {
            let who = asker(peer, ask.caller)?;
            let quota = self.store.space_at(&who, InodeId(ask.inode)).await?;
            quota.iter().for_each(|quota| within(quota, &mut reply));
        }
        Ok(reply)
    }

    pub(crate) async fn set_quota(
        &self,
        peer: &Peer,
        ask: v1::SetQuotaRequest,
    ) -> Result<v1::Empty> {
        let change = change(peer, ask.origin)?;
        let account = required(ask.account, "account")?;
        let to = match ask.clear {
            true => QuotaChange::Clear,
            false => QuotaChange::Set(QuotaLimits { bytes: ask.bytes, inodes: ask.inodes }),
        };
        self.store.set_quota(&change, account, to).await?;
        Ok(v1::Empty {})
    }

    pub(crate) async fn get_quota(
        &self,
        peer: &Peer,
        ask: v1::GetQuotaRequest,
    ) -> Result<v1::Quota> {
        let who = asker(peer, ask.caller)?;
        let account = required(ask.account, "account")?;
        Ok(self.store.quota(&who, account).await?.into())
    }

    pub(crate) async fn list_quotas(
        &self,
        peer: &Peer,
        ask: v1::ListQuotasRequest,
    ) -> Result<v1::ListQuotasReply> {
        let who = asker(peer, ask.caller)?;
        let after = ask.after.map(TryInto::try_into).transpose()?;
        let (quotas, end) = self.store.quotas(&who, after).await?;
        let (quotas, all) = fitting(quotas.into_iter().map(Into::into));
        Ok(v1::ListQuotasReply { quotas, end: end && all })
    }

    pub(crate) async fn set_trash(
        &self,
        peer: &Peer,
        ask: v1::SetTrashRequest,
    ) -> Result<v1::Empty> {
        let change = change(peer, ask.origin)?;
        self.store.set_trash(&change, ask.keep_ns.map(Duration::from_nanos)).await?;
        Ok(v1::Empty {})
    }

    pub(crate) async fn get_trash(
        &self,
        peer: &Peer,
        ask: v1::GetTrashRequest,
    ) -> Result<v1::Trash> {
        asker(peer, ask.caller)?;
        Ok(self.store.trash().await?.into())
    }

    pub(crate) async fn list_trash(
        &self,
        peer: &Peer,
        ask: v1::ListTrashRequest,
    ) -> Result<v1::ListTrashReply> {
        let who = asker(peer, ask.caller)?;
        let after = ask.after.map(item_name);
        let (items, next) = self.store.trash_items(&who, ask.all, after).await?;
        let (page, all) = fitting(items.iter().map(Into::into));
        let next = match all {
            true => next,
            false => items.get(page.len() - 1).map(|item| (item.removed, item.attr.inode)),
        };
        Ok(v1::ListTrashReply { items: page, next: next.map(trash_place) })
    }

    pub(crate) async fn restore(&self, peer: &Peer, ask: v1::RestoreRequest) -> Result<v1::Entry> {
        let change = change(peer, ask.origin)?;
        let to = (ask.parent != 0).then_some((InodeId(ask.parent), &ask.name[..]));
        Ok(entry(&self.store.restore(&change, InodeId(ask.inode), to).await?))
    }

    pub(crate) async fn empty_trash(
        &self,
        peer: &Peer,
        ask: v1::EmptyTrashRequest,
    ) -> Result<v1::Empty> {
        let change = change(peer, ask.origin)?;
        let inodes: Vec<_> = ask.inodes.into_iter().map(InodeId).collect();
        self.store.empty_trash(&change, &inodes).await?;
        Ok(v1::Empty {})
    }

    pub(crate) async fn get_xattr(
        &self,
        peer: &Peer,
        ask: v1::XattrRequest,
    ) -> Result<v1::XattrValue> {
        let who = asker(peer, ask.caller)?;
        let value = self.store.get_xattr(&who, InodeId(ask.inode), &ask.name).await?;
        Ok(v1::XattrValue { value: value.into() })
    }

    pub(crate) async fn set_xattr(
        &self,
        peer: &Peer,
        ask: v1::SetXattrRequest,
    ) -> Result<v1::Empty> {
        let change = change(peer, ask.origin)?;
        let mode = match (ask.create_only, ask.replace_only) {
            (false, false) => XattrMode::Any,
            (true, false) => XattrMode::Create,
            (false, true) => XattrMode::Replace,
            (true, true) => return Err(Error::invalid("create only and replace only")),
        };
        let inode = InodeId(ask.inode);
        self.store.set_xattr(&change, inode, &ask.name, &ask.value, mode).await?;
        Ok(v1::Empty {})
    }

    pub(crate) async fn list_xattrs(
        &self,
        peer: &Peer,
        ask: v1::GetAttrRequest,
    ) -> Result<v1::XattrNames> {
        let who = asker(peer, ask.caller)?;
        let names = self.store.list_xattrs(&who, InodeId(ask.inode)).await?;
        Ok(v1::XattrNames { names: names.into_iter().map(Into::into).collect() })
    }

    pub(crate) async fn remove_xattr(
        &self,
        peer: &Peer,
        ask: v1::RemoveXattrRequest,
    ) -> Result<v1::Empty> {
        let change = change(peer, ask.origin)?;
        self.store.remove_xattr(&change, InodeId(ask.inode), &ask.name).await?;
        Ok(v1::Empty {})
    }

    pub(crate) async fn list_inodes(
        &self,
        peer: &Peer,
        ask: v1::ListInodesRequest,
    ) -> Result<v1::ListInodesReply> {
        peer.require_operator()?;
        let page = self.store.list_inodes(InodeId(ask.after), ask.limit as usize).await?;
        let (inodes, end) = page;
        let (inodes, all) = fitting(inodes.into_iter().map(inode_chunks));
        let (next_inode, lost) = self.store.inode_ids_end().await?;
        let lost = lost.into_iter().map(|ids| v1::LostIds { first: ids.start, end: ids.end });
        let (next_inode, lost) = (next_inode.0, lost.collect());
        Ok(v1::ListInodesReply { inodes, end: end && all, next_inode, lost })
    }

    pub(crate) async fn backup(
        &self,
        peer: &Peer,
        ask: v1::BackupRequest,
    ) -> Result<v1::BackupReply> {
        peer.require_operator()?;
        let known = (!ask.id.is_empty()).then(|| <[u8; 16]>::try_from(&ask.id[..]));
        let known = known.transpose().map_err(|_| Error::invalid("the id of a backup"))?;
        let page = self.store.backup(known.map(u128::from_be_bytes), &ask.after).await?;
        let pair = |(key, value): (Vec<u8>, Vec<u8>)| v1::KeyAndValue {
            key: key.into(),
            value: value.into(),
        };
        Ok(v1::BackupReply {
            id: page.id.to_be_bytes().to_vec().into(),
            begun: page.begun.0,
            pairs: page.pairs.into_iter().map(pair).collect(),
        })
    }

    pub(crate) async fn path_of(&self, peer: &Peer, ask: v1::PathRequest) -> Result<v1::PathReply> {
        peer.require_operator()?;
        let path = self.store.path_of(InodeId(ask.inode)).await?;
        Ok(v1::PathReply { path: path.unwrap_or_default().into() })
    }
}
