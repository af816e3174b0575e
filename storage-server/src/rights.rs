//! Who may do what to which chunk.

use kiln_net::Peer;
use kiln_types::{ChunkId, Code, Error, KeyId, Result, Timestamp};
use kiln_wire::{CAPABILITY_BYTES, Capability, CapabilityKey, Change, Read, Write};
use parking_lot::RwLock;
use std::collections::BTreeMap;

/// The keys under which capabilities are accepted.
pub struct Rights {
    keys: RwLock<BTreeMap<KeyId, CapabilityKey>>,
}

impl Rights {
    /// Accepts capabilities under `keys`.
    pub fn new(keys: impl IntoIterator<Item = CapabilityKey>) -> Self {
        let keys = keys.into_iter().map(|key| (key.id(), key)).collect();
        Self { keys: RwLock::new(keys) }
    }

    /// Whether `peer` may make this read. Servers may read anything.
    ///
    /// # Errors
    /// `CapabilityRefused`.
    pub fn check_read(&self, peer: &Peer, read: &Read, now: Timestamp) -> Result<()> {
        if peer.is_server() {
            return Ok(());
        }
        let capability = self.verify(&read.capability, now)?;
        covers(&capability, &read.name.chunk)?;
        match capability.read {
            true => Ok(()),
            false => Err(refused("the capability does not allow reads")),
        }
    }

    /// Whether `peer` may make this write. Servers may make any; a client only puts bytes, within what
    /// it was granted, under the epoch that it was granted, in its own name.
    ///
    /// # Errors
    /// `CapabilityRefused`; `StaleEpoch` when the capability is of another epoch.
    pub fn check_write(
        &self,
        peer: &Peer,
        write: &Write,
        bytes: usize,
        now: Timestamp,
    ) -> Result<()> {
        if peer.is_server() {
            return Ok(());
        }
        let update = &write.update;
        let Change::Write { offset, .. } = update.change else {
            return Err(refused("only servers truncate and remove chunks"));
        };
        let capability = self.verify(&write.capability, now)?;
        let index = covers(&capability, &write.name.chunk)?;
        if !capability.write {
            return Err(refused("the capability does not allow writes"));
        }
        if capability.epoch != update.epoch {
            let text = format!(
                "the write is of epoch {}, its capability of epoch {}",
                update.epoch, capability.epoch
            );
            return Err(Error::new(Code::StaleEpoch, text));
        }
        let end = index.checked_mul(u64::from(update.chunk_bytes));
        let end = end.and_then(|start| start.checked_add(u64::from(offset) + bytes as u64));
        if end.is_none_or(|end| end > capability.size_granted) {
            return Err(refused("the write reaches beyond the granted size"));
        }
        match update.retry {
            Some(retry) if retry.client == capability.client => Ok(()),
            _ => Err(refused("the write is not in the name of the capability's holder")),
        }
    }

    fn verify(&self, bytes: &[u8], now: Timestamp) -> Result<Capability> {
        if bytes.len() != CAPABILITY_BYTES {
            return Err(refused("the request carries no capability"));
        }
        let keys = self.keys.read();
        Capability::verify(bytes, |id| keys.get(&id), now)
    }
}

/// The index of the chunk, if it is of the capability's file.
fn covers(capability: &Capability, chunk: &ChunkId) -> Result<u64> {
    match chunk.as_file() {
        Some((tree, inode, index)) if tree == capability.tree && inode == capability.inode => {
            Ok(index)
        }
        _ => Err(refused(format!(
            "the capability is for inode {}, the request for chunk {chunk}",
            capability.inode
        ))),
    }
}

fn refused(text: impl Into<String>) -> Error {
    Error::new(Code::CapabilityRefused, text)
}
