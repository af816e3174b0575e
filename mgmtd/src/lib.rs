//! The manager: nodes, leases, targets, chains, routing.
//!
//! [`Manager`] decides (`apply(event, now)`), [`Store`] makes its state durable, a thin shell moves
//! messages between them and the network. Several may share a store: [`Roles`] says which one is the
//! primary, the others stand by.
//!
//! Invariant: nobody hears of a state, or gets an answer that rests on it, before it is durable.
#![forbid(unsafe_code)]

mod bootstrap;
mod manager;
mod moves;
mod news;
mod operations;
mod owner;
mod places;
mod record;
mod roles;
mod seat;
mod server;
mod service;
mod settings;
mod state;
mod store;
mod suspects;
mod tonic;

pub use bootstrap::FIRST_TABLE;
pub use manager::{Answer, Event, Manager, Options};
pub use operations::Operation;
pub use roles::Roles;
pub use seat::Seat;
pub use server::{Site, run};
pub use service::{Counter, Service};
pub use state::State;
pub use store::Store;
