//! Keys and credentials as values; the arithmetic over them is in `wire`.

use crate::{ClusterId, Error, KeyId, Result};
use std::fmt;

/// 32 secret bytes. `Debug` does not show them.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl Secret {
    /// The bytes as 64 hex digits, for a file with mode 0600.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads what [`Self::to_hex`] wrote.
    ///
    /// # Errors
    /// `Invalid` when it is not 64 hex digits; the text itself is not repeated.
    pub fn from_hex(text: &str) -> Result<Self> {
        let wrong = || Error::invalid("a secret is 64 hex digits");
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_hex())
    }
}

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(deserializer)?;
        Self::from_hex(&text).map_err(serde::de::Error::custom)
    }
}

/// One key of the cluster's key ring; it never leaves the servers.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerKey {
    /// The cluster that the key is of.
    pub cluster: ClusterId,
    /// Its number in the ring: handshakes and capabilities carry it.
    pub id: KeyId,
    /// The key.
    pub secret: Secret,
}

/// What a client host or user proves itself with: a named secret, derived from a server key.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The cluster that it opens.
    pub cluster: ClusterId,
    /// Its name, unique in the cluster and never reused.
    pub name: String,
    /// The server key that it is derived from.
    pub key: KeyId,
    /// The secret.
    pub secret: Secret,
}

/// What a credential allows.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialLimits {
    /// The user ids that its holder may act as; `None`: any.
    pub uids: Option<Vec<u32>>,
    /// Whether its holder may act as root (uid 0).
    pub root: bool,
    /// The directory that its holder may not leave, as an absolute path.
    pub subtree: String,
    /// Whether its holder may run operator commands.
    pub operator: bool,
}

impl Default for CredentialLimits {
    fn default() -> Self {
        Self { uids: None, root: true, subtree: "/".into(), operator: true }
    }
}

impl CredentialLimits {
    /// Whether the holder may act as `uid`.
    pub fn allows_uid(&self, uid: u32) -> bool {
        match (&self.uids, uid) {
            (_, 0) => self.root,
            (None, _) => true,
            (Some(uids), _) => uids.contains(&uid),
        }
    }
}
