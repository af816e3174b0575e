//! The mount.
//!
//! [`FileSystem`] is everything that a mounted file system does; its logic knows no kernel and is tested
//! without one. `kernel` is the one place that speaks to the kernel.
#![deny(unsafe_code)]

mod data;
mod filesystem;
mod kernel;
pub mod mount;
mod tree;

pub use filesystem::{
    DirEntry, Dropped, FileSystem, Handle, Interrupt, KernelCache, Known, Looked, NewFile,
    OpenFlags, Opened, SeekTo, SetAttr, SetTime, SetXattr, Space, WriteAt,
};
pub use kernel::{KernelLink, MountOptions, Session};
pub use tree::{FsOptions, file_system};
