//! Capabilities: what the metadata service granted a client, provable to storage without a round trip.

use hmac::{Hmac, KeyInit, Mac};
use kiln_types::{
    ClientId, Code, Decoder, Encoder, Error, InodeId, KeyId, Result, ServerKey, Timestamp, TreeId,
    TruncateEpoch,
};
use sha2::Sha256;

/// Bytes of an encoded capability.
pub const CAPABILITY_BYTES: usize = 2 + 4 + 16 + 4 + 8 + 8 + 1 + 8 + 8 + MAC_BYTES;

const VERSION: u16 = 1;
const MAC_BYTES: usize = 16;
const READ: u8 = 1;
const WRITE: u8 = 2;
/// Wall clocks of the cluster's hosts may differ by this much; a capability is honoured for so much
/// longer, and nothing that depends on its end happens earlier than twice this after it.
pub const CLOCK_SKEW_NS: i64 = 5_000_000_000;

/// The right of one client incarnation to read or write one inode's chunks for a while.
///
/// Encoded, little-endian: version u16, key id u32, client u128, tree u32, inode u64, epoch u64,
/// rights u8, granted size u64, expiry i64 (ns since 1970), then the first 16 bytes of HMAC-SHA256
/// over all that under the key that [`CapabilityKey`] derives from the server key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// The server key under which it is signed.
    pub key: KeyId,
    /// The holder.
    pub client: ClientId,
    /// The inode's tree.
    pub tree: TreeId,
    /// The inode whose chunks it opens.
    pub inode: InodeId,
    /// The inode's truncate epoch when it was granted: writes are made under it.
    pub epoch: TruncateEpoch,
    /// Whether it allows reads.
    pub read: bool,
    /// Whether it allows writes.
    pub write: bool,
    /// Writes may not reach beyond this byte of the file.
    pub size_granted: u64,
    /// After this it opens nothing.
    pub expires: Timestamp,
}

/// The key that signs capabilities, derived from one server key.
#[derive(Clone)]
pub struct CapabilityKey {
    id: KeyId,
    mac: Hmac<Sha256>,
}

impl CapabilityKey {
    /// Derives it: HMAC-SHA256(server key, "kiln capability v1" || cluster id).
    pub fn derive(server_key: &ServerKey) -> Self {
        let mut mac = keyed(&server_key.secret.0);
        mac.update(b"kiln capability v1");
        mac.update(&server_key.cluster.to_bytes());
        Self { id: server_key.id, mac: keyed(&mac.finalize().into_bytes()) }
    }

    /// The number of the server key.
    pub fn id(&self) -> KeyId {
        self.id
    }

    fn sign(&self, body: &[u8]) -> [u8; MAC_BYTES] {
        let mut mac = self.mac.clone();
        mac.update(body);
        let full = mac.finalize().into_bytes();
        full[..MAC_BYTES].try_into().expect("invariant: SHA-256 has 32 bytes")
    }
}

impl std::fmt::Debug for CapabilityKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CapabilityKey({})", self.id)
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("invariant: HMAC takes keys of any length")
}

impl Capability {
    /// Signs and encodes it. Its `key` field is set to the key's number.
    pub fn mint(&self, key: &CapabilityKey) -> Vec<u8> {
        let rights = if self.read { READ } else { 0 } | if self.write { WRITE } else { 0 };
        let mut body = Encoder::new();
        body.u16(VERSION).u32(key.id.0).u128(self.client.0).u32(self.tree.0);
        body.u64(self.inode.0).u64(self.epoch.0).u8(rights).u64(self.size_granted);
        body.u64(self.expires.0 as u64);
        let mut bytes = body.finish();
        let mac = key.sign(&bytes);
        bytes.extend_from_slice(&mac);
        bytes
    }

