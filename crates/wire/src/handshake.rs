//! The mutual challenge that opens every connection: pure state machines, no I/O.
//!
//! ```text
//! connector                                    acceptor
//!   Hello: who, cluster, key, versions, nonce -->
//!                       <-- Challenge: version and features chosen, node, nonce  (or Refusal)
//!   Proof: MAC("connector", transcript)       -->
//!                       <-- Welcome: MAC("acceptor", transcript)                 (or Refusal)
//! ```
//!
//! Both MACs are keyed by a secret that both sides hold: one derived from the server key among
//! servers, the credential's secret for a client. The transcript is every byte of Hello and
//! Challenge, so roles, names, purpose, versions and both fresh nonces are bound, nothing can be
//! downgraded, and a MAC is of no use on another connection or in the other direction. The
//! connector proves first: whoever does not hold the secret is told that, and learns neither
//! whether a name exists nor a MAC of ours.
//!
//! A message is: `KILN`, format u8, type u8, body length u16, body. It has at most
//! [`HANDSHAKE_BYTES_MAX`] bytes.

use crate::credential::{CREDENTIAL_NAME_BYTES_MAX, client_secret, equal, hmac, server_secret};
use crate::frame::clip;
use kiln_types::{
    ClusterId, Code, Credential, CredentialLimits, CredentialRecord, Decoder, Encoder, Error,
    KeyId, NodeId, Result, Secret, ServerKey,
};

/// Bytes in front of a message's body.
pub const HANDSHAKE_PREFIX_BYTES: usize = 8;
/// The longest message, with its prefix.
pub const HANDSHAKE_BYTES_MAX: usize = 2048;

const MAGIC: [u8; 4] = *b"KILN";
const FORMAT: u8 = 1;
const TEXT_BYTES_MAX: usize = 800;

/// Fresh randomness of one side.
pub type Nonce = [u8; 32];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Hello = 1,
    Challenge = 2,
    Proof = 3,
    Welcome = 4,
    Refusal = 5,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// The control plane: HTTP/2 follows.
    Control = 1,
    /// The data plane: frames follow.
    Data = 2,
}

/// What a connector proves itself with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A server of the cluster.
    Server(ServerKey),
    /// The holder of a client credential.
    Client(Credential),
}

impl Identity {
    /// The cluster that it is of.
    pub fn cluster(&self) -> ClusterId {
        match self {
            Self::Server(key) => key.cluster,
            Self::Client(credential) => credential.cluster,
        }
    }

    fn key(&self) -> KeyId {
        match self {
            Self::Server(key) => key.id,
            Self::Client(credential) => credential.key,
        }
    }

    fn secret(&self) -> Secret {
        match self {
            Self::Server(key) => server_secret(key),
            Self::Client(credential) => credential.secret.clone(),
        }
    }
}

/// What one side speaks and, if it is a server, who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The oldest protocol version that it speaks.
    pub version_min: u16,
    /// The newest protocol version that it speaks.
    pub version_max: u16,
    /// Features that it offers, one bit each.
    pub features: u64,
    /// Its node id, if it is a server that has one.
    pub node: Option<NodeId>,
}

impl Terms {
    /// What this build speaks.
    pub const CURRENT: Self = Self { version_min: 1, version_max: 1, features: 0, node: None };
}

/// Who the peer proved to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proven {
    /// A server of the cluster.
    Server,
    /// The holder of a client credential.
    Client {
        /// The credential's name.
        name: String,
        /// What the credential allows.
        limits: CredentialLimits,
    },
}

/// What both sides know after a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// Who the peer is.
    pub peer: Proven,
    /// The peer's node id, if it said one.
    pub node: Option<NodeId>,
    /// The cluster of both.
    pub cluster: ClusterId,
    /// The server key that the proofs rest on.
    pub key: KeyId,
    /// What the connection is for.
    pub purpose: Purpose,
    /// The protocol version to speak.
    pub version: u16,
    /// The features that both offer.
    pub features: u64,
}

/// The length of the whole message that begins with `prefix`.
///
/// # Errors
/// `Corrupt` when this is no handshake message of ours, `ProtocolMismatch` for a newer format.
pub fn handshake_bytes(prefix: &[u8; HANDSHAKE_PREFIX_BYTES]) -> Result<usize> {
    let [m0, m1, m2, m3, format, _, low, high] = *prefix;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(Error::corrupt("what was received is not kiln's protocol"));
    }
    if format != FORMAT {
        let message = format!("handshake format {format}, this build knows {FORMAT}");
        return Err(Error::new(Code::ProtocolMismatch, message)
            .with_hint("run the same release of kiln on both sides"));
    }
    let bytes = HANDSHAKE_PREFIX_BYTES + usize::from(u16::from_le_bytes([low, high]));
    if bytes > HANDSHAKE_BYTES_MAX {
        return Err(Error::corrupt(format!("a handshake message of {bytes} bytes")));
    }
    Ok(bytes)
}

