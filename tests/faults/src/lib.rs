//! A real cluster of `kiln` processes under faults and a checked workload.
//!
//! [`command`] moves the process into a mount namespace where all that it makes vanishes with it, and has
//! network namespaces as hosts. [`run()`] starts a cluster there, each server on a host of its own, lets
//! clients write and read what they can recognise, and brings about faults that a seed decides;
//! [`cut_power`] has the servers in a virtual machine whose disks lose what was not flushed. Both judge: no
//! acknowledged write may be lost, no read be older than one before it, everything whole again in time.
#![forbid(unsafe_code)]

mod access;
mod block;
mod blocks;
mod board;
mod command;
mod disks;
mod faults;
mod faulty;
mod judge;
mod logs;
mod machine;
mod names;
mod namespaces;
mod power;
mod report;
mod run;
mod seat;
mod servers;
mod shell;
mod volatile;
mod workload;

pub use command::{Common, Outcome, Setting, command};
pub use faults::{KINDS, Kind};
pub use power::cut_power;
pub use run::run;
