//! Attributes for people and for scripts.

use kiln_types::{Attr, FileKind, Timestamp};
use serde::Serialize;
use std::io::IsTerminal;
use std::time::{Duration, SystemTime};

/// What `--json` says of a file.
#[derive(Serialize)]
pub(crate) struct Shown {
    /// Its name or path; bytes that are not UTF-8 are replaced.
    pub(crate) name: String,
    pub(crate) inode: u64,
    pub(crate) kind: FileKind,
    /// Permission bits in octal.
    pub(crate) mode: String,
    pub(crate) links: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) length: u64,
    pub(crate) modified: String,
    /// Of a symlink.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<String>,
}

impl Shown {
    pub(crate) fn new(name: &[u8], attr: &Attr, target: Option<&[u8]>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            name: text(name),
            inode: attr.inode.0,
            kind: attr.kind,
            mode: format!("{:04o}", attr.mode),
            links: attr.links,
            uid: attr.uid,
            gid: attr.gid,
            length: attr.length,
            modified: time(attr.mtime, true),
            target: target.map(text),
        }
    }
}

/// `drwxr-xr-x` and its like.
pub(crate) fn mode(attr: &Attr) -> String {
    let kind = match attr.kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
    };
    let mut text = String::from(kind);
    for (shift, special, letters) in [(6, 0o4000, "sS"), (3, 0o2000, "sS"), (0, 0o1000, "tT")] {
        let bits = attr.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (attr.mode & special != 0, bits & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, executable) => letters.as_bytes()[usize::from(!executable)].into(),
        });
    }
    text
}

/// A point in time in UTC: to the nanosecond as RFC 3339, or to the minute.
pub(crate) fn time(time: Timestamp, exact: bool) -> String {
    let (seconds, nanos) = time.to_parts();
    let since = Duration::new(seconds.unsigned_abs(), 0);
    let whole = match seconds >= 0 {
        true => SystemTime::UNIX_EPOCH.checked_add(since),
        false => SystemTime::UNIX_EPOCH.checked_sub(since),
    };
    let Some(at) = whole.and_then(|whole| whole.checked_add(Duration::new(0, nanos))) else {
        return time.to_string();
    };
    if seconds < 0 {
        return format!("{time}");
    }
    if exact {
        return humantime::format_rfc3339_nanos(at).to_string();
    }
    let text = humantime::format_rfc3339_seconds(at).to_string();
    text.replace('T', " ").chars().take("2026-11-24 12:00".len()).collect()
}

/// A name as it goes to standard output: a terminal gets no control characters.
pub(crate) fn name(name: &[u8]) -> Vec<u8> {
    if !std::io::stdout().is_terminal() {
        return name.to_vec();
    }
    let text = String::from_utf8_lossy(name);
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>().into_bytes()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn attr(kind: FileKind, mode: u32) -> Attr {
        Attr {
            inode: 1.into(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            links: 1,
            length: 0,
            dense_end: 0,
            device: 0,
            atime: Timestamp(0),
            mtime: Timestamp(0),
            ctime: Timestamp(0),
            btime: Timestamp(0),
            epoch: kiln_types::TruncateEpoch(0),
            floors: Vec::new(),
            layout: None,
        }
    }

    #[test]
    fn modes_and_times_are_shown_as_ls_shows_them() {
        assert_eq!(mode(&attr(FileKind::File, 0o644)), "-rw-r--r--");
        assert_eq!(mode(&attr(FileKind::Directory, 0o1777)), "drwxrwxrwt");
        assert_eq!(mode(&attr(FileKind::File, 0o4644)), "-rwSr--r--");
        assert_eq!(mode(&attr(FileKind::Symlink, 0o777)), "lrwxrwxrwx");
        let at = Timestamp::from_parts(1_767_225_600, 5);
        assert_eq!(time(at, false), "2026-01-01 00:00");
        assert_eq!(time(at, true), "2026-01-01T00:00:00.000000005Z");
        assert_eq!(time(Timestamp(-1), true), "-1.999999999");
    }
}
