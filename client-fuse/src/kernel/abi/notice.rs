//! What the kernel is told without having asked. A notice stands where an answer has its error, and 0 where
//! that has its request's number.

use kiln_types::{Encoder, InodeId};

const NOTIFY_INVAL_INODE: i32 = 2;
const NOTIFY_INVAL_ENTRY: i32 = 3;
const NOTIFY_INC_EPOCH: i32 = 8;

/// A name that the kernel forgets takes the working directory from under a process; one that expires is
/// asked for again when it is used next.
const EXPIRE_ONLY: u32 = 1;

/// A notice: its number, and its body.
pub(crate) type Notice = (i32, Vec<u8>);

/// The attributes of an inode are no longer known, and with `pages` neither is its content.
pub(crate) fn content(inode: InodeId, pages: bool) -> Notice {
    // From a negative offset on: attributes alone. For 0 bytes: to the end.
    let from = if pages { 0 } else { u64::MAX };
    (NOTIFY_INVAL_INODE, Encoder::new().u64(inode.0).u64(from).u64(0).finish())
}

/// A name is no longer known.
pub(crate) fn name(parent: InodeId, name: &[u8]) -> Notice {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
    let mut body = Encoder::new();
    body.u64(parent.0).u32(length).u32(EXPIRE_ONLY).raw(name).u8(0);
    (NOTIFY_INVAL_ENTRY, body.finish())
}

/// No name is known any longer. A kernel before 6.16 does not know this notice.
pub(crate) fn every_name() -> Notice {
    (NOTIFY_INC_EPOCH, Vec::new())
}
