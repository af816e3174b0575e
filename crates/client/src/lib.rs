//! The async client: routing, metadata, striped file I/O.
//!
//! A [`Client`] is one incarnation: it draws an id, keeps its sessions alive at the metadata service, and
//! says goodbye when it is closed. Metadata goes through [`Meta`], chunks through [`ChunkClient`], whose
//! decisions are [`kiln_chain::Initiator`]'s; an open [`File`] spreads requests over its chunks.
#![forbid(unsafe_code)]

mod attributes;
mod channels;
mod chunks;
mod client;
mod closing;
mod file;
mod locks;
mod many;
mod meta;
mod names;
mod open;
mod quota;
mod reads;
mod reports;
mod session;
mod sparse;
mod trash;
mod watch;
mod written;

pub use attributes::{SetAttr, SetTime, SetXattr, Space};
pub use chunks::{ChunkClient, Grant, Granted, Place};
pub use client::{Client, Options, Parts};
pub use file::File;
pub use many::{CloseOne, NewOne};
pub use meta::{Meta, Turn};
pub use names::{DirEntry, Entry, Rename};
pub use open::{NewFile, OpenMode};
pub use sparse::SeekTo;
pub use trash::TrashListing;
pub use watch::{Change, Changes, Heard};
