//! Goal: only two holders of one secret agree, on exactly the same terms, and nothing that the
//! network does to the four messages changes that. Method: run both machines against each other,
//! with every byte of every message changed in turn, with replayed and reflected messages, and with
//! garbage.

use super::*;
use crate::credential::credential;
use proptest::prelude::*;

const CLUSTER: ClusterId = ClusterId(0xc1);

fn server_key(secret: u8) -> ServerKey {
    ServerKey { cluster: CLUSTER, id: KeyId(1), secret: Secret([secret; 32]) }
}

fn terms(node: u64, versions: (u16, u16), features: u64) -> Terms {
    let node = super::node(node);
    Terms { version_min: versions.0, version_max: versions.1, features, node }
}

fn record(name: &str, revoked: bool) -> Option<CredentialRecord> {
    let limits = CredentialLimits { root: false, ..CredentialLimits::default() };
    Some(CredentialRecord { name: name.into(), key: KeyId(1), revoked, limits })
}

/// A handshake in which `change` may alter each message (1 to 4) on its way.
struct Run {
    identity: Identity,
    connector: Terms,
    acceptor: Terms,
    expected: Option<NodeId>,
    revoked: bool,
}

impl Run {
    fn of(identity: Identity) -> Self {
        let (connector, acceptor) = (terms(0, (1, 3), 0b011), terms(7, (2, 5), 0b110));
        Self { identity, connector, acceptor, expected: None, revoked: false }
    }

    /// What the connector and the acceptor end with.
    fn go(&self, change: impl Fn(u8, &mut Vec<u8>)) -> (Result<Agreement>, Result<Agreement>) {
        let identity = self.identity.clone();
        let start =
            Connecting::start(identity, self.connector, Purpose::Data, self.expected, [1; 32]);
        let (connecting, mut hello) = start;
        change(1, &mut hello);
        let key_of = |id| (id == KeyId(1)).then(|| server_key(9));
        let started = Accepting::start(&hello, CLUSTER, self.acceptor, key_of, [2; 32]);
        let (accepting, mut challenge) = match started {
            Ok(started) => started,
            Err(error) => {
                let told = connecting.challenge(&refusal(&error)).map(|_| ());
                return (Err(told.unwrap_err()), Err(error));
            }
        };
        change(2, &mut challenge);
        let (proving, mut proof) = match connecting.challenge(&challenge) {
            Ok(proving) => proving,
            Err(error) => return (Err(error.clone()), Err(error)),
        };
        change(3, &mut proof);
        match accepting.proof(&proof, |name| record(name, self.revoked)) {
            Ok((agreement, mut welcome)) => {
                change(4, &mut welcome);
                (proving.welcome(&welcome), Ok(agreement))
            }
            Err(error) => (proving.welcome(&refusal(&error)), Err(error)),
        }
    }
}

fn client(secret: u8) -> Identity {
    Identity::Client(credential(&server_key(secret), "laptop").unwrap())
}

#[test]
fn both_sides_agree_on_the_same_terms() {
    for (identity, server) in [(client(9), false), (Identity::Server(server_key(9)), true)] {
        let (ours, theirs) = Run::of(identity).go(|_, _| ());
        let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
        assert_eq!((ours.version, ours.features, ours.key), (3, 0b010, KeyId(1)));
        assert_eq!((theirs.version, theirs.features, theirs.key), (3, 0b010, KeyId(1)));
        assert_eq!((ours.node, theirs.node), (Some(NodeId(7)), None));
        assert_eq!(ours.peer, Proven::Server);
        match theirs.peer {
            Proven::Server => assert!(server),
            Proven::Client { name, limits } => assert!(!server && name == "laptop" && !limits.root),
        }
    }
}

#[test]
fn a_refusal_reaches_the_connector_word_for_word() {
    let wrong_secret = Run::of(client(8));
    let wrong_key = Run::of(Identity::Server(server_key(8)));
    let revoked = Run { revoked: true, ..Run::of(client(9)) };
    let old = Run { connector: terms(0, (1, 1), 0), ..Run::of(client(9)) };
    let elsewhere = Run { expected: Some(NodeId(8)), ..Run::of(client(9)) };
    let Identity::Client(mut foreign) = client(9) else { unreachable!() };
    foreign.cluster = ClusterId(0xc2);
    let foreign = Run::of(Identity::Client(foreign));
    let Identity::Client(mut rotated) = client(9) else { unreachable!() };
    rotated.key = KeyId(2);
    let rotated = Run::of(Identity::Client(rotated));
    for (run, code, words) in [
        (wrong_secret, Code::NotAuthenticated, "the secret of credential 'laptop' is wrong"),
        (wrong_key, Code::NotAuthenticated, "does not hold this cluster's server key"),
        (revoked, Code::NotAuthorized, "credential 'laptop' was revoked"),
        (old, Code::ProtocolMismatch, "this server speaks 2 to 5, the caller 1 to 1"),
        (elsewhere, Code::WrongTarget, "node 7 answers where node 8 was expected"),
        (foreign, Code::WrongCluster, "the credential to cluster 000000000000000000000000000000c2"),
        (rotated, Code::NotAuthenticated, "does not know server key 2"),
    ] {
        let (ours, theirs) = run.go(|_, _| ());
        let (ours, theirs) = (ours.unwrap_err(), theirs.unwrap_err());
        assert_eq!(ours, theirs);
        assert_eq!(ours.code(), code);
        assert!(ours.message().contains(words), "{ours}");
    }
}

