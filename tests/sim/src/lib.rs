//! A seeded, deterministic simulation of a whole cluster in one process: the shipping servers, their
//! manager and the shipping chunk client on simulated machines, disks and network, with faults.
//!
//! [`Options::of`] expands a seed, [`run`] runs it, and the [`Report`] says what was wrong: a history
//! that is not linearizable, replicas that differ, a cluster that does not heal, a panic.
#![forbid(unsafe_code)]

mod client;
mod cluster;
mod content;
mod cuts;
mod faults;
mod history;
mod linear;
mod log;
mod manager;
mod options;
mod plants;
mod road;
mod run;
mod server;
mod settle;
mod sweep;
mod tap;
mod workload;

pub use log::print_logs;
pub use options::{Fault, Options};
pub use plants::{MARKS, PLANTS};
pub use run::{Report, run};
pub use sweep::{Summary, Sweep, sweep};
