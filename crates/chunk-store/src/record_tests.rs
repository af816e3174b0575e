//! Round trips, truncations and flipped bits of every record.

use super::*;
use crate::group::tests::any_group;
use kiln_types::{InodeId, TreeId};
use proptest::prelude::*;

fn any_version() -> impl Strategy<Value = ChunkVersion> {
    (any::<u64>(), any::<u64>())
        .prop_map(|(chain, counter)| ChunkVersion { chain: ChainVersion(chain), counter })
}

fn any_key() -> impl Strategy<Value = Key> {
    (any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(target, a, b, file)| Key {
        target: TargetId(target),
        chunk: if file {
            ChunkId::file(TreeId(a as u32), InodeId(a), b)
        } else {
            ChunkId::kv_block(a as u32, b as u32, u128::from(a) << 64 | u128::from(b))
        },
    })
}

fn any_retry() -> impl Strategy<Value = RetryKey> {
    (any::<u128>(), any::<u32>(), any::<u64>()).prop_map(|(client, channel, sequence)| RetryKey {
        client: ClientId(client),
        channel: ChannelId(channel),
        sequence: Sequence(sequence),
    })
}

fn any_parts() -> impl Strategy<Value = Vec<Part>> {
    let part = prop_oneof![
        Just(Part::Hole),
        (1u64..1 << 40, 1usize..100)
            .prop_map(|(block, units)| Part::Stored(Position::new(block * 4096, units * 32))),
    ];
    prop_oneof![
        any_group().prop_map(|group| vec![Part::Inline(Arc::new(group))]),
        proptest::collection::vec(part, 0..=64),
    ]
}

fn any_put() -> impl Strategy<Value = Record> {
    let head = (
        (any_version(), any_version(), any::<u64>(), 0..=CHUNK_BYTES_MAX),
        (any::<bool>(), any::<i64>(), proptest::option::of(any_retry()), any_parts()),
    )
        .prop_map(|((version, previous, epoch, length), (removed, time, retry, parts))| Head {
            version,
            previous,
            epoch: TruncateEpoch(epoch),
            length,
            removed,
            time: Timestamp(time),
            retry,
            parts,
        });
    let flags = (any::<bool>(), any::<bool>(), any::<(u16, u16)>())
        .prop_map(|(committed, remembers, fresh)| Flags { committed, remembers, fresh });
    (any_key(), head, flags).prop_map(|(key, head, flags)| Record::Put { key, head, flags })
}

fn any_target() -> impl Strategy<Value = Record> {
    let state = proptest::collection::vec(any::<u8>(), 0..=crate::STATE_BYTES_MAX);
    (any::<u64>(), any::<u64>(), any_version(), state, any::<bool>()).prop_map(
        |(target, chain, version_max, state, damaged)| {
            Record::Target(TargetBody {
                target: TargetId(target),
                chain: ChainId(chain),
                version_max,
                state,
                damaged,
            })
        },
    )
}

pub(crate) fn any_record() -> impl Strategy<Value = Record> {
    prop_oneof![
        4 => any_put(),
        2 => (any_key(), any::<u16>(), any_group())
            .prop_map(|(key, index, group)| Record::Part { key, index, group: Arc::new(group) }),
        1 => (any_key(), any_version()).prop_map(|(key, version)| Record::Commit { key, version }),
        1 => (any_key(), any_version()).prop_map(|(key, version)| Record::Discard { key, version }),
        1 => (any_key(), any_retry(), any_version())
            .prop_map(|(key, retry, version)| Record::Retry { key, retry, version }),
        1 => any::<u128>().prop_map(|client| Record::Forget { client: ClientId(client) }),
        1 => any_target(),
        1 => any::<u64>().prop_map(|t| Record::RemoveTarget { target: TargetId(t) }),
        1 => any::<u64>().prop_map(|t| Record::ForgetRetries { target: TargetId(t) }),
        1 => any_key().prop_map(|key| Record::Drop { key }),
    ]
}

proptest! {
    #[test]
    fn records_come_back(record in any_record()) {
        let bytes = record.encode();
        prop_assert!(bytes.len().is_multiple_of(RECORD_ALIGN));
        prop_assert!(bytes.len() <= BLOCK_BYTES - crate::batch::HEADER_BYTES);
        prop_assert_eq!(read_record(&bytes).unwrap(), Some((record, bytes.len())));
    }

    #[test]
    fn damage_is_noticed(
        record in any_record(),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let bytes = record.encode();
        let length = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
        let cut = at.index(length);
        prop_assert!(read_record(&bytes[..cut]).is_err() || cut < HEADER_BYTES);
        let mut flipped = bytes;
        flipped[cut] ^= 1 << bit;
        prop_assert!(!matches!(read_record(&flipped), Ok(Some((read, _))) if read == record));
        prop_assert!(flipped[4] == 0 || read_record(&flipped).is_err());
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let _ = read_record(&bytes);
        for kind in 0..12 {
            let _ = Record::decode_body(kind, &bytes);
        }
    }
}
