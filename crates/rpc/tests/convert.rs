//! Values survive the way through messages, and bad messages are refused with the field's name.
#![allow(clippy::unwrap_used, reason = "tests")]

use kiln_rpc::convert::{id_bytes, id_from, required};
use kiln_rpc::{Origin, v1};
use kiln_types::*;
use prost::Message;
use std::collections::BTreeMap;

fn layout() -> Layout {
    Layout {
        table: ChainTableId(1),
        table_version: 3,
        chunk_bytes: CHUNK_BYTES_DEFAULT,
        stripe: 8,
        base: 5,
        seed: u64::MAX,
        redundancy: Redundancy::Replicated,
    }
}

fn attr() -> Attr {
    Attr {
        inode: InodeId(77),
        kind: FileKind::File,
        mode: 0o4755,
        uid: 1000,
        gid: 100,
        links: 2,
        length: 1 << 40,
        dense_end: 1 << 39,
        device: 0x0012_3456,
        atime: Timestamp(-1),
        mtime: Timestamp(2),
        ctime: Timestamp(3),
        btime: Timestamp(i64::MIN),
        epoch: TruncateEpoch(9),
        floors: vec![(1, TruncateEpoch(4)), (5, TruncateEpoch(9))],
        layout: Some(layout()),
    }
}

#[test]
fn items_of_the_trash_come_back() {
    for directory in [None, Some(b"/a/b".to_vec())] {
        let item = TrashItem {
            attr: attr(),
            removed: Timestamp(-5),
            expires: Timestamp(i64::MAX),
            by: 1000,
            name: b"x\xff".to_vec(),
            parent: InodeId(9),
            directory,
        };
        let message = v1::TrashItem::from(&item);
        let bytes = message.encode_to_vec();
        let back = v1::TrashItem::decode(&bytes[..]).unwrap().try_into();
        assert_eq!(back, Ok(item.clone()));
        let paths = [Some(b"/a/b/x\xff".to_vec()), None];
        assert!(paths.contains(&item.path()));
    }
    let without = TrashItem::try_from(v1::TrashItem::default());
    assert!(without.unwrap_err().message().contains("attr"));
    let usage = Usage { bytes: 7, inodes: 2 };
    let trash = Trash { on: true, keep: std::time::Duration::from_millis(1500), usage };
    assert_eq!(Trash::from(v1::Trash::from(trash)), trash);
}

fn routing() -> RoutingInfo {
    let node = Node {
        id: NodeId(101),
        kind: ServiceKind::Storage,
        address: "127.0.0.1:9000".into(),
        incarnation: Incarnation(5),
        alive: true,
        tags: BTreeMap::from([("host".into(), "a".into())]),
    };
    let target = Target {
        id: TargetId(7),
        chain: ChainId(1),
        node: node.id,
        disk: DiskId(u128::MAX),
        local: LocalState::UpToDate,
    };
    let chain = Chain {
        id: ChainId(1),
        version: ChainVersion(4),
        members: vec![Member { target: target.id, state: PublicState::LastServing }],
        min_serving: 1,
        replicas: 3,
    };
    let table = ChainTable { id: ChainTableId(1), version: 1, chains: vec![chain.id] };
    let credential = CredentialRecord {
        name: "admin".into(),
        key: KeyId(1),
        revoked: true,
        limits: CredentialLimits { uids: Some(vec![]), ..CredentialLimits::default() },
    };
    RoutingInfo {
        cluster: ClusterId(0xabcd),
        version: RoutingVersion(12),
        nodes: BTreeMap::from([(node.id, node)]),
        targets: BTreeMap::from([(target.id, target)]),
        chains: BTreeMap::from([(chain.id, chain)]),
        tables: BTreeMap::from([((table.id, table.version), table)]),
        credentials: vec![credential],
        settings: BTreeMap::from([("storage.scrub.rate".into(), "1MiB".into())]),
    }
}

#[test]
fn values_come_back_from_bytes() {
    let bytes = v1::Attr::from(&attr()).encode_to_vec();
    assert_eq!(Attr::try_from(v1::Attr::decode(&bytes[..]).unwrap()).unwrap(), attr());

    let bytes = v1::RoutingInfo::from(&routing()).encode_to_vec();
    let back = RoutingInfo::try_from(v1::RoutingInfo::decode(&bytes[..]).unwrap()).unwrap();
    assert_eq!(back, routing());
    let mut change = routing().since(&RoutingInfo::default());
    change.gone_nodes.push(NodeId(4));
    let bytes = v1::RoutingChange::from(&change).encode_to_vec();
    let back = RoutingChange::try_from(v1::RoutingChange::decode(&bytes[..]).unwrap()).unwrap();
    assert_eq!(back, change);

    let caller = Caller { uid: 1, gid: 2, groups: vec![3, 4] };
    let origin = Origin { caller, client: ClientId(8), request: RequestId(9) };
    assert_eq!(Origin::try_from(v1::Origin::from(&origin)).unwrap(), origin);

    let credential = Credential {
        cluster: ClusterId(1),
        name: "n".into(),
        key: KeyId(2),
        secret: Secret([7; 32]),
    };
    assert_eq!(Credential::try_from(v1::CredentialSecret::from(&credential)).unwrap(), credential);
}

#[test]
fn bad_messages_are_refused() {
    let good = v1::Attr::from(&attr());
    let wrong = [
        v1::Attr { kind: 0, ..good.clone() },
        v1::Attr { kind: 257, ..good.clone() },
        v1::Attr { mode: 0o10000, ..good.clone() },
        v1::Attr { floors: vec![good.floors[1], good.floors[0]], ..good.clone() },
        v1::Attr { layout: Some(v1::Layout { stripe: 0, ..good.layout.unwrap() }), ..good.clone() },
    ];
    for message in wrong {
        assert_eq!(Attr::try_from(message).unwrap_err().code(), Code::Invalid);
    }
    assert!(id_from::<DiskId>(&[1, 2, 3]).unwrap_err().to_string().contains("disk id"));
    assert_eq!(id_from::<DiskId>(&id_bytes(DiskId(3))).unwrap(), DiskId(3));
    let missing = required::<v1::Caller, Caller>(None, "caller").unwrap_err();
    assert!(missing.to_string().contains("'caller'"));
    let limits = v1::CredentialLimits { subtree: "home".into(), ..Default::default() };
    assert!(CredentialLimits::try_from(limits).is_err());
}
