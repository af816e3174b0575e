//! Content against a model, in simulated time.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod behaviour;
mod disk;
mod random;
