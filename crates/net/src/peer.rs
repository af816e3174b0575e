//! Who is at the other end of a connection.

use kiln_types::{ClusterId, Code, CredentialLimits, Error, KeyId, NodeId, Result};
use kiln_wire::{Agreement, Proven};
use std::fmt;

/// What the handshake proved of the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Server or client.
    pub kind: PeerKind,
    /// Its node id, if it is a server that said one.
    pub node: Option<NodeId>,
    /// The cluster.
    pub cluster: ClusterId,
    /// The server key that the proof rests on.
    pub key: KeyId,
    /// The protocol version of the connection.
    pub version: u16,
    /// The features that both ends offer.
    pub features: u64,
    /// Its network address, for messages.
    pub address: String,
}

/// The two kinds of peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerKind {
    /// A server of the cluster: it holds a server key.
    Server,
    /// A client: it holds a credential.
    Client {
        /// The credential's name.
        name: String,
        /// What the credential allows.
        limits: CredentialLimits,
    },
}

impl Peer {
    pub(crate) fn new(agreement: Agreement, address: String) -> Self {
        let Agreement { peer, node, cluster, key, version, features, purpose: _ } = agreement;
        let kind = match peer {
            Proven::Server => PeerKind::Server,
            Proven::Client { name, limits } => PeerKind::Client { name, limits },
        };
        Self { kind, node, cluster, key, version, features, address }
    }

    /// Whether it is a server of the cluster.
    pub fn is_server(&self) -> bool {
        matches!(self.kind, PeerKind::Server)
    }

    /// What a client's credential allows; `None` for a server, which may do anything.
    pub fn limits(&self) -> Option<&CredentialLimits> {
        match &self.kind {
            PeerKind::Server => None,
            PeerKind::Client { limits, .. } => Some(limits),
        }
    }

    /// Lets only servers of the cluster pass.
    ///
    /// # Errors
    /// `NotAuthorized`.
    pub fn require_server(&self) -> Result<()> {
        match self.is_server() {
            true => Ok(()),
            false => Err(Error::new(
                Code::NotAuthorized,
                format!("{self} may not do this: only servers of the cluster may"),
            )),
        }
    }

    /// Lets only servers and clients with the operator's right pass.
    ///
    /// # Errors
    /// `NotAuthorized`.
    pub fn require_operator(&self) -> Result<()> {
        match self.limits().is_none_or(|limits| limits.operator) {
            true => Ok(()),
            false => Err(Error::new(
                Code::NotAuthorized,
                format!("{self} may not do this: its credential does not allow operator commands"),
            )),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.kind, self.node) {
            (PeerKind::Server, Some(node)) => write!(f, "node {node} at {}", self.address),
            (PeerKind::Server, None) => write!(f, "server at {}", self.address),
            (PeerKind::Client { name, .. }, _) => write!(f, "client '{name}' at {}", self.address),
        }
    }
}
