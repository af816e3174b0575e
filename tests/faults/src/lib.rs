//! A real cluster of `kiln` processes, each in a network namespace of its own, under random faults and a
//! checked workload.
//!
//! [`enter`] moves the process into a mount namespace where all that it makes vanishes with it; [`run()`]
//! starts a cluster there, lets clients on hosts of their own write and read what they can recognise,
//! brings about faults that a seed decides, and judges: no acknowledged write may be lost, no read be
//! older than one before it, everything whole again in time.
#![forbid(unsafe_code)]

mod block;
mod blocks;
mod board;
mod disks;
mod faults;
mod faulty;
mod logs;
mod names;
mod namespaces;
mod report;
mod run;
mod seat;
mod servers;
mod shell;
mod workload;

pub use faults::{KINDS, Kind};
pub use namespaces::enter;
pub use run::{Options, Outcome, run};
