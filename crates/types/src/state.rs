//! States of a target.

use std::fmt;

/// What everyone may use a target for, as the manager published it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum PublicState {
    /// Reads and writes. Holds every acknowledged write.
    Serving = 1,
    /// The last one that served, now gone: the chain waits for it.
    LastServing = 2,
    /// Receives every write, serves no read, and is being filled by its predecessor.
    Syncing = 4,
    /// Alive, and waits for its turn to sync.
    Waiting = 8,
    /// Gone, or not to be used.
    Offline = 16,
}

/// What a target's own server says of it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum LocalState {
    /// Open, and holds every acknowledged write as far as it knows.
    UpToDate = 1,
    /// Open, but it may have missed writes.
    Online = 2,
    /// Not open: the disk or the server failed, or it stopped.
    Offline = 4,
}

impl PublicState {
    /// Whether a write of the chain must reach this target before it is acknowledged.
    pub fn takes_writes(self) -> bool {
        matches!(self, Self::Serving | Self::Syncing)
    }

    /// The state with this wire number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Serving, Self::LastServing, Self::Syncing, Self::Waiting, Self::Offline]
            .into_iter()
            .find(|state| *state as u8 == number)
    }
}

impl LocalState {
    /// Whether the target's server is there and has it open.
    pub fn is_alive(self) -> bool {
        self != Self::Offline
    }

    /// The state with this wire number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::UpToDate, Self::Online, Self::Offline]
            .into_iter()
            .find(|state| *state as u8 == number)
    }
}

impl fmt::Display for PublicState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Serving => "serving",
            Self::LastServing => "lastsrv",
            Self::Syncing => "syncing",
            Self::Waiting => "waiting",
            Self::Offline => "offline",
        })
    }
}

impl fmt::Display for LocalState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::UpToDate => "up-to-date",
            Self::Online => "online",
            Self::Offline => "offline",
        })
    }
}
