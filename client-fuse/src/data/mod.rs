//! The content of open files: write-back and read-ahead of one mount, shared by all handles of an inode.

mod backing;
mod content;
mod errors;
mod options;
mod pool;

pub(crate) use backing::Backing;
pub(crate) use content::{Content, Stream, Unreported};
pub(crate) use errors::ErrorMark;
pub(crate) use options::DataOptions;
pub(crate) use pool::DataPool;
