//! Paths on the command line: `kiln:/in/the/cluster`, or on this machine.

use crate::failure::{Failure, Outcome};
use kiln_types::Error;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

const PREFIX: &[u8] = b"kiln:";

/// A path of either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AnyPath {
    /// On this machine.
    Local(PathBuf),
    /// In the cluster.
    Kiln(KilnPath),
}

/// An absolute path in the cluster: its components, without '.' and empty ones. '..' is left to the
/// cluster, where a symlink may stand before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KilnPath {
    bytes: Vec<u8>,
    /// Whether it was written with a '/' at its end: it has to be a directory.
    pub(crate) slash: bool,
}

impl AnyPath {
    /// Reads an argument.
    pub(crate) fn parse(argument: &OsStr) -> Outcome<Self> {
        let bytes = argument.as_bytes();
        match bytes.strip_prefix(PREFIX) {
            None if bytes.is_empty() => Err(Failure::usage(Error::invalid("a path is empty"))),
            None => Ok(Self::Local(argument.into())),
            Some(path) if path.first() == Some(&b'/') => Ok(Self::Kiln(KilnPath::new(path))),
            Some(path) => {
                let path = String::from_utf8_lossy(path);
                Err(Failure::usage(
                    Error::invalid(format!("'kiln:{path}' has no '/' behind 'kiln:'"))
                        .with_hint(format!("write kiln:/{path}")),
                ))
            }
        }
    }
}

impl KilnPath {
    /// The root directory.
    pub(crate) fn root() -> Self {
        Self::new(b"/")
    }

    /// Reads an argument that has to be a path in the cluster.
    pub(crate) fn parse(argument: &OsStr) -> Outcome<Self> {
        match AnyPath::parse(argument)? {
            AnyPath::Kiln(path) => Ok(path),
            AnyPath::Local(path) => {
                let path = path.display();
                Err(Failure::usage(
                    Error::invalid(format!("'{path}' is not a path in the cluster"))
                        .with_hint("paths in the cluster begin with kiln:/, as in kiln:/dataset"),
                ))
            }
        }
    }

    fn new(path: &[u8]) -> Self {
        let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
        let mut bytes = Vec::new();
        for part in parts {
            bytes.push(b'/');
            bytes.extend_from_slice(part);
        }
        let slash = path.ends_with(b"/") || path.ends_with(b"/.");
        if bytes.is_empty() {
            bytes.push(b'/');
        }
        Self { bytes, slash }
    }

    /// The path without the prefix.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// As it is written on the command line.
    pub(crate) fn shown(&self) -> OsString {
        OsString::from_vec([PREFIX, &self.bytes].concat())
    }

    /// The directory that holds it and its name there; `None` for the root and behind '..'.
    pub(crate) fn split(&self) -> Option<(Self, &[u8])> {
        let at = self.bytes.iter().rposition(|byte| *byte == b'/')?;
        let name = &self.bytes[at + 1..];
        let named = !name.is_empty() && name != b"..";
        named.then(|| (Self::new(if at == 0 { b"/" } else { &self.bytes[..at] }), name))
    }

    /// The path of `name` in this directory.
    pub(crate) fn join(&self, name: &[u8]) -> Self {
        Self::new(&[&self.bytes, b"/".as_slice(), name].concat())
    }
}

impl std::fmt::Display for KilnPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.shown().display())
    }
}

/// Whether `name` matches a shell pattern of `*`, `?` and letters.
pub(crate) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on when the last '*' has to take one byte more.
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n + 1));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match retry {
                Some((after, from)) => {
                    (p, n) = (after, from);
                    retry = Some((after, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kiln(text: &str) -> KilnPath {
        KilnPath::parse(OsStr::new(text)).unwrap()
    }

    #[test]
    fn paths_are_told_apart_and_made_plain() {
        assert_eq!(AnyPath::parse(OsStr::new("a/b")).unwrap(), AnyPath::Local("a/b".into()));
        assert_eq!(kiln("kiln:/a//b/./c/").as_bytes(), b"/a/b/c");
        assert!(kiln("kiln:/a/").slash && !kiln("kiln:/a").slash);
        assert_eq!(kiln("kiln:/").as_bytes(), b"/");
        assert_eq!(kiln("kiln:/a/../b").as_bytes(), b"/a/../b");
        for wrong in ["", "kiln:", "kiln:a", "/a"] {
            assert!(KilnPath::parse(OsStr::new(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn paths_are_split_and_joined() {
        let path = kiln("kiln:/a/b");
        let (parent, name) = path.split().unwrap();
        assert_eq!((parent.as_bytes(), name), (b"/a".as_slice(), b"b".as_slice()));
        assert_eq!(parent.join(name), path);
        assert_eq!(kiln("kiln:/a").split().unwrap().0, KilnPath::root());
        assert_eq!(KilnPath::root().split(), None);
        assert_eq!(kiln("kiln:/a/..").split(), None);
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        let yes = [("*", ""), ("*.rs", "a.rs"), ("a?c", "abc"), ("*a*b*", "xxaxxbxx"), ("", "")];
        for (pattern, name) in yes {
            assert!(matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        let no = [("", "a"), ("*.rs", "a.rsx"), ("a?c", "ac"), ("*a*b", "ba"), ("?", "")];
        for (pattern, name) in no {
            assert!(!matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
    }
}
