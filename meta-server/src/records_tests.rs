use super::*;
use crate::SessionId;
use kiln_types::{Attr, Code, Error, QuotaLimits, RequestId};
use proptest::prelude::*;
use std::time::Duration;

fn layouts() -> impl Strategy<Value = Layout> {
    (16u32..=26, 1u32..=65_536, any::<u32>(), any::<u64>()).prop_map(
        |(bits, stripe, base, seed)| Layout {
            table: 1.into(),
            table_version: seed ^ 5,
            chunk_bytes: 1 << bits,
            stripe,
            base,
            seed,
            redundancy: Redundancy::Replicated,
        },
    )
}

fn floors() -> impl Strategy<Value = Vec<(u64, TruncateEpoch)>> {
    proptest::collection::vec((1u64..1000, 1u64..9), 0..5).prop_map(|steps| {
        let mut last = (0, 0);
        let mut next = |(first, epoch)| {
            last = (last.0 + first, last.1 + epoch);
            (last.0, TruncateEpoch(last.1))
        };
        steps.into_iter().map(&mut next).collect()
    })
}

fn bodies() -> impl Strategy<Value = Body> {
    let cut = proptest::option::of((any::<u64>(), any::<u32>()));
    let file = (any::<[u64; 3]>(), floors(), cut, layouts(), any::<(i64, bool)>());
    prop_oneof![
        file.prop_map(|([length, epoch, dense_end], floors, cut, layout, (left, nameless))| {
            Body::File(File {
                length,
                epoch: TruncateEpoch(epoch),
                floors,
                cut: cut.map(|(index, length)| Cut { index, length }),
                layout,
                writer_left: Timestamp(left),
                dense_end,
                nameless,
            })
        }),
        (any::<i64>(), any::<u32>(), any::<u32>()).prop_map(|(time, chunk_bytes, stripe)| {
            let wish = LayoutWish { chunk_bytes, stripe };
            Body::Directory(Directory { mtime_set: Timestamp(time), wish })
        }),
        proptest::collection::vec(any::<u8>(), 0..100).prop_map(|target| Body::Symlink { target }),
        (4u8..=7, any::<u32>()).prop_map(|(kind, device)| {
            let kind = FileKind::from_number(kind).unwrap_or(FileKind::Fifo);
            Body::Special(Special { kind, device })
        }),
    ]
}

fn inodes() -> impl Strategy<Value = Inode> {
    (any::<[u64; 2]>(), 0u32..=0o7777, any::<[u32; 3]>(), any::<[i64; 4]>(), bodies()).prop_map(
        |(ids, mode, numbers, times, body)| Inode {
            id: InodeId(ids[0]),
            mode,
            uid: numbers[0],
            gid: numbers[1],
            parent: InodeId(ids[1]),
            links: numbers[2],
            atime: Timestamp(times[0]),
            mtime: Timestamp(times[1]),
            ctime: Timestamp(times[2]),
            btime: Timestamp(times[3]),
            body,
            quota: InodeId(ids[0] ^ ids[1]),
            counted: true,
        },
    )
}

/// The record comes back; a changed byte gives an error or another record that encodes to the
/// changed bytes, but for an earlier version: nothing is guessed.
fn check<R: Record + PartialEq + std::fmt::Debug>(record: &R, at: usize, flip: u8) {
    let mut bytes = record.encode();
    assert_eq!(R::decode(&bytes).as_ref(), Ok(record));
    let at = at % bytes.len();
    assert!(R::decode(&bytes[..at]).is_err());
    bytes[at] ^= flip;
    let version = u16::from_le_bytes([bytes[2], bytes[3]]);
    match R::decode(&bytes) {
        Ok(other) if version == R::VERSION => {
            assert_eq!(other.encode(), bytes);
            assert_ne!(&other, record);
        }
        Ok(_) => assert!(version < R::VERSION),
        Err(_) => {}
    }
    bytes[at] ^= flip;
    bytes.push(0);
    assert!(R::decode(&bytes).is_err());
}

