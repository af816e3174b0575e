//! The files of server keys and client credentials: TOML, mode 0600, refused when others may read them.
//!
//! ```toml
//! kind = "kiln server key"    # or "kiln credential"
//! version = 1
//! [content]
//! cluster = "..."             # the fields of ServerKey or Credential
//! ```

use crate::{files, layers};
use kiln_types::{Code, Context, Credential, Error, Result, ServerKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const VERSION: u32 = 1;
const SERVER_KEY: &str = "kiln server key";
const CREDENTIAL: &str = "kiln credential";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    kind: String,
    version: u32,
    content: toml::Table,
}

/// Reads a server key.
///
/// # Errors
/// `NotFound`, `NotPermitted` when others than the owner may read the file, `Invalid` when it is not one.
pub fn read_server_key(path: &Path) -> Result<ServerKey> {
    read(path, SERVER_KEY)
}

/// Reads a client credential.
///
/// # Errors
/// As [`read_server_key`].
pub fn read_credential(path: &Path) -> Result<Credential> {
    read(path, CREDENTIAL)
}

/// Writes a server key to a new file that only its owner may read.
///
/// # Errors
/// `Exists`, `Local`.
pub fn create_server_key(path: &Path, key: &ServerKey) -> Result<()> {
    create(path, SERVER_KEY, key)
}

/// Writes a client credential to a new file that only its owner may read.
///
/// # Errors
/// `Exists`, `Local`.
pub fn create_credential(path: &Path, credential: &Credential) -> Result<()> {
    create(path, CREDENTIAL, credential)
}

fn create(path: &Path, kind: &str, content: &impl Serialize) -> Result<()> {
    let content = toml::Table::try_from(content)
        .map_err(|error| Error::internal(format!("{kind}: {error}")))?;
    let head = Head { kind: kind.into(), version: VERSION, content };
    let text =
        toml::to_string(&head).map_err(|error| Error::internal(format!("{kind}: {error}")))?;
    files::create_file(path, text.as_bytes(), 0o600)
}

/// Reads a password: the text of a file, without the end of its line.
///
/// # Errors
/// As [`read_server_key`].
pub fn read_password(path: &Path) -> Result<String> {
    let text = read_private(path, "password")?;
    match text.trim_end_matches(['\n', '\r']) {
        "" => Err(Error::invalid(format!("{} is empty", path.display()))),
        password => Ok(password.into()),
    }
}

/// Reads a file that only its owner may read.
fn read_private(path: &Path, kind: &str) -> Result<String> {
    let shown = path.display();
    let metadata = match path.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::new(Code::NotFound, format!("there is no {kind} at {shown}")));
        }
        other => other.context(format_args!("{kind} {shown}"))?,
    };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::new(
            Code::NotPermitted,
            format!("{shown} has mode {mode:04o}: others than its owner may use this secret"),
        )
        .with_hint(format!("chmod 600 {shown}")));
    }
    std::fs::read_to_string(path).context(format_args!("{kind} {shown}"))
}

fn read<T: DeserializeOwned>(path: &Path, kind: &str) -> Result<T> {
    let (text, shown) = (read_private(path, kind)?, path.display());
    let head: Head = layers::parse_file(path, &text)?;
    if head.kind != kind {
        return Err(Error::invalid(format!("{shown} holds a {}, not a {kind}", head.kind)));
    }
    if head.version != VERSION {
        return Err(Error::new(
            Code::Unsupported,
            format!("{shown} has version {}; this kiln reads version {VERSION}", head.version),
        ));
    }
    // The message names a field or says what a secret looks like; it never repeats the secret.
    head.content
        .try_into()
        .map_err(|error: toml::de::Error| Error::invalid(format!("{shown}: {}", error.message())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_types::{ClusterId, KeyId, Secret};

    fn key() -> ServerKey {
        ServerKey { cluster: ClusterId(u128::MAX - 5), id: KeyId(1), secret: Secret([0xab; 32]) }
    }

    #[test]
    fn a_key_comes_back_and_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.key");
        create_server_key(&path, &key()).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_server_key(&path).unwrap(), key());
        let again = create_server_key(&path, &key()).unwrap_err();
        assert_eq!(again.code(), Code::Exists);
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "no temporary file stays: {names:?}");
    }

    #[test]
    fn what_others_may_read_or_is_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.key");
        assert_eq!(read_server_key(&path).unwrap_err().code(), Code::NotFound);
        create_server_key(&path, &key()).unwrap();
        let wrong_kind = read_credential(&path).unwrap_err().to_string();
        assert!(wrong_kind.contains("holds a kiln server key"), "{wrong_kind}");

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = read_server_key(&path).unwrap_err();
        assert_eq!(error.code(), Code::NotPermitted);
        assert!(error.hint().unwrap().starts_with("chmod 600"), "{error}");
    }

    #[test]
    fn a_password_is_the_line_of_a_private_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        files::create_file(&path, b" s3cret \n", 0o600).unwrap();
        assert_eq!(read_password(&path).as_deref(), Ok(" s3cret "));
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(read_password(&path).unwrap_err().code(), Code::Invalid);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).unwrap();
        assert_eq!(read_password(&path).unwrap_err().code(), Code::NotPermitted);
    }

    #[test]
    fn a_damaged_secret_is_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.key");
        let hex = "ab".repeat(32);
        let damaged = format!("{}zz", &hex[..62]);
        create_server_key(&path, &key()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap().replace(&hex, &damaged);
        std::fs::write(&path, text).unwrap();
        let message = read_server_key(&path).unwrap_err().to_string();
        assert!(message.contains("64 hex digits") && !message.contains("abab"), "{message}");
    }
}
