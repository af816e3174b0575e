use super::*;
use crate::filesystem::OpenFlags;
use kiln_types::{Code, Encoder};
use proptest::prelude::*;

/// A message of a request, as the kernel would send it.
fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + body.len()).unwrap();
    let mut fields = Encoder::new();
    fields.u32(length).u32(opcode).u64(1 << 40 | 2).u64(99);
    fields.u32(1000).u32(1001).u32(4242).u32(0).raw(body);
    fields.finish()
}

fn decode(message: &[u8], payload: Option<&[u8]>) -> Result<Operation> {
    let all = message.len() + payload.map_or(0, <[u8]>::len);
    let header = Header::decode(message, all)?;
    operation(&header, message, payload.map(Bytes::copy_of))
}

/// What a request of `opcode` with these 64-bit fields and then these bytes asks for, as text.
fn asks(opcode: u32, words: &[u64], rest: &[u8]) -> String {
    let mut body = Encoder::new();
    for word in words {
        body.u64(*word);
    }
    format!("{:?}", decode(&message(opcode, &body.raw(rest).finish()), None).unwrap())
}

/// Two 32-bit fields in one.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn shown(operation: Operation) -> String {
    format!("{operation:?}")
}

const WRITER: OpenFlags = OpenFlags {
    read: false,
    write: true,
    truncate: true,
    direct: false,
    sync: false,
    append: false,
};

#[test]
fn names_come_with_what_stands_before_them() {
    let name = b"name".to_vec();
    let (other, parent) = (b"other".to_vec(), InodeId(5));
    assert_eq!(asks(1, &[], b"name\0"), shown(Operation::Lookup { name: name.clone() }));
    let named = |opcode, words: &[u64]| asks(opcode, words, b"name\0other\0");
    let to = (parent, other.clone());
    let renamed = |flags| shown(Operation::Rename { from: name.clone(), to: to.clone(), flags });
    assert_eq!(named(12, &[5]), renamed(0));
    assert_eq!(named(45, &[5, 2]), renamed(2));
    assert_eq!(named(6, &[]), shown(Operation::Symlink { name: name.clone(), target: other }));
    assert_eq!(named(13, &[5]), shown(Operation::Link { inode: parent, name: name.clone() }));
    let node = Operation::MakeNode { name: name.clone(), mode: 0o10_644, device: 7 };
    assert_eq!(named(8, &[pair(0o10_644, 7), 0]), shown(node));
    let dir = Operation::MakeDir { name: name.clone(), mode: 0o755 };
    assert_eq!(named(9, &[pair(0o40_755, 0o22)]), shown(dir));
    // O_WRONLY | O_CREAT | O_EXCL | O_TRUNC.
    let create = [pair(0o1301, 0o100_640), 0];
    let (exclusive, flags) = (true, WRITER);
    let created = Operation::Create { name: name.clone(), mode: 0o640, exclusive, flags };
    assert_eq!(named(35, &create), shown(created));
    assert_eq!(named(51, &create), shown(Operation::MakeTemporary { mode: 0o640, flags: WRITER }));
    let set = Operation::SetXattr { name, value: b"oth".to_vec(), how: SetXattr::Replace };
    assert_eq!(named(21, &[pair(3, 2)]), shown(set));
}

#[test]
fn attributes_to_set_are_those_that_are_named() {
    let all = [
        pair(0xfff ^ 1 << 8, 0),
        11,
        1 << 33,
        0,
        (-5_i64).cast_unsigned(),
        7,
        0,
        pair(400_000_000, 1),
        pair(0, 0o106_755),
        pair(0, 1),
        pair(2, 0),
    ];
    let change = SetAttr {
        mode: Some(0o6755),
        uid: Some(1),
        gid: Some(2),
        length: Some(1 << 33),
        atime: Some(SetTime::Now),
        mtime: Some(SetTime::At(Timestamp(7_000_000_001))),
        layout: None,
    };
    let through = Some(Handle(11));
    assert_eq!(asks(4, &all, &[]), shown(Operation::SetAttr { change, through }));
    let mut few = all;
    few[0] = 1 << 4;
    let atime = Some(SetTime::At(Timestamp(-4_600_000_000)));
    let change = SetAttr { atime, ..SetAttr::default() };
    assert_eq!(asks(4, &few, &[]), shown(Operation::SetAttr { change, through: None }));
}

#[test]
fn locks_tell_family_mode_and_range() {
    let lock = |opcode, end: u64, kind, flags| {
        asks(opcode, &[1, 77, 10, end, pair(kind, 4242), pair(flags, 0)], &[])
    };
    let (handle, owner) = (Handle(1), LockOwner(77));
    let wanted = |family, mode, last| {
        let range = LockRange { start: 10, last };
        Lock { family, mode, range, pid: 4242 }
    };
    let posix = wanted(LockFamily::Posix, LockMode::Shared, 19);
    let set = Operation::SetLock { handle, owner, lock: posix, waits: false };
    assert_eq!(lock(32, 19, 0, 0), shown(set));
    assert_eq!(lock(31, 19, 0, 0), shown(Operation::GetLock { handle, owner, lock: posix }));
    let flock = wanted(LockFamily::Flock, LockMode::Exclusive, u64::MAX);
    let set = Operation::SetLock { handle, owner, lock: flock, waits: true };
    assert_eq!(lock(33, LAST_BYTE, 1, 1), shown(set));
    let (family, range) = (LockFamily::Flock, flock.range);
    let unlock = Operation::Unlock { handle, owner, family, range };
    assert_eq!(lock(32, LAST_BYTE, 2, 1), shown(unlock));
    let released = asks(18, &[1, pair(0, 2), 77], &[]);
    assert_eq!(released, shown(Operation::Release { handle }));
}

#[test]
fn a_write_has_all_its_bytes_or_is_refused() {
    let head = |length| {
        let mut body = Encoder::new();
        body.u64(3).u64(4096).u32(length).u32(1 << 2).u64(0);
        body.u32(OFlags::APPEND.bits()).u32(0);
        message(16, &body.finish())
    };
    let mut whole = head(5);
    whole[..4].copy_from_slice(&85_u32.to_le_bytes());
    assert_eq!(whole.len(), WRITE_HEAD_BYTES);
    let Ok(Operation::Write { handle, at, bytes, drop_set_ids }) = decode(&whole, Some(b"hello"))
    else {
        panic!("not a write");
    };
    let end = WriteAt { offset: 4096, append: true };
    assert_eq!((handle, at, &*bytes, drop_set_ids), (Handle(3), end, &b"hello"[..], true));
    assert_eq!(decode(&head(5), None).unwrap_err().code(), Code::Corrupt);
    assert!(has_payload(&whole) && !has_payload(&message(15, &[])) && !has_payload(&whole[..7]));
}

proptest! {
    #[test]
    fn any_bytes_are_an_operation_or_an_error(
        opcode in 0_u32..60,
        body in proptest::collection::vec(any::<u8>(), 0..200),
        payload in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9)),
        cut in 0_usize..240,
    ) {
        let whole = message(opcode, &body);
        if let Ok(operation) = decode(&whole, payload.as_deref()) {
            prop_assert!(!operation.name().is_empty());
        }
        let cut = &whole[..cut.min(whole.len())];
        let _ = decode(cut, payload.as_deref());
        if let Ok(header) = Header::decode(&whole, whole.len()) {
            let _ = operation(&header, cut, None);
        }
    }
}
