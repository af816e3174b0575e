//! The manager: nodes, leases, targets, chains, routing.
//!
//! [`Manager`] decides (`apply(event, now)`), [`Store`] makes its state durable, a thin shell moves
//! messages between them and the network.
//!
//! Invariant: nobody hears of a state, or gets an answer that rests on it, before it is durable.
#![forbid(unsafe_code)]

mod bootstrap;
mod hold;
mod manager;
mod owner;
mod server;
mod service;
mod state;
mod store;
mod suspects;
mod tonic;

pub use bootstrap::FIRST_TABLE;
pub use manager::{Answer, Event, Manager, Options};
pub use owner::Owner;
pub use server::{Site, run, start};
pub use service::{Counter, Service};
pub use state::State;
pub use store::Store;