#[test]
fn an_acceptor_without_the_secret_is_noticed() {
    let (connecting, hello) =
        Connecting::start(client(9), terms(0, (1, 1), 0), Purpose::Control, None, [1; 32]);
    let impostor = |_| Some(server_key(8));
    let terms = terms(7, (1, 1), 0);
    let (accepting, challenge) =
        Accepting::start(&hello, CLUSTER, terms, impostor, [2; 32]).unwrap();
    let (proving, proof) = connecting.challenge(&challenge).unwrap();
    assert!(accepting.proof(&proof, |name| record(name, false)).is_err());
    // It can neither invent a welcome nor send the connector's own proof back.
    let mut reflected = proof.clone();
    reflected[5] = Kind::Welcome as u8;
    let again = Proving { agreement: proving.agreement.clone(), theirs: proving.theirs };
    assert_eq!(again.welcome(&reflected).unwrap_err().code(), Code::NotAuthenticated);
    assert!(proving.welcome(&message(Kind::Welcome, &[0; 32])).is_err());
}

#[test]
fn a_proof_is_worth_nothing_on_another_connection() {
    let key_of = |_| Some(server_key(9));
    let terms = terms(7, (1, 1), 0);
    let (connecting, hello) = Connecting::start(client(9), terms, Purpose::Data, None, [1; 32]);
    let first = Accepting::start(&hello, CLUSTER, terms, key_of, [2; 32]).unwrap();
    let second = Accepting::start(&hello, CLUSTER, terms, key_of, [3; 32]).unwrap();
    let (_, proof) = connecting.challenge(&first.1).unwrap();
    assert!(first.0.proof(&proof, |name| record(name, false)).is_ok());
    let replayed = second.0.proof(&proof, |name| record(name, false)).map(|_| ());
    assert_eq!(replayed.unwrap_err().code(), Code::NotAuthenticated);
}

#[test]
fn an_unknown_name_is_told_apart_only_by_who_holds_its_secret() {
    for (secret, code) in [(9, Code::NotAuthorized), (8, Code::NotAuthenticated)] {
        let terms = terms(7, (1, 1), 0);
        let (connecting, hello) =
            Connecting::start(client(secret), terms, Purpose::Data, None, [1; 32]);
        let key_of = |_| Some(server_key(9));
        let (accepting, challenge) =
            Accepting::start(&hello, CLUSTER, terms, key_of, [2; 32]).unwrap();
        let (_, proof) = connecting.challenge(&challenge).unwrap();
        assert_eq!(accepting.proof(&proof, |_| None).map(|_| ()).unwrap_err().code(), code);
    }
}

proptest! {
    /// Whatever byte of whatever message is changed: never do both sides agree, and the acceptor
    /// never admits anyone under changed words.
    #[test]
    fn no_changed_byte_passes(which in 1u8..=4, at in any::<prop::sample::Index>(), flip in 1u8..) {
        let (ours, theirs) = Run::of(client(9)).go(|message, bytes| {
            if message == which {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
            }
        });
        prop_assert!(ours.is_err() || theirs.is_err());
        prop_assert!(which == 4 || theirs.is_err());
    }

    #[test]
    fn no_shortened_message_passes(which in 1u8..=4, at in any::<prop::sample::Index>()) {
        let (ours, theirs) = Run::of(client(9)).go(|message, bytes| {
            if message == which {
                bytes.truncate(at.index(bytes.len()));
            }
        });
        prop_assert!(ours.is_err() || theirs.is_err());
    }

    #[test]
    fn garbage_is_an_error(
        mut bytes in prop::collection::vec(any::<u8>(), 0..400),
        kind in 0u8..8,
        framed in any::<bool>(),
    ) {
        if framed && bytes.len() >= HANDSHAKE_PREFIX_BYTES {
            let length = (bytes.len() - HANDSHAKE_PREFIX_BYTES) as u16;
            bytes[..4].copy_from_slice(&MAGIC);
            bytes[4..6].copy_from_slice(&[FORMAT, kind]);
            bytes[6..8].copy_from_slice(&length.to_le_bytes());
        }
        let terms = terms(7, (1, 1), 0);
        let key_of = |_| Some(server_key(9));
        prop_assert!(Accepting::start(&bytes, CLUSTER, terms, key_of, [2; 32]).is_err());
        let (connecting, hello) = Connecting::start(client(9), terms, Purpose::Data, None, [1; 32]);
        let _ = connecting.challenge(&bytes);
        let (accepting, _) = Accepting::start(&hello, CLUSTER, terms, key_of, [2; 32]).unwrap();
        prop_assert!(accepting.proof(&bytes, |name| record(name, false)).is_err());
    }
}
