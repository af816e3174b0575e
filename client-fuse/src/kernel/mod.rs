//! The kernel's FUSE protocol: the one place that speaks it.
//!
//! [`Session::mount`] serves a [`FileSystem`](crate::FileSystem) to the kernel; [`KernelLink`] carries what other
//! clients change the other way. Beneath, `abi` is the protocol as values, and `device` moves its bytes; `attach`
//! mounts. A request is taken up by a thread of the `session`, passed on by the `adapter`, becomes a task when it
//! has waited (`late`), and is answered once (`pending`), whatever happens; `interrupts` knows those under way, `given` the names that the kernel has.

mod abi;
mod adapter;
mod attach;
mod caller;
mod device;
mod given;
mod interrupts;
mod late;
mod link;
mod pending;
mod privileges;
mod requests;
mod session;

pub use attach::MountOptions;
pub(crate) use attach::SUBTYPE;
pub use link::KernelLink;
pub use session::Session;
