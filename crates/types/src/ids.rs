//! Newtypes for every id. Ids are 64 bits or wider and are never reused.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(", $format, ")"), self.0)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

/// A 128-bit id, printed and serialised as 32 hex digits.
macro_rules! wide_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:032x})"), self.0)
            }
        }

        impl $name {
            /// The id in 16 bytes, big-endian.
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.to_be_bytes()
            }

            /// Reads what [`Self::to_bytes`] wrote; `None` when it is not 16 bytes long.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Some(Self(u128::from_be_bytes(bytes.try_into().ok()?)))
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::Error;

            fn from_str(text: &str) -> crate::Result<Self> {
                if text.len() == 32 && text.is_ascii() {
                    if let Ok(value) = u128::from_str_radix(text, 16) {
                        return Ok(Self(value));
                    }
                }
                Err(crate::Error::invalid(format!("'{text}' is not an id of 32 hex digits")))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// A server: one storage, meta or manager process and its data directory, across restarts.
    NodeId(u64), "{}"
);
id!(
    /// One replica of one chain, on one disk of one node.
    TargetId(u64), "{}"
);
id!(
    /// A replication chain.
    ChainId(u64), "{}"
);
id!(
    /// A list of chains over which layouts spread files.
    ChainTableId(u64), "{}"
);
id!(
    /// A file, directory or symlink. The root of a tree is 1, as FUSE expects; 0 names nothing.
    InodeId(u64), "{}"
);
id!(
    /// A file-system tree: every metadata key begins with one (snapshots and tenants get their own).
    TreeId(u32), "{}"
);
id!(
    /// One of a client's write channels: at most one write is outstanding on each.
    ChannelId(u32), "{}"
);
id!(
    /// The number of a write on its channel; grows by one, starts at 1.
    Sequence(u64), "{}"
);
id!(
    /// The number of a server key in the cluster's key ring.
    KeyId(u32), "{}"
);
id!(
    /// A version of the routing information; grows with each change.
    RoutingVersion(u64), "{}"
);
wide_id!(
    /// The identity of a cluster, drawn once at its first start.
    ClusterId
);
wide_id!(
    /// The identity of a disk's chunk store, drawn when it is formatted.
    DiskId
);
wide_id!(
    /// A client incarnation: drawn anew by each client process.
    ClientId
);
wide_id!(
    /// One run of a server process; a restarted server has a new one.
    Incarnation
);
wide_id!(
    /// A client's request: drawn once, kept through its retries, so that it is applied once.
    RequestId
);

impl RequestId {
    /// The request `sequence` of `slot`. A client has at most one request under way in each slot and
    /// counts `sequence` up, so that a server keeps one answer for each slot and refuses late duplicates.
    pub fn in_slot(slot: u64, sequence: u64) -> Self {
        Self(u128::from(slot) << 64 | u128::from(sequence))
    }

    /// The slot.
    pub fn slot(self) -> u64 {
        (self.0 >> 64) as u64
    }

    /// The number within the slot.
    pub fn sequence(self) -> u64 {
        self.0 as u64
    }
}

impl InodeId {
    /// The root directory of a tree.
    pub const ROOT: Self = Self(1);
}

impl TreeId {
    /// The tree that a cluster starts with.
    pub const MAIN: Self = Self(0);
}
