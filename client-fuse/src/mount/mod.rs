//! Mount points: what is there, taking over what a dead daemon left, unmounting.

pub mod table;