    /// Checks signature and expiry of an encoded capability. `keys` finds the key of a number.
    ///
    /// # Errors
    /// `CapabilityRefused`, with the reason.
    pub fn verify<'k>(
        bytes: &[u8],
        keys: impl Fn(KeyId) -> Option<&'k CapabilityKey>,
        now: Timestamp,
    ) -> Result<Self> {
        let (capability, signed) = Self::decode(bytes)
            .map_err(|error| refused(format!("the capability is malformed: {error}")))?;
        let key = keys(capability.key)
            .ok_or_else(|| refused(format!("server key {} is not known", capability.key)))?;
        let (body, mac) = bytes.split_at(signed);
        if !bool::from(subtle::ConstantTimeEq::ct_eq(mac, key.sign(body).as_slice())) {
            return Err(refused("the capability's signature is wrong".into()));
        }
        if now.0 > capability.expires.0.saturating_add(CLOCK_SKEW_NS) {
            return Err(refused(format!("the capability expired at {}", capability.expires)));
        }
        Ok(capability)
    }

    fn decode(bytes: &[u8]) -> Result<(Self, usize)> {
        let mut fields = Decoder::new("capability", bytes);
        let version = fields.u16()?;
        if version != VERSION {
            return Err(Error::corrupt(format!("version {version}, this build knows {VERSION}")));
        }
        let key = KeyId(fields.u32()?);
        let client = ClientId(fields.u128()?);
        let tree = TreeId(fields.u32()?);
        let inode = InodeId(fields.u64()?);
        let epoch = TruncateEpoch(fields.u64()?);
        let rights = fields.u8()?;
        let size_granted = fields.u64()?;
        let expires = Timestamp(fields.u64()? as i64);
        let signed = bytes.len() - fields.left();
        fields.raw(MAC_BYTES)?;
        fields.finish()?;
        let (read, write) = (rights & READ != 0, rights & WRITE != 0);
        let capability =
            Self { key, client, tree, inode, epoch, read, write, size_granted, expires };
        Ok((capability, signed))
    }
}

fn refused(reason: String) -> Error {
    Error::new(Code::CapabilityRefused, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_types::{ClusterId, Secret};
    use proptest::prelude::*;

    fn key(secret: u8) -> CapabilityKey {
        CapabilityKey::derive(&ServerKey {
            cluster: ClusterId(5),
            id: KeyId(1),
            secret: Secret([secret; 32]),
        })
    }

    fn granted() -> Capability {
        Capability {
            key: KeyId(1),
            client: ClientId(0xabcd),
            tree: TreeId::MAIN,
            inode: InodeId(77),
            epoch: TruncateEpoch(3),
            read: true,
            write: false,
            size_granted: u64::MAX,
            expires: Timestamp(1_000_000_000_000),
        }
    }

    #[test]
    fn a_minted_capability_holds_until_it_expires_and_under_its_own_key() {
        let (key, other) = (key(7), key(8));
        let bytes = granted().mint(&key);
        assert_eq!(bytes.len(), CAPABILITY_BYTES);
        let check =
            |k: &CapabilityKey, now| Capability::verify(&bytes, |_| Some(k), Timestamp(now));
        assert_eq!(check(&key, 0), Ok(granted()));
        assert_eq!(check(&key, 1_000_000_000_000 + CLOCK_SKEW_NS), Ok(granted()));
        assert!(check(&key, 1_000_000_000_001 + CLOCK_SKEW_NS).is_err());
        assert!(check(&other, 0).is_err());
        assert!(Capability::verify(&bytes, |_| None, Timestamp(0)).is_err());
    }

    proptest! {
        #[test]
        fn no_changed_byte_passes(at in 0..CAPABILITY_BYTES, flip in 1u8..) {
            let key = key(7);
            let mut bytes = granted().mint(&key);
            bytes[at] ^= flip;
            prop_assert!(Capability::verify(&bytes, |_| Some(&key), Timestamp(0)).is_err());
            bytes.truncate(at);
            prop_assert!(Capability::verify(&bytes, |_| Some(&key), Timestamp(0)).is_err());
        }
    }
}
