//! Derived secrets and the proofs made with them.

use hmac::{Hmac, KeyInit, Mac};
use kiln_types::{Credential, Error, Result, Secret, ServerKey};
use sha2::Sha256;

/// The longest name of a credential, in bytes.
pub const CREDENTIAL_NAME_BYTES_MAX: usize = 64;

/// The secret of the client credential `name`: HMAC-SHA256(server key, "kiln client credential v1"
/// || cluster id || name). Servers derive it anew for each handshake, so they keep no table of
/// secrets.
pub fn client_secret(key: &ServerKey, name: &str) -> Secret {
    let cluster = key.cluster.to_bytes();
    Secret(hmac(&key.secret, &[b"kiln client credential v1", &cluster, name.as_bytes()]))
}

/// The secret that servers prove to each other: HMAC-SHA256(server key, "kiln server handshake v1"
/// || cluster id). The server key itself signs nothing on the wire.
pub fn server_secret(key: &ServerKey) -> Secret {
    Secret(hmac(&key.secret, &[b"kiln server handshake v1", &key.cluster.to_bytes()]))
}

/// The credential `name` of the key's cluster, for a client's file.
///
/// # Errors
/// `Invalid` when the name is not allowed.
pub fn credential(key: &ServerKey, name: &str) -> Result<Credential> {
    check_credential_name(name)?;
    let secret = client_secret(key, name);
    Ok(Credential { cluster: key.cluster, name: name.into(), key: key.id, secret })
}

/// Whether `name` may name a credential: 1 to 64 ASCII letters, digits, `.`, `_` or `-`.
///
/// # Errors
/// `Invalid`, with the rule.
pub fn check_credential_name(name: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > CREDENTIAL_NAME_BYTES_MAX || !name.bytes().all(allowed) {
        return Err(Error::invalid(format!(
            "a credential's name has 1 to {CREDENTIAL_NAME_BYTES_MAX} letters, digits, '.', '_' or \
             '-'"
        )));
    }
    Ok(())
}

/// HMAC-SHA256 of the concatenated parts. Callers make the concatenation unambiguous: every part
/// but the last has a fixed length or a length in front.
pub(crate) fn hmac(key: &Secret, parts: &[&[u8]]) -> [u8; 32] {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(&key.0).expect("invariant: HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Compares in a time that does not depend on where the first difference is.
pub(crate) fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    subtle::ConstantTimeEq::ct_eq(a.as_slice(), b.as_slice()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_types::{ClusterId, KeyId};

    #[test]
    fn hmac_agrees_with_rfc_4231_and_does_not_see_part_borders() {
        // Test case 2 has a short key; our keys are 32 bytes: pad with zeros, which HMAC does too.
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let mac = hmac(&Secret(key), &[b"what do ya want ", b"for nothing?"]);
        let hex = Secret(mac).to_hex();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn secrets_differ_by_name_cluster_key_and_use() {
        let key = |cluster, secret| ServerKey {
            cluster: ClusterId(cluster),
            id: KeyId(1),
            secret: Secret([secret; 32]),
        };
        let all = [
            client_secret(&key(1, 1), "a"),
            client_secret(&key(1, 1), "b"),
            client_secret(&key(2, 1), "a"),
            client_secret(&key(1, 2), "a"),
            server_secret(&key(1, 1)),
            server_secret(&key(2, 1)),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| !equal(&a.0, &b.0)));
        }
        assert!(equal(&all[0].0, &client_secret(&key(1, 1), "a").0));
    }

    #[test]
    fn names_are_plain() {
        let key = ServerKey { cluster: ClusterId(1), id: KeyId(3), secret: Secret([1; 32]) };
        assert_eq!(credential(&key, "laptop-1.home_x").unwrap().key, KeyId(3));
        let long = "x".repeat(CREDENTIAL_NAME_BYTES_MAX + 1);
        for name in ["", "a b", "ä", "a/b", "a\n", long.as_str()] {
            assert!(credential(&key, name).is_err(), "{name:?}");
        }
    }
}
