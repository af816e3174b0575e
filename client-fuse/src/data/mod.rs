//! The content of open files: write-back and read-ahead of one mount, shared by all handles of an inode.

mod backing;

pub(crate) use backing::Backing;
