//! The answers to changes, as they are kept for those who ask again.

use super::{
    Record, read_flag, read_floors, read_kind, read_layout, read_time, write_floors, write_layout,
    write_time,
};
use crate::SessionId;
use kiln_types::{Attr, Code, Decoder, Encoder, Error, InodeId, RequestId, Result, TruncateEpoch};

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
    /// Of a change of several things: the answer or refusal of each, which have no parts themselves.
    pub(crate) parts: Vec<Result<Answer>>,
}

/// Bytes of a refusal's message, or hint, that are kept.
const TEXT_MAX: usize = 255;

impl Record for Reply {
    const TYPE: u16 = 6;
    const VERSION: u16 = 4;
    const WHAT: &'static str = "recorded answer";

    fn write(&self, to: &mut Encoder) {
        to.u128(self.request.0);
        write_answer(to, &self.answer);
        to.u32(self.answer.parts.len() as u32);
        for part in &self.answer.parts {
            to.u8(u8::from(part.is_ok()));
            match part {
                Ok(answer) => write_answer(to, answer),
                Err(error) => write_refusal(to, error),
            }
        }
    }

    fn read(from: &mut Decoder<'_>, version: u16) -> Result<Self> {
        let request = RequestId(from.u128()?);
        let mut answer = read_answer(from, version)?;
        let parts = if version > 3 { from.u32()? } else { 0 };
        for _ in 0..parts {
            answer.parts.push(match read_flag(from)? {
                true => Ok(read_answer(from, version)?),
                false => Err(read_refusal(from)?),
            });
        }
        Ok(Self { request, answer })
    }
}

fn write_answer(to: &mut Encoder, answer: &Answer) {
    to.u8(u8::from(answer.session.is_some()));
    if let Some(session) = answer.session {
        to.u128(session.0);
    }
    to.u8(u8::from(answer.attr.is_some()));
    if let Some(attr) = &answer.attr {
        write_attr(to, attr);
    }
}

fn read_answer(from: &mut Decoder<'_>, version: u16) -> Result<Answer> {
    let session = match read_flag(from)? {
        true => Some(SessionId(from.u128()?)),
        false => None,
    };
    let attr = match read_flag(from)? {
        true => Some(read_attr(from, version)?),
        false => None,
    };
    Ok(Answer { attr, session, parts: Vec::new() })
}

fn write_refusal(to: &mut Encoder, error: &Error) {
    to.u16(error.code() as u16).bytes(cut(error.message()));
    to.u8(u8::from(error.hint().is_some()));
    if let Some(hint) = error.hint() {
        to.bytes(cut(hint));
    }
}

fn read_refusal(from: &mut Decoder<'_>) -> Result<Error> {
    let number = from.u16()?;
    let code = Code::from_number(number);
    if code as u16 != number {
        return Err(Error::corrupt(format!("a recorded refusal with code {number}")));
    }
    let mut error = Error::new(code, read_text(from)?);
    if read_flag(from)? {
        error = error.with_hint(read_text(from)?);
    }
    Ok(error)
}

fn cut(text: &str) -> &[u8] {
    let fits = |end: &usize| text.is_char_boundary(*end);
    let end = (0..=text.len().min(TEXT_MAX)).rev().find(fits);
    &text.as_bytes()[..end.unwrap_or(0)]
}

fn read_text(from: &mut Decoder<'_>) -> Result<String> {
    let text = String::from_utf8(from.bytes(TEXT_MAX)?.to_vec());
    text.map_err(|_| Error::corrupt("a recorded refusal that is no text"))
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
