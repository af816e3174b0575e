//! The content of open files: write-back and read-ahead of one mount, shared by all handles of an inode.
//!
//! The kernel's page cache lies above, so that only three kinds of bytes are kept here: written ones that
//! wait ([`dirty`]), those on their way to the backing, and those that were read ahead ([`ahead`]). These
//! are pure; [`content`], [`writing`] and [`reading`] lock them, move bytes and wait; [`pool`] has what the
//! files of a mount share.

mod ahead;
mod backing;
mod content;
mod dirty;
mod errors;
mod extent;
mod options;
mod overlay;
mod pool;
mod reading;
mod sequence;
mod sparse;
mod writing;

#[cfg(test)]
mod tests;

pub(crate) use backing::Backing;
pub(crate) use content::Content;
pub(crate) use errors::ErrorMark;
pub(crate) use options::DataOptions;
pub(crate) use pool::DataPool;
pub(crate) use reading::Stream;
