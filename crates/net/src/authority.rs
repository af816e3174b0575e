//! What a server knows of keys and credentials.

use crate::peer::{Peer, PeerKind};
use kiln_types::{ClusterId, Code, CredentialRecord, Error, KeyId, Result, ServerKey};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// What handshakes ask. Answers may change while servers run: keys are rotated, credentials
/// revoked.
pub trait Authority: Send + Sync {
    /// The cluster.
    fn cluster(&self) -> ClusterId;

    /// A server key of the ring.
    fn server_key(&self, id: KeyId) -> Option<ServerKey>;

    /// What is known of a credential.
    fn credential(&self, name: &str) -> Option<CredentialRecord>;

    /// Whether the credentials are known yet; until then clients are told to come back.
    fn knows_credentials(&self) -> bool {
        true
    }

    /// Grows whenever another answer may have changed: open connections are judged anew then. It is
    /// read for every request, so it must be cheap.
    fn version(&self) -> u64;
}

/// Whether `peer` may still use its connection.
///
/// # Errors
/// `NotAuthorized` when its key or credential is gone; `ConnectionLost` when the credential's
/// limits changed and the peer has to connect again.
pub(crate) fn judge(authority: &dyn Authority, peer: &Peer) -> Result<()> {
    let refused = |message: String| Err(Error::new(Code::NotAuthorized, message));
    if authority.server_key(peer.key).is_none() {
        return refused(format!("server key {} was withdrawn", peer.key));
    }
    let PeerKind::Client { name, limits } = &peer.kind else { return Ok(()) };
    match authority.credential(name) {
        None => refused(format!("credential '{name}' is not known to this cluster any more")),
        Some(record) if record.revoked => refused(format!("credential '{name}' was revoked")),
        Some(record) if record.key != peer.key => {
            refused(format!("credential '{name}' was issued anew under another server key"))
        }
        Some(record) if record.limits != *limits => {
            let message = format!("the limits of credential '{name}' changed");
            Err(Error::new(Code::ConnectionLost, message))
        }
        Some(_) => Ok(()),
    }
}

/// The key ring and the credentials of one server process: an [`Authority`] that the process
/// updates from its key files and from the routing information.
pub struct KeyRing {
    cluster: ClusterId,
    known: RwLock<Known>,
    version: AtomicU64,
}

struct Known {
    keys: BTreeMap<KeyId, ServerKey>,
    credentials: Option<BTreeMap<String, CredentialRecord>>,
}

impl KeyRing {
    /// A ring of one key; credentials are not known yet.
    pub fn new(key: ServerKey) -> Self {
        let cluster = key.cluster;
        let known = Known { keys: BTreeMap::from([(key.id, key)]), credentials: None };
        Self { cluster, known: RwLock::new(known), version: AtomicU64::new(1) }
    }

    /// Adds a key: connections and capabilities under it are accepted from now on.
    ///
    /// # Errors
    /// `WrongCluster` when it is another cluster's.
    pub fn add_key(&self, key: ServerKey) -> Result<()> {
        if key.cluster != self.cluster {
            let message = format!("server key {} is of cluster {}", key.id, key.cluster);
            return Err(Error::new(Code::WrongCluster, message));
        }
        self.known.write().keys.insert(key.id, key);
        self.changed();
        Ok(())
    }

    /// Withdraws a key: connections under it are closed.
    pub fn remove_key(&self, id: KeyId) {
        self.known.write().keys.remove(&id);
        self.changed();
    }

    /// Replaces what is known of credentials; does nothing when nothing changed.
    pub fn set_credentials(&self, records: &[CredentialRecord]) {
        let records = records.iter().map(|record| (record.name.clone(), record.clone())).collect();
        let mut known = self.known.write();
        if known.credentials.as_ref() != Some(&records) {
            known.credentials = Some(records);
            drop(known);
            self.changed();
        }
    }

    fn changed(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }
}

impl Authority for KeyRing {
    fn cluster(&self) -> ClusterId {
        self.cluster
    }

    fn server_key(&self, id: KeyId) -> Option<ServerKey> {
        self.known.read().keys.get(&id).cloned()
    }

    fn credential(&self, name: &str) -> Option<CredentialRecord> {
        self.known.read().credentials.as_ref()?.get(name).cloned()
    }

    fn knows_credentials(&self) -> bool {
        self.known.read().credentials.is_some()
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }
}
