//! The processes of a local cluster: shared by `kiln up` and the test harness.
//!
//! A cluster lives in one directory ([`ClusterDir`]); whoever runs it holds the directory's [`Lock`], so
//! there is one supervisor at most. [`Cluster`] starts the servers as child processes, each by its own
//! command line, knows from a line on their standard output that they are ready, starts them again when
//! they die, and stops them in an order in which nobody is declared dead. A mount of the cluster is one more
//! child: started last, stopped first.
//!
//! Invariants: a directory is a cluster when it has a `cluster.toml`, which is written last; nothing in a
//! directory that is not a cluster of this layout is touched; a server does not outlive its supervisor.
#![forbid(unsafe_code)]

mod child;
mod cluster;
mod dir;
mod event;
mod lock;
mod member;
mod ports;
mod process;
mod service;
mod shape;
mod state;
mod supervise;

pub use child::{READY, SUPERVISOR, Supervised};
pub use cluster::{Cluster, clear_stale};
pub use dir::ClusterDir;
pub use event::Event;
pub use lock::Lock;
pub use process::Exit;
pub use service::Service;
pub use shape::{Postgres, Shape, Wishes};
pub use state::{ServerState, State};
pub use supervise::Stop;
