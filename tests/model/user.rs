//! Doing something as another user, in this thread only.

use rustix::process::{Gid, Uid, geteuid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// A user: uid, gid, supplementary groups.
pub(crate) type User = (u32, u32, &'static [u32]);

/// Who does what. The third one is in the second one's group, the fourth knows nobody.
pub(crate) const USERS: [User; 4] =
    [(0, 0, &[]), (61_001, 61_001, &[]), (61_002, 61_002, &[61_001]), (61_003, 61_003, &[])];

/// Whether this process may become another user.
pub(crate) fn may_switch() -> bool {
    geteuid().is_root()
}

/// Does `action` as one of [`USERS`]; number 0 is whoever runs the test.
pub(crate) fn as_user<T>(number: usize, action: impl FnOnce() -> T) -> T {
    if number == 0 {
        return action();
    }
    let (uid, gid, groups) = USERS[number];
    set_groups(gid, groups);
    set_thread_res_uid(Uid::from_raw(uid), Uid::from_raw(uid), None::<Uid>).expect("root may");
    let done = action();
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, None::<Uid>).expect("root is the saved user");
    set_groups(0, &[]);
    done
}

fn set_groups(gid: u32, groups: &[u32]) {
    let groups: Vec<_> = groups.iter().map(|&group| Gid::from_raw(group)).collect();
    set_thread_groups(&groups).expect("root may");
    set_thread_res_gid(Gid::from_raw(gid), Gid::from_raw(gid), None::<Gid>).expect("root may");
}
