//! A test double of FoundationDB's client library: not a client, and no cluster behind it.
//!
//! It has the C functions that the crate `foundationdb` calls, with FoundationDB's semantics: read versions, a
//! window of 5 s, strict serializability by conflict ranges, atomic operations, limits, futures that become ready
//! on the network's thread. What our engine does not need answers `unsupported_operation`. Behind it is a store in
//! this process, which a log of commits in a directory keeps until the next one.
//!
//! A *cluster file* is its settings, one `key = value` on a line, see [`settings`]: where the log is, and how often
//! which of FoundationDB's errors strikes.

mod abi;
mod codes;
mod faults;
mod future;
mod log;
mod network;
mod settings;
mod store;
mod transaction;