fn message(kind: Kind, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("invariant: handshake fields are bounded");
    let mut bytes = Encoder::new();
    bytes.raw(&MAGIC).u8(FORMAT).u8(kind as u8).u16(length).raw(body);
    bytes.finish()
}

/// The body of a message that must be of `kind`; a refusal is returned as the error that it
/// carries.
fn body_of(bytes: &[u8], kind: Kind) -> Result<&[u8]> {
    let prefix = bytes.first_chunk::<HANDSHAKE_PREFIX_BYTES>();
    let prefix = prefix.ok_or_else(|| Error::corrupt("a handshake message is cut short"))?;
    if handshake_bytes(prefix)? != bytes.len() {
        return Err(Error::corrupt("a handshake message has another length than it says"));
    }
    let body = &bytes[HANDSHAKE_PREFIX_BYTES..];
    match prefix[5] {
        found if found == kind as u8 => Ok(body),
        found if found == Kind::Refusal as u8 => Err(decode_refusal(body)?),
        found => Err(Error::corrupt(format!("handshake message {found} where {kind:?} was due"))),
    }
}

/// The message that tells a connector why it is refused.
pub fn refusal(error: &Error) -> Vec<u8> {
    let mut body = Encoder::new();
    body.u16(error.code() as u16);
    body.bytes(clip(error.message(), TEXT_BYTES_MAX).as_bytes());
    body.bytes(clip(error.hint().unwrap_or(""), TEXT_BYTES_MAX).as_bytes());
    message(Kind::Refusal, &body.finish())
}

fn decode_refusal(body: &[u8]) -> Result<Error> {
    let mut fields = Decoder::new("refusal", body);
    let code = Code::from_number(fields.u16()?);
    let text = String::from_utf8_lossy(fields.bytes(TEXT_BYTES_MAX)?).into_owned();
    let hint = String::from_utf8_lossy(fields.bytes(TEXT_BYTES_MAX)?).into_owned();
    fields.finish()?;
    let error = Error::new(code, text);
    Ok(if hint.is_empty() { error } else { error.with_hint(hint) })
}

struct Hello {
    server: bool,
    purpose: Purpose,
    terms: Terms,
    cluster: ClusterId,
    key: KeyId,
    expected: Option<NodeId>,
    name: String,
    nonce: Nonce,
}

impl Hello {
    fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::new();
        body.u8(u8::from(self.server)).u8(self.purpose as u8);
        encode_terms(&mut body, &self.terms);
        body.raw(&self.cluster.to_bytes()).u32(self.key.0);
        body.u64(self.expected.map_or(0, |node| node.0));
        body.bytes(self.name.as_bytes()).raw(&self.nonce);
        message(Kind::Hello, &body.finish())
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Decoder::new("hello", body_of(bytes, Kind::Hello)?);
        let server = match fields.u8()? {
            0 => false,
            1 => true,
            role => return Err(Error::corrupt(format!("hello: role {role} is unknown"))),
        };
        let purpose = match fields.u8()? {
            1 => Purpose::Control,
            2 => Purpose::Data,
            purpose => return Err(Error::corrupt(format!("hello: purpose {purpose} is unknown"))),
        };
        let terms = decode_terms(&mut fields)?;
        let cluster = ClusterId(u128::from_be_bytes(fields.array()?));
        let key = KeyId(fields.u32()?);
        let expected = node(fields.u64()?);
        let name = std::str::from_utf8(fields.bytes(CREDENTIAL_NAME_BYTES_MAX)?)
            .map_err(|_| Error::corrupt("hello: the name is not text"))?
            .to_owned();
        let nonce = fields.array()?;
        fields.finish()?;
        Ok(Self { server, purpose, terms, cluster, key, expected, name, nonce })
    }
}

fn encode_terms(body: &mut Encoder, terms: &Terms) {
    body.u16(terms.version_min).u16(terms.version_max).u64(terms.features);
    body.u64(terms.node.map_or(0, |node| node.0));
}

fn decode_terms(fields: &mut Decoder<'_>) -> Result<Terms> {
    Ok(Terms {
        version_min: fields.u16()?,
        version_max: fields.u16()?,
        features: fields.u64()?,
        node: node(fields.u64()?),
    })
}

/// Node ids begin with 1; 0 stands for none.
fn node(number: u64) -> Option<NodeId> {
    (number != 0).then_some(NodeId(number))
}

