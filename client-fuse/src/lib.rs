//! The mount.
//!
//! [`FileSystem`] is everything that a mounted file system does; its logic knows no kernel and is tested
//! without one. `kernel.rs` is the one file that speaks to the kernel.
#![forbid(unsafe_code)]

mod data;
mod filesystem;

pub use filesystem::{
    DirEntry, FileSystem, Handle, KernelCache, Known, Looked, NewFile, OpenFlags, Opened, SetAttr,
    SetTime, SetXattr, Space,
};
