use super::*;

#[test]
fn a_writer_gets_what_it_asks_for_and_steps_while_there_is_room() {
    let mib = 1 << 20;
    // All is free: a step beyond what is wanted.
    assert_eq!(grant(0, 1 << 40, 10, 0), Some(10 + STEP_MAX));
    assert_eq!(grant(5 * mib, 80 * mib, 0, 0), Some(15 * mib));
    // Never beyond the limit, to the last byte up to it.
    assert_eq!(grant(mib, 100, mib + 100, 0), Some(mib + 100));
    assert_eq!(grant(mib, 100, mib + 101, 0), None);
    assert_eq!(grant(mib, 0, mib, 0), Some(mib));
    // A promise counts, whatever others have taken since.
    assert_eq!(grant(mib, 0, 0, 3 * mib), Some(3 * mib));
    assert_eq!(grant(mib, 0, 3 * mib, 3 * mib), Some(3 * mib));
    assert_eq!(grant(mib, 0, 3 * mib + 1, 3 * mib), None);
    assert_eq!(grant(u64::MAX, u64::MAX, 0, 0), Some(u64::MAX));
}

#[test]
fn only_what_grows_is_refused() {
    let limits = QuotaLimits { bytes: Some(100), inodes: Some(3) };
    let used = Usage { bytes: 100, inodes: 5 };
    let change = |bytes, inodes| {
        let change = Delta { bytes, inodes };
        check(Account::User(1), limits, used, change, change).map_err(|error| error.code())
    };
    assert_eq!(change(0, -1), Ok(()));
    assert_eq!(change(-1, 0), Ok(()));
    assert_eq!(change(1, -1), Err(Code::QuotaExceeded));
    assert_eq!(change(0, 1), Err(Code::QuotaExceeded));
    let granted = Delta { bytes: 50, inodes: 0 };
    assert_eq!(check(Account::User(1), limits, used, granted, Delta::default()), Ok(()));
}
