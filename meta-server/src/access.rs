//! Who may do what: the rules of POSIX over an inode and a caller, as Linux reads them.

use crate::records::Inode;
use kiln_types::{Caller, Code, Error, Result};

pub(crate) const READ: u32 = 4;
pub(crate) const WRITE: u32 = 2;
pub(crate) const SEARCH: u32 = 1;

pub(crate) const SET_UID: u32 = 0o4000;
pub(crate) const SET_GID: u32 = 0o2000;
pub(crate) const STICKY: u32 = 0o1000;
const GROUP_EXECUTE: u32 = 0o010;

/// Whether the mode bits give `caller` all of `want`. Root reads and writes everything, searches
/// every directory, and executes what anyone may execute.
pub(crate) fn allows(inode: &Inode, caller: &Caller, want: u32) -> bool {
    if caller.uid == 0 {
        return want & SEARCH == 0 || inode.is_directory() || inode.mode & 0o111 != 0;
    }
    let shift = if caller.uid == inode.uid {
        6
    } else if caller.in_group(inode.gid) {
        3
    } else {
        0
    };
    (inode.mode >> shift) & want == want
}

/// Checks the mode bits.
///
/// # Errors
/// `PermissionDenied`.
pub(crate) fn require(inode: &Inode, caller: &Caller, want: u32) -> Result<()> {
    if allows(inode, caller, want) {
        return Ok(());
    }
    let right = match want {
        READ => "read",
        WRITE => "write",
        SEARCH => "search",
        _ => "change",
    };
    let text = format!(
        "user {} may not {right} inode {} (mode {:04o}, owner {}:{})",
        caller.uid, inode.id, inode.mode, inode.uid, inode.gid
    );
    Err(Error::new(Code::PermissionDenied, text))
}

/// Whether `caller` owns the inode or is root.
pub(crate) fn owns(inode: &Inode, caller: &Caller) -> bool {
    caller.uid == 0 || caller.uid == inode.uid
}

/// Checks that `caller` owns the inode or is root.
///
/// # Errors
/// `NotPermitted`.
pub(crate) fn require_owner(inode: &Inode, caller: &Caller) -> Result<()> {
    if owns(inode, caller) {
        return Ok(());
    }
    let text = format!("only user {} and root may do this to inode {}", inode.uid, inode.id);
    Err(Error::new(Code::NotPermitted, text))
}

/// Whether `caller` may take only own entries out of a directory.
pub(crate) fn is_sticky_for(directory: &Inode, caller: &Caller) -> bool {
    directory.mode & STICKY != 0 && !owns(directory, caller)
}

/// Checks the sticky bit of a directory from which `entry` is to go.
///
/// # Errors
/// `NotPermitted`.
pub(crate) fn require_sticky(directory: &Inode, entry: &Inode, caller: &Caller) -> Result<()> {
    if !is_sticky_for(directory, caller) || owns(entry, caller) {
        return Ok(());
    }
    let text = format!("directory {} is sticky and the entry is another user's", directory.id);
    Err(Error::new(Code::NotPermitted, text))
}

/// The mode after a chmod: outside the file's group, set-gid is not given.
pub(crate) fn mode_after_chmod(inode: &Inode, gid: u32, mode: u32, caller: &Caller) -> u32 {
    debug_assert!(owns(inode, caller), "checked before");
    if caller.uid == 0 || caller.in_group(gid) { mode } else { mode & !SET_GID }
}

/// The mode after a change of owner or group: no set-id program survives it, whoever did it.
pub(crate) fn mode_after_chown(inode: &Inode, caller: &Caller) -> u32 {
    if inode.is_directory() { inode.mode } else { without_set_ids(inode, caller) }
}

/// The mode after `caller` changed the content.
pub(crate) fn mode_after_write(inode: &Inode, caller: &Caller) -> u32 {
    if caller.uid == 0 { inode.mode } else { without_set_ids(inode, caller) }
}

/// Set-gid without group execute is not a program's, and stays if `caller` could have set it.
fn without_set_ids(inode: &Inode, caller: &Caller) -> u32 {
    let mode = inode.mode & !SET_UID;
    let may_set = caller.uid == 0 || caller.in_group(inode.gid);
    if mode & GROUP_EXECUTE == 0 && may_set { mode } else { mode & !SET_GID }
}

