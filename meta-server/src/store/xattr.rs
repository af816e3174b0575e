//! Extended attributes.

use crate::access::{self, READ, STICKY, WRITE};
use crate::keys::xattr_name_of;
use crate::name::NAME_BYTES_MAX;
use crate::records::{Inode, XATTR_BYTES_MAX, Xattr};
use crate::store::lookup::reach;
use crate::store::{Change, Outcome, Store, Who};
use crate::tx::Tx;
use kiln_types::{Caller, Code, Error, FileKind, InodeId, Result};

/// The most bytes of names of one inode, each with its NUL: what listxattr can return.
const NAMES_BYTES_MAX: usize = 64 << 10;
/// The most names of one inode.
const NAMES_MAX: usize = 4096;

/// Whether the attribute has to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum XattrMode {
    /// Either.
    #[default]
    Any,
    /// It must not.
    Create,
    /// It must.
    Replace,
}

impl Store {
    /// An extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`, `PermissionDenied`, `Unsupported` for an unknown namespace, `OutOfRange` for
    /// a name that is empty or too long, `StaleHandle`, or what kv reports.
    pub async fn get_xattr(&self, who: &Who, inode: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        self.transact("getxattr", &|tx| {
            Box::pin(async move {
                let inode = reach(tx, who, inode).await?;
                check_get(&inode, &who.caller, name)?;
                let value = tx.get::<Xattr>(&tx.keys.xattr(inode.id, name)).await?;
                value.map(|value| value.0).ok_or_else(|| missing(name))
            })
        })
        .await
    }