/// What earlier versions wrote is read.
fn check_earlier_versions(inode: &Inode) {
    let mut inode = inode.clone();
    let mut body = Encoder::new();
    inode.write(&mut body);
    let mut body = body.finish();
    for version in (1..Inode::VERSION).rev() {
        if version == 4 {
            body.truncate(body.len() - 8);
            (inode.quota, inode.counted) = (InodeId(0), false);
        } else if let Body::File(file) = &mut inode.body {
            body.truncate(body.len() - if version == 3 { 1 } else { 8 });
            match version {
                3 => file.nameless = false,
                2 => file.dense_end = 0,
                _ => file.writer_left = inode.ctime,
            }
        }
        let mut record = Encoder::new();
        record.u16(Inode::TYPE).u16(version).bytes(&body);
        assert_eq!(Inode::decode(&record.finish()).as_ref(), Ok(&inode));
    }
}

proptest! {
    #[test]
    fn inodes_and_slots(inode in inodes(), name: Vec<u8>, more: bool, at: usize, flip in 1u8..) {
        check(&inode, at, flip);
        check_earlier_versions(&inode);
        let name = name[..name.len().min(255)].to_vec();
        let entry = Dentry { name, inode: inode.id, kind: inode.kind() };
        check(&Slot { more, entry: Some(entry) }, at, flip);
        check(&Slot { more, entry: None }, at, flip);
    }

    #[test]
    fn small_records(layout in layouts(), n: [u64; 4], flag: bool, at: usize, flip in 1u8..) {
        check(&Format { hash_key: [n[0], n[1]] }, at, flip);
        check(&Handle { inode: InodeId(n[0]), read: flag, write: !flag }, at, flip);
        check(&Client::Active { credential: format!("host-{}", n[1]), watches: flag }, at, flip);
        check(&Client::Retired { at: Timestamp(n[0] as i64), goodbye: flag }, at, flip);
        let writable_until = Timestamp(n[3] as i64);
        check(&Garbage { layout, first: n[1], end: n[2], writable_until }, at, flip);
        check(&Xattr(vec![7; n[0] as usize % 300]), at, flip);
        check(&QuotaLimits { bytes: Some(n[0]), inodes: flag.then_some(n[1]) }, at, flip);
        check(&Recount { quota: InodeId(n[0]), after: n[1] }, at, flip);
        check(&Trash { on: flag, keep: Duration::from_nanos(n[2]) }, at, flip);
        let name = vec![7; n[0] as usize % 256];
        check(&Item { directory: InodeId(n[1]), name, by: n[2] as u32 }, at, flip);
    }

    #[test]
    fn replies(floors in floors(), layout in layouts(), n: [u64; 4], flag: bool, at: usize) {
        let attr = Attr {
            inode: InodeId(n[0]),
            kind: FileKind::File,
            mode: 0o644,
            uid: n[1] as u32,
            gid: n[2] as u32,
            links: 1,
            length: n[3],
            dense_end: n[2],
            device: n[1] as u32,
            atime: Timestamp(1),
            mtime: Timestamp(-2),
            ctime: Timestamp(3),
            btime: Timestamp(4),
            epoch: TruncateEpoch(n[1]),
            floors,
            layout: flag.then_some(layout),
        };
        let session = flag.then_some(SessionId(u128::from(n[2])));
        let answer = Answer { attr: Some(attr), session, parts: Vec::new() };
        let request = RequestId(u128::from(n[3]));
        let refused = Error::new(Code::Exists, "it exists");
        let parts = vec![Ok(answer.clone()), Err(refused.clone()), Err(refused.with_hint("so"))];
        check(&Reply { request, answer }, at, 1 + n[0] as u8 % 255);
        let answer = Answer { parts, ..Answer::default() };
        check(&Reply { request, answer }, at, 1 + n[0] as u8 % 255);
        check(&Reply { request, answer: Answer::default() }, at, 1 + n[0] as u8 % 255);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(kind in 1u16..14, version in 0u16..6, body: Vec<u8>) {
        let mut record = Encoder::new();
        let bytes = record.u16(kind).u16(version).bytes(&body).finish();
        let _ = (Inode::decode(&bytes), Slot::decode(&bytes), Reply::decode(&bytes));
        let _ = (Garbage::decode(&bytes), Client::decode(&bytes), Xattr::decode(&bytes));
        let _ = (QuotaLimits::decode(&bytes), Recount::decode(&bytes));
        let _ = (Trash::decode(&bytes), Item::decode(&bytes));
    }

    #[test]
    fn marks_sort_as_times(a: i64, b: i64) {
        let (a, b) = (Timestamp(a), Timestamp(b));
        prop_assert_eq!(a.cmp(&b), time_mark(a).cmp(&time_mark(b)));
        prop_assert_eq!(marked_time(time_mark(a)), a);
    }
}
