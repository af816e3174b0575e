//! Where copies go: the rules of cp(1).

use super::tree::{Kind, Node, Tree};
use crate::path::AnyPath;
use kiln_types::{Code, Error, Result};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Where one source goes.
pub(crate) struct Target {
    /// The directory that gets it.
    pub(crate) parent: Node,
    /// Its name there; `None`: the content of the source goes into `parent` itself.
    pub(crate) name: Option<Vec<u8>>,
}

/// A path as the trees take it.
pub(crate) fn bytes_of(path: &AnyPath) -> Vec<u8> {
    match path {
        AnyPath::Local(path) => path.as_os_str().as_bytes().to_vec(),
        AnyPath::Kiln(path) => path.shown().into_vec(),
    }
}

/// What a source is called at its destination; `None` for a root directory.
fn name_of(path: &AnyPath) -> Result<Option<Vec<u8>>> {
    match path {
        AnyPath::Kiln(path) => Ok(path.split().map(|(_, name)| name.to_vec())),
        AnyPath::Local(path) => {
            let whole = match path.file_name() {
                Some(_) => path.clone(),
                // '.', '..' and their like.
                None => {
                    path.canonicalize().map_err(|error| Error::local(path.display(), &error))?
                }
            };
            Ok(whole.file_name().map(|name| name.as_bytes().to_vec()))
        }
    }
}

/// Where `source` goes when `destination` is named; `one`: it is the only source.
///
/// # Errors
/// `NotDirectory`, `NotFound`, as cp(1) says.
pub(crate) async fn target(
    to: &dyn Tree,
    source: (&AnyPath, Kind),
    destination: &AnyPath,
    one: bool,
) -> Result<Target> {
    let path = bytes_of(destination);
    let slash = match destination {
        AnyPath::Kiln(path) => path.slash,
        AnyPath::Local(path) => path.as_os_str().as_bytes().ends_with(b"/"),
    };
    let is_directory = source.1 == Kind::Directory;
    match to.look(&path, true).await {
        Ok(node) if node.info.kind == Kind::Directory => {
            Ok(Target { parent: node, name: name_of(source.0)? })
        }
        Ok(node) if !one || slash || is_directory => {
            Err(Error::new(Code::NotDirectory, format!("{}: it is not a directory", node.shown())))
        }
        Ok(_) => beside(to, destination).await,
        Err(error) if error.code() != Code::NotFound => Err(error),
        Err(_) if !one || (slash && !is_directory) => Err(Error::new(
            Code::NotFound,
            format!("{}: there is no such directory", OsString::from_vec(path).display()),
        )
        .with_hint(match destination {
            AnyPath::Kiln(path) => format!("kiln mkdir {path} makes it"),
            AnyPath::Local(path) => format!("mkdir {} makes it", path.display()),
        })),
        Err(_) => beside(to, destination).await,
    }
}

/// The directory and name that `destination` spells.
async fn beside(to: &dyn Tree, destination: &AnyPath) -> Result<Target> {
    let (parent, name) = match destination {
        AnyPath::Kiln(path) => {
            let (parent, name) = path.split().ok_or_else(|| unnamed(&path.shown()))?;
            (parent.shown().into_vec(), name.to_vec())
        }
        AnyPath::Local(path) => {
            let name = path.file_name().ok_or_else(|| unnamed(path.as_os_str()))?;
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new(".")).as_os_str().as_bytes().to_vec();
            (parent, name.as_bytes().to_vec())
        }
    };
    let parent = to.look(&parent, true).await?;
    if parent.info.kind != Kind::Directory {
        let shown = parent.shown();
        return Err(Error::new(Code::NotDirectory, format!("{shown}: it is not a directory")));
    }
    Ok(Target { parent, name: Some(name) })
}

fn unnamed(path: &std::ffi::OsStr) -> Error {
    Error::invalid(format!("{}: it has no name of its own", path.display()))
}

/// Refuses to copy a directory of the cluster into itself.
///
/// # Errors
/// `Invalid`.
pub(crate) fn check_apart(source: &AnyPath, destination: &AnyPath) -> Result<()> {
    let (AnyPath::Kiln(from), AnyPath::Kiln(to)) = (source, destination) else { return Ok(()) };
    let below = to.as_bytes().strip_prefix(from.as_bytes());
    let inside = from.split().is_none()
        || below.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"));
    if inside {
        return Err(Error::invalid(format!("{from} cannot be copied into itself, {to}")));
    }
    Ok(())
}
