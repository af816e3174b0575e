//! The kernel's FUSE protocol: the one place that speaks it.
//!
//! [`Session::mount`] serves a [`FileSystem`](crate::FileSystem) to the kernel; [`KernelLink`] carries what other
//! clients change the other way.

mod adapter;
mod convert;
mod link;
mod notify;
mod privileges;
mod requests;
mod session;

pub use link::KernelLink;
pub(crate) use session::SUBTYPE;
pub use session::{MountOptions, Session};