fn negotiate(ours: &Terms, theirs: &Terms) -> Result<u16> {
    let version = ours.version_max.min(theirs.version_max);
    if version < ours.version_min.max(theirs.version_min) {
        let message = format!(
            "no common protocol version: this server speaks {} to {}, the caller {} to {}",
            ours.version_min, ours.version_max, theirs.version_min, theirs.version_max
        );
        return Err(Error::new(Code::ProtocolMismatch, message)
            .with_hint("upgrade the older side, at most one release at a time"));
    }
    Ok(version)
}

fn proof(secret: &Secret, direction: &[u8], hello: &[u8], challenge: &[u8]) -> [u8; 32] {
    // Labels have one length, and messages carry theirs: the concatenation reads one way only.
    hmac(secret, &[b"kiln handshake v1 ", direction, hello, challenge])
}

const BY_CONNECTOR: &[u8] = b"connector";
const BY_ACCEPTOR: &[u8] = b"acceptor.";

/// A connector that has said Hello and waits for the Challenge.
pub struct Connecting {
    terms: Terms,
    identity: Identity,
    purpose: Purpose,
    expected: Option<NodeId>,
    hello: Vec<u8>,
}

impl Connecting {
    /// Begins a handshake; `expected` names the node that must answer, if the caller cares. Returns
    /// the Hello to send.
    pub fn start(
        identity: Identity,
        terms: Terms,
        purpose: Purpose,
        expected: Option<NodeId>,
        nonce: Nonce,
    ) -> (Self, Vec<u8>) {
        let name = match &identity {
            Identity::Server(_) => "",
            Identity::Client(credential) => clip(&credential.name, CREDENTIAL_NAME_BYTES_MAX),
        };
        let hello = Hello {
            server: matches!(identity, Identity::Server(_)),
            purpose,
            terms,
            cluster: identity.cluster(),
            key: identity.key(),
            expected,
            name: name.to_owned(),
            nonce,
        };
        let hello = hello.encode();
        (Self { terms, identity, purpose, expected, hello: hello.clone() }, hello)
    }

    /// Takes the acceptor's answer. Returns the Proof to send.
    ///
    /// # Errors
    /// The acceptor's refusal; `ProtocolMismatch` and `WrongTarget` for terms that were not
    /// offered; `Corrupt` for anything malformed.
    pub fn challenge(self, bytes: &[u8]) -> Result<(Proving, Vec<u8>)> {
        let mut fields = Decoder::new("challenge", body_of(bytes, Kind::Challenge)?);
        let (version, features) = (fields.u16()?, fields.u64()?);
        let node = node(fields.u64()?);
        let _nonce: Nonce = fields.array()?;
        fields.finish()?;
        if !(self.terms.version_min..=self.terms.version_max).contains(&version) {
            let message = format!("the server chose protocol version {version}, not offered");
            return Err(Error::new(Code::ProtocolMismatch, message));
        }
        if self.expected.is_some() && self.expected != node {
            return Err(wrong_node(self.expected, node));
        }
        let secret = self.identity.secret();
        let ours = proof(&secret, BY_CONNECTOR, &self.hello, bytes);
        let agreement = Agreement {
            peer: Proven::Server,
            node,
            cluster: self.identity.cluster(),
            key: self.identity.key(),
            purpose: self.purpose,
            version,
            features: features & self.terms.features,
        };
        let theirs = proof(&secret, BY_ACCEPTOR, &self.hello, bytes);
        Ok((Proving { agreement, theirs }, message(Kind::Proof, &ours)))
    }
}

fn wrong_node(expected: Option<NodeId>, found: Option<NodeId>) -> Error {
    let name = |node: Option<NodeId>| node.map_or("no node".into(), |node| format!("node {node}"));
    let message = format!("{} answers where {} was expected", name(found), name(expected));
    Error::new(Code::WrongTarget, message)
}

/// A connector that has proven itself and waits for the acceptor's proof.
pub struct Proving {
    agreement: Agreement,
    theirs: [u8; 32],
}

impl Proving {
    /// Takes the acceptor's Welcome.
    ///
    /// # Errors
    /// The acceptor's refusal; `NotAuthenticated` when it does not hold the secret; `Corrupt` for
    /// anything malformed.
    pub fn welcome(self, bytes: &[u8]) -> Result<Agreement> {
        let mut fields = Decoder::new("welcome", body_of(bytes, Kind::Welcome)?);
        let proof = fields.array()?;
        fields.finish()?;
        if !equal(&proof, &self.theirs) {
            return Err(Error::new(
                Code::NotAuthenticated,
                format!(
                    "the server could not prove that it is of cluster {}",
                    self.agreement.cluster
                ),
            )
            .with_hint("check the address: something else answers there"));
        }
        Ok(self.agreement)
    }
}

