//! Requests for several things, as the store has them.

use super::{opened, session, set_time, written};
use crate::store::{CloseArgs, CreateArgs, OpenArgs, Opened, Report, SetAttrArgs};
use kiln_net::Peer;
use kiln_rpc::metadata::fitting;
use kiln_rpc::v1;
use kiln_types::{Attr, Code, Error, InodeId, LayoutWish, Result};

pub(super) fn report(peer: &Peer, file: v1::FileReport) -> Result<Report> {
    let (inode, session) = (InodeId(file.inode), session(&file.session)?);
    Ok(Report { inode, session, written: written(peer, file.written) })
}

pub(super) fn create(file: v1::NewFile, open: OpenArgs) -> CreateArgs {
    let wish = file.layout.unwrap_or_default();
    CreateArgs {
        parent: InodeId(file.parent),
        name: file.name.into(),
        mode: file.mode,
        exclusive: true,
        open,
        wish: LayoutWish { chunk_bytes: wish.chunk_bytes, stripe: wish.stripe },
    }
}

pub(super) fn close(peer: &Peer, file: v1::FileClose) -> Result<CloseArgs> {
    let set = SetAttrArgs {
        mode: file.mode,
        uid: file.uid,
        gid: file.gid,
        atime: set_time(file.atime_ns, false),
        mtime: set_time(file.mtime_ns, false),
        ..SetAttrArgs::default()
    };
    let link = (file.parent != 0).then(|| (InodeId(file.parent), file.name.to_vec()));
    let (inode, session) = (file.inode, file.session);
    let report = report(peer, v1::FileReport { inode, session, written: file.written })?;
    Ok(CloseArgs { report, set, link })
}

/// Fewer are asked for when they are more than an answer takes.
pub(super) fn attrs(all: Vec<Result<Attr>>) -> Result<v1::AttrResults> {
    let (count, results) = (all.len(), all.into_iter().map(v1::AttrResult::from));
    let (results, _) = fitting(results);
    if results.len() == count {
        return Ok(v1::AttrResults { results });
    }
    Err(Error::new(Code::TransactionTooLarge, format!("attributes of {count} in one answer")))
}

pub(super) fn results(all: Vec<Result<Opened>>) -> v1::OpenResults {
    let result = |one: Result<Opened>| match one {
        Ok(file) => v1::OpenResult { opened: Some(opened(file)), failure: None },
        Err(error) => v1::OpenResult { opened: None, failure: Some((&error).into()) },
    };
    v1::OpenResults { results: all.into_iter().map(result).collect() }
}
