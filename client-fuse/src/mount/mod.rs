//! Mount points: what is there, taking over what a dead daemon left, unmounting.
//!
//! Invariant: nothing here waits for a daemon that does not answer. What may hang is asked on a thread of
//! its own, with a deadline; the kernel's table of mounts and the daemon's [`Record`] answer the rest.

mod point;
mod process;
mod record;
pub mod table;
mod unmount;
mod users;

pub use point::{Health, health, prepare, resolve};
pub use process::ProcessId;
pub use record::{Record, Written, name_of, record_of, records, runtime_dir};
pub use unmount::{How, unmount};
pub use users::{User, users};
