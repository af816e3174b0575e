//! What clients send and get, as messages.

use crate::SessionId;
use crate::keys::ItemName;
use crate::store::{Claim, InodeChunks, Listed, Opened, SetTime, Written};
use kiln_net::{Peer, PeerKind};
use kiln_rpc::convert::floors;
use kiln_rpc::v1;
use kiln_types::{
    Attr, ByteRange, Error, InodeId, QuotaLimits, Result, Timestamp, TruncateEpoch, Usage,
};

pub(super) fn session(bytes: &[u8]) -> Result<SessionId> {
    let bytes: [u8; 16] = bytes
        .try_into()
        .map_err(|_| Error::invalid(format!("session of {} bytes, 16 expected", bytes.len())))?;
    Ok(SessionId(u128::from_be_bytes(bytes)))
}

pub(super) fn written(peer: &Peer, message: Option<v1::Written>) -> Written {
    let Some(message) = message else { return Written::default() };
    Written {
        end: message.end,
        epoch: TruncateEpoch(message.epoch),
        mtime: message.mtime_ns.map(Timestamp),
        acknowledged: ByteRange { start: message.acknowledged_from, end: message.acknowledged_to },
        keeps_set_ids: message.keeps_set_ids && may_be_root(peer),
    }
}

pub(super) fn claim(claim: v1::Claim) -> Result<Claim> {
    let (inode, session) = (InodeId(claim.inode), session(&claim.session)?);
    Ok(Claim { inode, session, capability: claim.capability.into() })
}

/// Whether who asks may have kept set-id bits, if they say so.
pub(super) fn may_be_root(peer: &Peer) -> bool {
    match &peer.kind {
        PeerKind::Server => true,
        PeerKind::Client { limits, .. } => limits.allows_uid(0),
    }
}

pub(super) fn set_time(at: Option<i64>, now: bool) -> Option<SetTime> {
    if now { Some(SetTime::Now) } else { at.map(|at| SetTime::At(Timestamp(at))) }
}

pub(super) fn entry(attr: &Attr) -> v1::Entry {
    v1::Entry { attr: Some(attr.into()) }
}

pub(super) fn moved(attr: Option<&Attr>) -> v1::Moved {
    v1::Moved { attr: attr.map(Into::into) }
}

pub(super) fn opened(opened: Opened) -> v1::OpenReply {
    let session = opened.session.map(|session| session.0.to_be_bytes().to_vec());
    v1::OpenReply {
        attr: Some((&opened.attr).into()),
        session: session.unwrap_or_default().into(),
        capability: opened.capability.into(),
        capability_ms: u64::try_from(opened.lifetime.as_millis()).unwrap_or(u64::MAX),
        granted: opened.granted,
    }
}

pub(super) fn dir_entry(listed: Listed) -> v1::DirEntry {
    v1::DirEntry {
        name: listed.name.into(),
        inode: listed.inode.0,
        kind: listed.kind as u32,
        cookie: listed.cookie,
        attr: listed.attr.as_ref().map(Into::into),
    }
}

pub(super) fn inode_chunks(found: InodeChunks) -> v1::InodeChunks {
    v1::InodeChunks {
        inode: found.inode.0,
        length: found.length,
        layout: Some((&found.layout).into()),
        removed: found.removed,
        dense_end: found.dense_end,
        epoch: found.epoch.0,
        floors: floors(&found.floors),
    }
}

pub(super) fn item_name(place: v1::TrashPlace) -> ItemName {
    (Timestamp(place.removed_ns), InodeId(place.inode))
}

pub(super) fn trash_place((removed, inode): ItemName) -> v1::TrashPlace {
    v1::TrashPlace { removed_ns: removed.0, inode: inode.0 }
}

/// The space that a quota leaves of a file system's.
pub(super) fn within((limits, usage): &(QuotaLimits, Usage), space: &mut v1::StatFsReply) {
    space.inodes = usage.inodes;
    space.free_inodes = limits.inodes.map(|limit| limit.saturating_sub(usage.inodes));
    if let Some(limit) = limits.bytes {
        space.total_bytes = space.total_bytes.min(limit);
        space.free_bytes = space.free_bytes.min(limit.saturating_sub(usage.bytes));
    }
}
