//! Every body comes back as it went, and no bytes from the network make a decoder panic.

use kiln_types::*;
use kiln_wire::*;
use proptest::prelude::*;
use std::fmt::Debug;

fn returns<B: Body + PartialEq + Debug>(body: B) {
    let bytes = body.encode();
    assert_eq!(B::decode(&bytes), Ok(body));
    for length in 0..bytes.len() {
        assert!(B::decode(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
}

fn version() -> impl Strategy<Value = ChunkVersion> {
    (any::<u64>(), any::<u64>())
        .prop_map(|(chain, counter)| ChunkVersion { chain: ChainVersion(chain), counter })
}

fn name() -> impl Strategy<Value = Name> {
    (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(chain, v, inode, index)| {
        Name {
            chain: ChainId(chain),
            chain_version: ChainVersion(v),
            chunk: ChunkId::file(TreeId(3), InodeId(inode), index),
        }
    })
}

fn update() -> impl Strategy<Value = Update> {
    let checksums = || proptest::collection::vec(any::<u32>(), 0..40);
    let change = prop_oneof![
        (any::<u32>(), checksums())
            .prop_map(|(offset, checksums)| Change::Write { offset, checksums }),
        any::<u32>().prop_map(|length| Change::Truncate { length }),
        Just(Change::Remove),
        any::<(u32, u32)>().prop_map(|(offset, length)| Change::Zero { offset, length }),
        checksums().prop_map(|checksums| Change::Replace { checksums }),
    ];
    let retry = proptest::option::of((any::<u128>(), any::<u32>(), any::<u64>()).prop_map(
        |(client, channel, sequence)| RetryKey {
            client: ClientId(client),
            channel: ChannelId(channel),
            sequence: Sequence(sequence),
        },
    ));
    (change, any::<u64>(), any::<u64>(), any::<u32>(), retry).prop_map(
        |(change, epoch, floor, chunk_bytes, retry)| Update {
            change,
            epoch: TruncateEpoch(epoch),
            floor: TruncateEpoch(floor),
            chunk_bytes,
            retry,
        },
    )
}

proptest! {
    #[test]
    fn bodies_return(
        name in name(), update in update(), version in version(), previous in version(),
        numbers in any::<(u32, u32, u64)>(), capability in proptest::collection::vec(any::<u8>(), 0..CAPABILITY_BYTES),
    ) {
        returns(name);
        returns(Read {
            name, offset: numbers.0, length: numbers.1, floor: TruncateEpoch(numbers.2),
            consistency: if numbers.0 % 2 == 0 { Consistency::Relaxed } else { Consistency::Linearizable },
            capability: capability.clone(),
        });
        returns(ReadDone { version, chunk_length: numbers.0, checksums: vec![numbers.1; 9] });
        let data = vec![4096..5000, 12_288..u32::MAX];
        returns(Extents { version, chunk_length: numbers.0, data });
        returns(Write { name, update: update.clone(), capability });
        returns(Forward { name, from: TargetId(numbers.2), version, previous, update });
        returns(WriteDone { version });
        returns(List { chain: name.chain, from: name.chunk, to: name.chunk, limit: 7 });
        let listed = Listed {
            chunk: name.chunk, version, epoch: TruncateEpoch(1), length: numbers.0, pending: true,
        };
        returns(Listing { chunks: vec![listed; 3], last: None });
        returns(Listing { chunks: vec![], last: Some(name.chunk) });
        let damaged = vec![Damaged { chunk: name.chunk, offset: numbers.1 }; 2];
        let (chunks, bytes) = (numbers.0, numbers.2);
        returns(Scrubbed { chunks, bytes, damaged: damaged.clone(), last: Some(name.chunk) });
        returns(Scrubbed { chunks, bytes, damaged, last: None });
        let held = Held {
            committed: version, pending: Some(previous).filter(|v| *v != ChunkVersion::NONE),
        };
        let key = RetryKey {
            client: ClientId(3), channel: ChannelId(numbers.0), sequence: Sequence(numbers.2),
        };
        let record = RetryRecord { key, chunk: name.chunk, version };
        for step in [
            FillStep::Start { walk: numbers.2 },
            FillStep::Versions { from: ChunkId::MIN, to: name.chunk.next(), limit: numbers.0 },
            FillStep::Retries(vec![record; 2]),
            FillStep::Done { walk: numbers.2 },
        ] {
            let (chain, chain_version) = (name.chain, name.chain_version);
            returns(Fill { chain, chain_version, from: TargetId(numbers.2), step });
        }
        returns(HeldPage { chunks: vec![(name.chunk, held); 2], last: Some(name.chunk) });
        for checksums in [None, Some(vec![numbers.0; 2])] {
            let epoch = TruncateEpoch(numbers.2);
            let copy = Copied { version, epoch, checksums };
            returns(copy.clone());
            returns(Install { name, from: TargetId(1), expected: held, copy: Some(copy) });
        }
        returns(Install { name, from: TargetId(1), expected: held, copy: None });
        returns(Goodbye { client: ClientId(9) });
        let disk = DiskSpace {
            disk: DiskId(4), capacity: numbers.2, used: 1, free: 2, backed: 3, beneath: None,
        };
        let on_file = DiskSpace { beneath: Some((5, 6)), ..disk };
        returns(Space { disks: vec![disk, on_file] });
    }

    #[test]
    fn garbage_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut with_version = vec![1, 0];
        with_version.extend(&bytes);
        for bytes in [bytes, with_version] {
            let _ = (Read::decode(&bytes), ReadDone::decode(&bytes), Write::decode(&bytes));
            let _ = (Forward::decode(&bytes), List::decode(&bytes), Listing::decode(&bytes));
            let _ = (Scrubbed::decode(&bytes), Fill::decode(&bytes));
            let _ = (HeldPage::decode(&bytes), Install::decode(&bytes), Copied::decode(&bytes));
            let _ = (Name::decode(&bytes), Space::decode(&bytes), Goodbye::decode(&bytes));
            let _ = Extents::decode(&bytes);
        }
    }
}
