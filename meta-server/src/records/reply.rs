//! The answers to changes, as they are kept for those who ask again.

use super::{
    Record, read_flag, read_floors, read_kind, read_layout, read_time, write_floors, write_layout,
    write_time,
};
use crate::SessionId;
use kiln_types::{Attr, Decoder, Encoder, InodeId, RequestId, Result, TruncateEpoch};

/// The last change that a client asked for in one slot, and the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) request: RequestId,
    pub(crate) answer: Answer,
}

/// What a change answers.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Answer {
    pub(crate) attr: Option<Attr>,
    pub(crate) session: Option<SessionId>,
}

impl Record for Reply {
    const TYPE: u16 = 6;
    const VERSION: u16 = 3;
    const WHAT: &'static str = "recorded answer";

    fn write(&self, to: &mut Encoder) {
        to.u128(self.request.0).u8(u8::from(self.answer.session.is_some()));
        if let Some(session) = self.answer.session {
            to.u128(session.0);
        }
        to.u8(u8::from(self.answer.attr.is_some()));
        if let Some(attr) = &self.answer.attr {
            write_attr(to, attr);
        }
    }

    fn read(from: &mut Decoder<'_>, version: u16) -> Result<Self> {
        let request = RequestId(from.u128()?);
        let session = match read_flag(from)? {
            true => Some(SessionId(from.u128()?)),
            false => None,
        };
        let attr = match read_flag(from)? {
            true => Some(read_attr(from, version)?),
            false => None,
        };
        Ok(Self { request, answer: Answer { attr, session } })
    }
}

fn write_attr(to: &mut Encoder, attr: &Attr) {
    to.u64(attr.inode.0).u8(attr.kind as u8).u32(attr.mode).u32(attr.uid).u32(attr.gid);
    to.u32(attr.links).u64(attr.length);
    for time in [attr.atime, attr.mtime, attr.ctime, attr.btime] {
        write_time(to, time);
    }
    to.u64(attr.epoch.0);
    write_floors(to, &attr.floors);
    to.u8(u8::from(attr.layout.is_some()));
    if let Some(layout) = &attr.layout {
        write_layout(to, layout);
    }
    to.u64(attr.dense_end).u32(attr.device);
}

fn read_attr(from: &mut Decoder<'_>, version: u16) -> Result<Attr> {
    let mut attr = Attr {
        inode: InodeId(from.u64()?),
        kind: read_kind(from)?,
        mode: from.u32()?,
        uid: from.u32()?,
        gid: from.u32()?,
        links: from.u32()?,
        length: from.u64()?,
        dense_end: 0,
        device: 0,
        atime: read_time(from)?,
        mtime: read_time(from)?,
        ctime: read_time(from)?,
        btime: read_time(from)?,
        epoch: TruncateEpoch(from.u64()?),
        floors: read_floors(from)?,
        layout: match read_flag(from)? {
            true => Some(read_layout(from)?),
            false => None,
        },
    };
    if version > 1 {
        attr.dense_end = from.u64()?;
    }
    if version > 2 {
        attr.device = from.u32()?;
    }
    Ok(attr)
}