    /// The names of all extended attributes that the caller may know of.
    ///
    /// # Errors
    /// `StaleHandle`, or what kv reports.
    pub async fn list_xattrs(&self, who: &Who, inode: InodeId) -> Result<Vec<Vec<u8>>> {
        self.transact("listxattr", &|tx| {
            Box::pin(async move {
                let inode = reach(tx, who, inode).await?;
                let mut names = names_of(tx, inode.id).await?;
                names.retain(|name| who.caller.uid == 0 || !name.starts_with(b"trusted."));
                Ok(names)
            })
        })
        .await
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// `Exists` and `NoAttribute` as `mode` wants, `TooBig` for a value above 64 KiB, `NoSpace` for
    /// too many names, `NotPermitted`, `PermissionDenied`, `Unsupported` for an unknown namespace,
    /// `OutOfRange` for a name that is empty or too long, `StaleHandle`, or what kv reports.
    pub async fn set_xattr(
        &self,
        change: &Change,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        if value.len() > XATTR_BYTES_MAX {
            let text = format!("a value of {} bytes, at most {XATTR_BYTES_MAX}", value.len());
            return Err(Error::new(Code::TooBig, text));
        }
        self.change(change, "setxattr", &|tx| Box::pin(set(tx, change, inode, name, value, mode)))
            .await?;
        Ok(())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`, and those of [`set_xattr`](Self::set_xattr).
    pub async fn remove_xattr(&self, change: &Change, inode: InodeId, name: &[u8]) -> Result<()> {
        self.change(change, "removexattr", &|tx| {
            Box::pin(async move {
                let mut inode = reach(tx, &change.who, inode).await?;
                check_set(&inode, &change.who.caller, name)?;
                let key = tx.keys.xattr_name(inode.id, name);
                if tx.kv.get(&key).await?.is_none() {
                    return Err(missing(name));
                }
                tx.kv.clear(&key);
                tx.kv.clear(&tx.keys.xattr(inode.id, name));
                inode.ctime = tx.now;
                tx.put_inode(&inode);
                Ok(Outcome::done())
            })
        })
        .await?;
        Ok(())
    }
}

fn missing(name: &[u8]) -> Error {
    Error::new(Code::NoAttribute, format!("no attribute '{}'", name.escape_ascii()))
}

async fn names_of(tx: &mut Tx<'_, '_>, inode: InodeId) -> Result<Vec<Vec<u8>>> {
    let pairs = tx.range(tx.keys.xattr_names(inode), NAMES_MAX).await?;
    pairs.iter().map(|(key, _)| Ok(xattr_name_of(key)?.to_vec())).collect()
}

async fn set(
    tx: &mut Tx<'_, '_>,
    change: &Change,
    inode: InodeId,
    name: &[u8],
    value: &[u8],
    mode: XattrMode,
) -> Result<Outcome> {
    let mut inode = reach(tx, &change.who, inode).await?;
    check_set(&inode, &change.who.caller, name)?;
    tx.room.clone()?;
    let key = tx.keys.xattr_name(inode.id, name);
    let exists = tx.kv.get(&key).await?.is_some();
    match (exists, mode) {
        (true, XattrMode::Create) => {
            let text = format!("the attribute '{}' exists", name.escape_ascii());
            return Err(Error::new(Code::Exists, text));
        }
        (false, XattrMode::Replace) => return Err(missing(name)),
        _ => {}
    }
    if !exists {
        let names = names_of(tx, inode.id).await?;
        let bytes: usize = names.iter().map(|name| name.len() + 1).sum();
        if names.len() >= NAMES_MAX || bytes + name.len() + 1 > NAMES_BYTES_MAX {
            return Err(Error::new(Code::NoSpace, "too many extended attributes on one inode"));
        }
    }
    tx.kv.set(&key, &(value.len() as u32).to_le_bytes());
    tx.put(&tx.keys.xattr(inode.id, name), &Xattr(value.to_vec()));
    inode.ctime = tx.now;
    tx.put_inode(&inode);
    Ok(Outcome::done())
}

/// The namespaces of Linux.
enum Namespace {
    User,
    Trusted,
    Security,
}

fn namespace(name: &[u8]) -> Result<Namespace> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        let text = format!("an attribute's name of {} bytes", name.len());
        return Err(Error::new(Code::OutOfRange, text));
    }
    let known = [
        (&b"user."[..], Namespace::User),
        (b"trusted.", Namespace::Trusted),
        (b"security.", Namespace::Security),
    ];
    for (prefix, namespace) in known {
        if name.len() > prefix.len() && name.starts_with(prefix) {
            return Ok(namespace);
        }
    }
    let text = format!("'{}' is in no namespace that is kept", name.escape_ascii());
    Err(Error::new(Code::Unsupported, text)
        .with_hint("names begin with user., trusted. or security."))
}

fn has_user_attributes(inode: &Inode) -> bool {
    matches!(inode.kind(), FileKind::File | FileKind::Directory)
}

fn check_get(inode: &Inode, caller: &Caller, name: &[u8]) -> Result<()> {
    match namespace(name)? {
        Namespace::User if !has_user_attributes(inode) => Err(missing(name)),
        Namespace::User => access::require(inode, caller, READ),
        Namespace::Trusted if caller.uid != 0 => Err(missing(name)),
        Namespace::Trusted | Namespace::Security => Ok(()),
    }
}

fn check_set(inode: &Inode, caller: &Caller, name: &[u8]) -> Result<()> {
    let refused = |text| Err(Error::new(Code::NotPermitted, text));
    match namespace(name)? {
        Namespace::User if !has_user_attributes(inode) => {
            refused("only files and directories have user.*")
        }
        Namespace::User => {
            let is_shared = inode.is_directory() && inode.mode & STICKY != 0;
            if is_shared && !access::owns(inode, caller) {
                return refused("only its owner sets user.* of a sticky directory");
            }
            access::require(inode, caller, WRITE)
        }
        Namespace::Trusted | Namespace::Security if caller.uid != 0 => {
            refused("only root sets trusted.* and security.*")
        }
        Namespace::Trusted | Namespace::Security => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Record;

    #[test]
    fn the_largest_value_fits_a_record() {
        let record = Xattr(vec![0; XATTR_BYTES_MAX]).encode();
        assert!(record.len() <= kiln_kv::VALUE_BYTES_MAX);
    }

    #[test]
    fn names_need_a_known_namespace() {
        assert!(namespace(b"user.a").is_ok());
        for (name, code) in [
            (&b""[..], Code::OutOfRange),
            (&[b'u'; 256], Code::OutOfRange),
            (b"user.", Code::Unsupported),
            (b"system.posix_acl_access", Code::Unsupported),
        ] {
            assert_eq!(namespace(name).map(|_| ()).map_err(|e| e.code()), Err(code));
        }
    }
}
