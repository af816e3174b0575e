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

    /// Whether `peer` may make this write. Servers may make any; an operator may remove; a client only
    /// puts bytes and zeros, within what it was granted, under the epoch that it was granted, in its own name.
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
        if update.change == Change::Remove && peer.require_operator().is_ok() {
            return Ok(());
        }
        let end = match update.change {
            Change::Write { offset, .. } => u64::from(offset) + bytes as u64,
            Change::Zero { offset, length } => u64::from(offset) + u64::from(length),
            Change::Truncate { .. } | Change::Remove | Change::Replace { .. } => {
                return Err(refused(
                    "only servers truncate chunks, and only they and operators remove them",
                ));
            }
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
        let start = index.checked_mul(u64::from(update.chunk_bytes));
        let end = start.and_then(|start| start.checked_add(end));
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

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_net::PeerKind;
    use kiln_types::{
        ChainId, ChainVersion, ChannelId, ClientId, ClusterId, Consistency, CredentialLimits,
        InodeId, RetryKey, Secret, Sequence, ServerKey, TreeId, TruncateEpoch,
    };
    use kiln_wire::{Name, Update};

    const CHUNK: u32 = 1 << 20;
    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn key(secret: u8) -> CapabilityKey {
        let secret = Secret([secret; 32]);
        CapabilityKey::derive(&ServerKey { cluster: ClusterId(1), id: KeyId(1), secret })
    }

    fn peer(kind: PeerKind) -> Peer {
        Peer {
            kind,
            node: None,
            cluster: ClusterId(1),
            key: KeyId(1),
            version: 1,
            features: 0,
            address: "a test".into(),
        }
    }

    fn client() -> Peer {
        let limits = CredentialLimits { operator: false, ..CredentialLimits::default() };
        peer(PeerKind::Client { name: "ada".into(), limits })
    }

    fn operator() -> Peer {
        peer(PeerKind::Client { name: "eve".into(), limits: CredentialLimits::default() })
    }

    fn granted() -> Capability {
        Capability {
            key: KeyId(1),
            client: ClientId(9),
            tree: TreeId::MAIN,
            inode: InodeId(5),
            epoch: TruncateEpoch(2),
            read: true,
            write: true,
            size_granted: 3 * u64::from(CHUNK),
            expires: Timestamp(60_000_000_000),
        }
    }

    fn write(inode: u64, index: u64, capability: &Capability) -> Write {
        let chunk = ChunkId::file(TreeId::MAIN, InodeId(inode), index);
        let retry = RetryKey { client: ClientId(9), channel: ChannelId(0), sequence: Sequence(1) };
        Write {
            name: Name { chain: ChainId(1), chain_version: ChainVersion(1), chunk },
            update: Update {
                change: Change::Write { offset: 0, checksums: Vec::new() },
                epoch: TruncateEpoch(2),
                floor: TruncateEpoch(0),
                chunk_bytes: CHUNK,
                retry: Some(retry),
            },
            capability: capability.mint(&key(1)),
        }
    }

    fn check(write: &Write) -> Result<(), Code> {
        let rights = Rights::new([key(1)]);
        let bytes = CHUNK as usize;
        rights.check_write(&client(), write, bytes, NOW).map_err(|error| error.code())
    }

    #[test]
    fn a_client_writes_what_it_was_granted_and_nothing_else() {
        assert_eq!(check(&write(5, 2, &granted())), Ok(()));
        let refused = Err(Code::CapabilityRefused);
        assert_eq!(check(&write(6, 2, &granted())), refused, "another file");
        assert_eq!(check(&write(5, 3, &granted())), refused, "beyond the granted size");
        assert_eq!(check(&write(5, u64::MAX, &granted())), refused, "beyond all sizes");
        let zero = |length| {
            let mut zero = write(5, 2, &granted());
            zero.update.change = Change::Zero { offset: 0, length };
            Rights::new([key(1)]).check_write(&client(), &zero, 0, NOW).map_err(|e| e.code())
        };
        assert_eq!(zero(CHUNK), Ok(()));
        assert_eq!(zero(CHUNK + 1), refused, "zeros beyond the granted size");
        let other = |change: fn(&mut Capability)| {
            let mut capability = granted();
            change(&mut capability);
            check(&write(5, 2, &capability))
        };
        assert_eq!(other(|c| c.write = false), refused);
        assert_eq!(other(|c| c.client = ClientId(8)), refused, "another holder");
        assert_eq!(other(|c| c.tree = TreeId(7)), refused);
        assert_eq!(other(|c| c.expires = Timestamp(-60_000_000_000)), refused);
        assert_eq!(other(|c| c.epoch = TruncateEpoch(1)), Err(Code::StaleEpoch));
    }

    #[test]
    fn what_only_servers_do_and_what_nobody_signed_is_refused() {
        let refused = Err(Code::CapabilityRefused);
        for change in [Change::Remove, Change::Truncate { length: 0 }] {
            let mut cut = write(5, 0, &granted());
            cut.update.change = change;
            assert_eq!(check(&cut), refused);
            cut.capability.clear();
            let rights = Rights::new([key(1)]);
            let server = peer(PeerKind::Server);
            assert!(rights.check_write(&server, &cut, 0, NOW).is_ok(), "a server may");
            let may = rights.check_write(&operator(), &cut, 0, NOW).is_ok();
            assert_eq!(may, cut.update.change == Change::Remove, "an operator removes");
        }
        let mut forged = write(5, 2, &granted());
        forged.capability = granted().mint(&key(2));
        assert_eq!(check(&forged), refused, "signed with another key");
        forged.capability.clear();
        assert_eq!(check(&forged), refused, "no capability");
        let mut nameless = write(5, 2, &granted());
        nameless.update.retry = None;
        assert_eq!(check(&nameless), refused, "a write in nobody's name");
    }

    #[test]
    fn a_read_needs_the_right_to_read_that_file() {
        let rights = Rights::new([key(1)]);
        let read = |inode: u64, capability: &Capability| {
            let read = Read {
                name: write(inode, 0, capability).name,
                offset: 0,
                length: 1,
                floor: TruncateEpoch(0),
                consistency: Consistency::Linearizable,
                capability: capability.mint(&key(1)),
            };
            rights.check_read(&client(), &read, NOW).map_err(|error| error.code())
        };
        assert_eq!(read(5, &granted()), Ok(()));
        assert_eq!(read(6, &granted()), Err(Code::CapabilityRefused));
        let blind = Capability { read: false, ..granted() };
        assert_eq!(read(5, &blind), Err(Code::CapabilityRefused));
    }
}
