//! The name of a chunk.

use crate::{Error, InodeId, Result, TreeId};
use std::fmt;

/// What a chunk belongs to; the first byte of its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ChunkKind {
    /// Part of a file: (inode, index).
    File = 1,
    /// A KV block: (namespace, key).
    KvBlock = 2,
}

/// What a read may show of writes that are under way. Every write that was acknowledged before a read began
/// is seen either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Consistency {
    /// No read shows what a later one contradicts: it may have to wait for what is under way.
    #[default]
    Linearizable = 0,
    /// What the replica has committed, at once. Two reads during a write may show the new bytes first
    /// and then the old ones.
    Relaxed = 1,
}

impl Consistency {
    /// The one with this number in a message.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Linearizable, Self::Relaxed].into_iter().find(|known| *known as u8 == number)
    }
}

/// The 32-byte name of a chunk, ordered as its bytes are, so that a file's chunks are neighbours.
///
/// | bytes | file | KV block |
/// | --- | --- | --- |
/// | 0 | kind = 1 | kind = 2 |
/// | 1..4 | 0 | 0 |
/// | 4..8 | tree, u32 big-endian | tenant, u32 big-endian |
/// | 8..16 | inode, u64 big-endian | namespace, u32 big-endian, then the key's first 4 bytes |
/// | 16..24 | index, u64 big-endian | the key's next 8 bytes |
/// | 24..32 | 0 | the key's last 4 bytes, then 0 |
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId([u8; 32]);

impl ChunkId {
    /// Bytes of an encoded id.
    pub const BYTES: usize = 32;
    /// Sorts before every valid id.
    pub const MIN: Self = Self([0; 32]);
    /// Sorts after every valid id.
    pub const MAX: Self = Self([0xff; 32]);

    /// The chunk `index` of a file.
    pub fn file(tree: TreeId, inode: InodeId, index: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[0] = ChunkKind::File as u8;
        bytes[4..8].copy_from_slice(&tree.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&inode.0.to_be_bytes());
        bytes[16..24].copy_from_slice(&index.to_be_bytes());
        Self(bytes)
    }

    /// The block of `key` in a KV namespace.
    pub fn kv_block(tenant: u32, namespace: u32, key: u128) -> Self {
        let mut bytes = [0; 32];
        bytes[0] = ChunkKind::KvBlock as u8;
        bytes[4..8].copy_from_slice(&tenant.to_be_bytes());
        bytes[8..12].copy_from_slice(&namespace.to_be_bytes());
        bytes[12..28].copy_from_slice(&key.to_be_bytes());
        Self(bytes)
    }

    /// Checks and takes 32 bytes from a disk or the network.
    ///
    /// # Errors
    /// `Corrupt` when the kind is unknown or a reserved byte is not zero.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self> {
        let reserved_zero = match bytes[0] {
            1 => bytes[1..4] == [0; 3] && bytes[24..] == [0; 8],
            2 => bytes[1..4] == [0; 3] && bytes[28..] == [0; 4],
            _ => false,
        };
        if reserved_zero {
            Ok(Self(bytes))
        } else {
            Err(Error::corrupt(format!("not a chunk id: {:02x?}", bytes)))
        }
    }

    /// Any 32 bytes, as a bound of ranges, not as the name of a chunk.
    pub fn bound(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The encoded id.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The bound right behind it.
    pub fn next(&self) -> Self {
        let mut bytes = self.0;
        for byte in bytes.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                return Self(bytes);
            }
        }
        Self::MAX
    }

    /// What the chunk belongs to.
    pub fn kind(&self) -> ChunkKind {
        if self.0[0] == ChunkKind::KvBlock as u8 { ChunkKind::KvBlock } else { ChunkKind::File }
    }

    /// Tree, inode and index of a file's chunk; `None` for other kinds.
    pub fn as_file(&self) -> Option<(TreeId, InodeId, u64)> {
        if self.kind() != ChunkKind::File {
            return None;
        }
        let word = |at: usize| {
            u64::from_be_bytes(self.0[at..at + 8].try_into().expect("invariant: 8 bytes"))
        };
        let tree = u32::from_be_bytes(self.0[4..8].try_into().expect("invariant: a 4-byte slice"));
        Some((TreeId(tree), InodeId(word(8)), word(16)))
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_file() {
            Some((tree, inode, index)) => write!(f, "file:{tree}:{inode}:{index}"),
            None => {
                write!(f, "kv:")?;
                self.0[4..28].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_chunks_are_neighbours_in_order() {
        let ids: Vec<_> =
            [0, 1, 255, 256, u64::MAX].map(|i| ChunkId::file(TreeId(7), InodeId(9), i)).into();
        assert!(ids.is_sorted());
        assert!(ids[4] < ChunkId::file(TreeId(7), InodeId(10), 0));
        for id in ids {
            assert!(id < id.next() && id.next() < ChunkId::MAX);
            assert_eq!(ChunkId::from_bytes(*id.as_bytes()).map_err(|e| e.code()), Ok(id));
        }
    }

    #[test]
    fn reserved_bytes_are_refused() {
        let mut bytes = *ChunkId::kv_block(1, 2, 3).as_bytes();
        assert!(ChunkId::from_bytes(bytes).is_ok());
        bytes[31] = 1;
        assert_eq!(ChunkId::from_bytes(bytes).map_err(|e| e.code()), Err(crate::Code::Corrupt));
        assert!(ChunkId::from_bytes([0; 32]).is_err());
    }
}
