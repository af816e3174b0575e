//! The trash as messages.

use crate::convert::required;
use crate::v1;
use kiln_types::{Error, InodeId, Result, Timestamp, Trash, TrashItem, Usage};
use std::time::Duration;

impl From<Trash> for v1::Trash {
    fn from(trash: Trash) -> Self {
        let Trash { on, keep, usage } = trash;
        let keep_ns = u64::try_from(keep.as_nanos()).unwrap_or(u64::MAX);
        Self { on, keep_ns, items: usage.inodes, bytes: usage.bytes }
    }
}

impl From<v1::Trash> for Trash {
    fn from(message: v1::Trash) -> Self {
        let v1::Trash { on, keep_ns, items, bytes } = message;
        let usage = Usage { bytes, inodes: items };
        Self { on, keep: Duration::from_nanos(keep_ns), usage }
    }
}

impl From<&TrashItem> for v1::TrashItem {
    fn from(item: &TrashItem) -> Self {
        Self {
            attr: Some((&item.attr).into()),
            removed_ns: item.removed.0,
            expires_ns: item.expires.0,
            by: item.by,
            name: item.name.clone().into(),
            parent: item.parent.0,
            directory: item.directory.clone().unwrap_or_default().into(),
        }
    }
}

impl TryFrom<v1::TrashItem> for TrashItem {
    type Error = Error;

    fn try_from(message: v1::TrashItem) -> Result<Self> {
        Ok(Self {
            attr: required(message.attr, "attr")?,
            removed: Timestamp(message.removed_ns),
            expires: Timestamp(message.expires_ns),
            by: message.by,
            name: message.name.to_vec(),
            parent: InodeId(message.parent),
            directory: Some(message.directory.to_vec()).filter(|path| !path.is_empty()),
        })
    }
}