/// An acceptor that has sent its Challenge and waits for the Proof.
pub struct Accepting {
    hello: Hello,
    hello_bytes: Vec<u8>,
    challenge: Vec<u8>,
    secret: Secret,
    version: u16,
    features: u64,
}

impl Accepting {
    /// Takes a connector's Hello; `key_of` finds a server key of the ring. Returns the Challenge to
    /// send.
    ///
    /// # Errors
    /// Why the connector is refused: send it as [`refusal`]. `Corrupt` for what is no Hello at all.
    pub fn start(
        bytes: &[u8],
        cluster: ClusterId,
        terms: Terms,
        key_of: impl Fn(KeyId) -> Option<ServerKey>,
        nonce: Nonce,
    ) -> Result<(Self, Vec<u8>)> {
        let hello = Hello::decode(bytes)?;
        let version = negotiate(&terms, &hello.terms)?;
        if hello.cluster != cluster {
            let whose = if hello.server { "the caller's key" } else { "the credential" };
            let message = format!(
                "this server belongs to cluster {cluster}, {whose} to cluster {}",
                hello.cluster
            );
            return Err(Error::new(Code::WrongCluster, message)
                .with_hint("use the address and the credential of the same cluster"));
        }
        if hello.expected.is_some() && hello.expected != terms.node {
            return Err(wrong_node(hello.expected, terms.node));
        }
        let key = key_of(hello.key).ok_or_else(|| {
            let message = format!("this server does not know server key {}", hello.key);
            Error::new(Code::NotAuthenticated, message)
                .with_hint("the key was rotated: get a new credential from an operator")
        })?;
        let secret = match hello.server {
            true => server_secret(&key),
            false => client_secret(&key, &hello.name),
        };
        let features = terms.features & hello.terms.features;
        let mut body = Encoder::new();
        body.u16(version).u64(features).u64(terms.node.map_or(0, |node| node.0)).raw(&nonce);
        let challenge = message(Kind::Challenge, &body.finish());
        let hello_bytes = bytes.to_vec();
        let sent = challenge.clone();
        Ok((Self { hello, hello_bytes, challenge, secret, version, features }, sent))
    }

    /// Takes the connector's Proof; `credential_of` finds what is known of a credential. Returns
    /// the Welcome to send.
    ///
    /// # Errors
    /// Why the connector is refused: send it as [`refusal`].
    pub fn proof(
        self,
        bytes: &[u8],
        credential_of: impl Fn(&str) -> Option<CredentialRecord>,
    ) -> Result<(Agreement, Vec<u8>)> {
        let mut fields = Decoder::new("proof", body_of(bytes, Kind::Proof)?);
        let found = fields.array()?;
        fields.finish()?;
        let due = proof(&self.secret, BY_CONNECTOR, &self.hello_bytes, &self.challenge);
        if !equal(&found, &due) {
            return Err(self.wrong_secret());
        }
        let peer = match self.hello.server {
            true => Proven::Server,
            false => self.admit(credential_of(&self.hello.name))?,
        };
        let ours = proof(&self.secret, BY_ACCEPTOR, &self.hello_bytes, &self.challenge);
        let agreement = Agreement {
            peer,
            node: self.hello.terms.node,
            cluster: self.hello.cluster,
            key: self.hello.key,
            purpose: self.hello.purpose,
            version: self.version,
            features: self.features,
        };
        Ok((agreement, message(Kind::Welcome, &ours)))
    }

    fn wrong_secret(&self) -> Error {
        let message = match self.hello.server {
            true => "the caller does not hold this cluster's server key".to_owned(),
            false => format!("the secret of credential '{}' is wrong", self.hello.name),
        };
        Error::new(Code::NotAuthenticated, message)
            .with_hint("get the file anew from an operator of this cluster")
    }

    /// Only the holder of the secret comes here, so it may know what became of the name.
    fn admit(&self, record: Option<CredentialRecord>) -> Result<Proven> {
        let name = &self.hello.name;
        let refused = |what: &str| {
            Error::new(Code::NotAuthorized, format!("credential '{name}' {what}"))
                .with_hint("ask an operator for a new credential")
        };
        let record = record.ok_or_else(|| refused("is not known to this cluster"))?;
        if record.revoked {
            return Err(refused("was revoked"));
        }
        if record.key != self.hello.key {
            return Err(refused("was issued anew under another server key"));
        }
        Ok(Proven::Client { name: name.clone(), limits: record.limits })
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
