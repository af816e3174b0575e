//! The kernel's table of mounts.

use crate::kernel::SUBTYPE;
use kiln_types::{Context, Result};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its device, `MAJOR:MINOR`.
    pub device: String,
    /// Where it is.
    pub path: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// What is mounted.
    pub source: String,
}

impl Mount {
    /// Whether it is one of ours.
    pub fn is_kiln(&self) -> bool {
        self.kind.strip_prefix("fuse.") == Some(SUBTYPE)
    }
}

/// All mounts that this process sees; later ones hide earlier ones on the same path.
///
/// # Errors
/// `Local` when the kernel does not show them.
pub fn read() -> Result<Vec<Mount>> {
    let file = "/proc/self/mountinfo";
    Ok(parse(&std::fs::read(file).context(file)?))
}

/// What is mounted on `path`.
pub fn at<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts.iter().rev().find(|mount| mount.path == path)
}

/// Lines of `ID PARENT MAJ:MIN ROOT PATH OPTIONS [FIELDS..] - TYPE SOURCE OPTIONS`.
fn parse(table: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let fields: Vec<_> = line.split(|byte| *byte == b' ').collect();
        let rest = fields.iter().position(|field| *field == b"-")? + 1;
        let text = |at: usize| Some(unescape(fields.get(at)?));
        Some(Mount {
            device: text(2)?.to_string_lossy().into_owned(),
            path: text(4)?.into(),
            kind: text(rest)?.to_string_lossy().into_owned(),
            source: text(rest + 1)?.to_string_lossy().into_owned(),
        })
    };
    table.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// The kernel writes blanks, newlines and backslashes as `\` and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        rest = match (first, value) {
            (b'\\', Some(value)) => {
                bytes.push(value);
                &tail[3..]
            }
            _ => {
                bytes.push(*first);
                tail
            }
        };
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_device_path_type_and_source() {
        let table = b"22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
            99 22 0:52 / /mnt/my\\040data rw,nosuid shared:3 master:1 - fuse.kiln kiln:/a\\134b rw\n\
            torn\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert!(mounts[1].is_kiln() && !mounts[0].is_kiln());
        let mount = at(&mounts, Path::new("/mnt/my data")).unwrap();
        assert_eq!((mount.device.as_str(), mount.source.as_str()), ("0:52", "kiln:/a\\b"));
        assert!(at(&mounts, Path::new("/mnt")).is_none());
        let own = read().unwrap();
        assert!(at(&own, Path::new("/")).is_some(), "{own:?}");
    }
}