/// Group and mode of what `caller` makes in `directory`: a set-gid directory passes on its group,
/// and to directories the bit; who is not in that group gets no set-gid program in it.
pub(crate) fn group_and_mode(
    directory: &Inode,
    caller: &Caller,
    mode: u32,
    makes_directory: bool,
) -> (u32, u32) {
    if directory.mode & SET_GID == 0 {
        return (caller.gid, mode);
    }
    let gid = directory.gid;
    if makes_directory {
        return (gid, mode | SET_GID);
    }
    let is_program = mode & (SET_GID | GROUP_EXECUTE) == SET_GID | GROUP_EXECUTE;
    let strip = is_program && caller.uid != 0 && !caller.in_group(gid);
    (gid, if strip { mode & !SET_GID } else { mode })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{Body, Directory};
    use kiln_types::LayoutWish;
    use kiln_types::{InodeId, Timestamp};

    fn inode(mode: u32, directory: bool) -> Inode {
        let zero = Timestamp(0);
        Inode {
            id: InodeId(7),
            mode,
            uid: 10,
            gid: 20,
            parent: InodeId(1),
            links: 1,
            atime: zero,
            mtime: zero,
            ctime: zero,
            btime: zero,
            body: match directory {
                true => Body::Directory(Directory { mtime_set: zero, wish: LayoutWish::default() }),
                false => Body::Symlink { target: Vec::new() },
            },
            quota: InodeId(0),
            counted: true,
        }
    }

    fn caller(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        Caller { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let owner = caller(10, 1, &[]);
        let by_gid = caller(11, 20, &[]);
        let by_groups = caller(11, 1, &[3, 20]);
        let other = caller(11, 1, &[3]);
        let root = caller(0, 0, &[]);
        for (mode, who, want, expected) in [
            (0o700, &owner, READ | WRITE | SEARCH, true),
            (0o077, &owner, READ, false),
            (0o070, &by_gid, READ | WRITE, true),
            (0o707, &by_gid, READ, false),
            (0o040, &by_groups, READ, true),
            (0o040, &by_groups, WRITE, false),
            (0o004, &other, READ, true),
            (0o770, &other, READ, false),
            (0o003, &other, WRITE | SEARCH, true),
            (0o002, &other, WRITE | SEARCH, false),
            (0o000, &root, READ | WRITE, true),
            (0o000, &root, SEARCH, false),
            (0o001, &root, SEARCH, true),
        ] {
            assert_eq!(allows(&inode(mode, false), who, want), expected, "{mode:o} {who:?} {want}");
        }
        assert!(allows(&inode(0, true), &root, SEARCH));
        assert!(!allows(&inode(0, true), &owner, SEARCH));
    }

    #[test]
    fn sticky_directories_protect_entries_of_others() {
        let mut directory = inode(0o1777, true);
        directory.uid = 5;
        let entry = inode(0o644, false);
        assert!(require_sticky(&directory, &entry, &caller(10, 1, &[])).is_ok());
        assert!(require_sticky(&directory, &entry, &caller(5, 1, &[])).is_ok());
        assert!(require_sticky(&directory, &entry, &caller(0, 0, &[])).is_ok());
        let refused = require_sticky(&directory, &entry, &caller(6, 20, &[20]));
        assert_eq!(refused.map_err(|e| e.code()), Err(Code::NotPermitted));
        directory.mode = 0o777;
        assert!(require_sticky(&directory, &entry, &caller(6, 20, &[])).is_ok());
    }

    #[test]
    fn set_id_bits_go_when_they_must() {
        let member = caller(10, 20, &[]);
        let stranger = caller(10, 1, &[]);
        let root = caller(0, 0, &[]);
        let program = inode(0o6755, false);
        assert_eq!(mode_after_chmod(&program, 20, 0o2755, &member), 0o2755);
        assert_eq!(mode_after_chmod(&program, 20, 0o2755, &stranger), 0o755);
        assert_eq!(mode_after_chmod(&program, 20, 0o2755, &root), 0o2755);
        assert_eq!(mode_after_chown(&program, &root), 0o755);
        assert_eq!(mode_after_chown(&inode(0o6745, false), &root), 0o2745);
        assert_eq!(mode_after_chown(&inode(0o6755, true), &root), 0o6755);
        assert_eq!(mode_after_write(&program, &member), 0o755);
        assert_eq!(mode_after_write(&inode(0o6745, false), &member), 0o2745);
        assert_eq!(mode_after_write(&inode(0o6745, false), &stranger), 0o745);
        assert_eq!(mode_after_write(&program, &root), 0o6755);
    }

    #[test]
    fn set_gid_directories_pass_on_their_group() {
        let (stranger, member) = (caller(10, 1, &[]), caller(10, 1, &[20]));
        let plain = inode(0o777, true);
        let set = inode(0o2777, true);
        assert_eq!(group_and_mode(&plain, &stranger, 0o2755, false), (1, 0o2755));
        assert_eq!(group_and_mode(&set, &stranger, 0o755, true), (20, 0o2755));
        assert_eq!(group_and_mode(&set, &stranger, 0o2755, false), (20, 0o755));
        assert_eq!(group_and_mode(&set, &stranger, 0o2745, false), (20, 0o2745));
        assert_eq!(group_and_mode(&set, &member, 0o2755, false), (20, 0o2755));
    }
}
