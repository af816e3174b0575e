//! Small files that are there whole or not at all, and stay after a power loss.

use kiln_types::{Code, Context, Error, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Replaces `path` by a file with this content and mode, atomically and durably.
///
/// # Errors
/// `Local`, naming the file.
pub fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    put(path, content, mode, |from, to| fs::rename(from, to))
}

/// As [`write_file`], but never replaces anything.
///
/// # Errors
/// `Exists` when there is something at `path`, else `Local`.
pub fn create_file(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    put(path, content, mode, |from, to| {
        fs::hard_link(from, to)?;
        fs::remove_file(from)
    })
    .map_err(|error| match path.symlink_metadata() {
        Ok(_) => Error::new(Code::Exists, format!("{} exists already", path.display()))
            .with_hint("name another file, or move it away first"),
        Err(_) => error,
    })
}

fn put(
    path: &Path,
    content: &[u8],
    mode: u32,
    place: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> Result<()> {
    let temporary = temporary_name(path)?;
    let written = write_temporary(&temporary, content, mode)
        .and_then(|()| place(&temporary, path))
        .and_then(|()| File::open(parent(path))?.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.context(format_args!("write of {}", path.display()))
}

fn write_temporary(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    // What a killed predecessor with our process id left behind is of no use to anyone.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn temporary_name(path: &Path) -> Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::invalid(format!("{} does not name a file", path.display())))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".new-{}", std::process::id()));
    Ok(path.with_file_name(hidden))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
