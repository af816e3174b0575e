//! The mount.
//!
//! [`FileSystem`] is everything that a mounted file system does; its logic knows no kernel and is tested
//! without one. `kernel` is the one place that speaks to the kernel.
#![forbid(unsafe_code)]

mod data;
mod filesystem;
mod kernel;
pub mod mount;
mod tree;

pub use filesystem::{
    DirEntry, FileSystem, Handle, Interrupt, KernelCache, Known, Looked, NewFile, OpenFlags,
    Opened, SetAttr, SetTime, SetXattr, Space,
};
pub use kernel::{KernelLink, MountOptions, Session};
pub use tree::{FsOptions, file_system};
