//! Messages to values and back. What arrives is checked here, once: a value of `kiln_types` is
//! valid.
//!
//! From a value: `v1::X::from(&value)`. To a value: `X::try_from(message)`, whose error is
//! `Invalid` and names the field. Fields that have to be there go through [`required`], wide ids
//! through [`id_from`] and [`id_bytes`].

use crate::v1;
use bytes::Bytes;
use kiln_types::{
    Attr, Caller, Chain, ChainId, ChainTable, ChainTableId, ChainVersion, ClientId, ClusterId,
    Credential, CredentialLimits, CredentialRecord, DiskId, Error, FileKind, Incarnation, InodeId,
    KeyId, Layout, LocalState, Lock, LockFamily, LockMode, LockRange, Member, Node, NodeId,
    PublicState, Redundancy, RequestId, Result, RoutingInfo, RoutingVersion, Secret, ServiceKind,
    Target, TargetId, Timestamp, TruncateEpoch,
};

/// The most supplementary groups that a caller may have: the kernel's limit.
pub const GROUPS_MAX: usize = 65_536;

/// A 128-bit id that travels as 16 bytes, big-endian.
pub trait WideId: Sized {
    /// What errors call it.
    const NAME: &'static str;
    /// Reads 16 bytes.
    fn read(bytes: &[u8]) -> Option<Self>;
    /// Writes 16 bytes.
    fn write(&self) -> [u8; 16];
}

macro_rules! wide_ids {
    ($($type:ty = $name:literal),*) => {
        $(impl WideId for $type {
            const NAME: &'static str = $name;

            fn read(bytes: &[u8]) -> Option<Self> {
                Self::from_slice(bytes)
            }

            fn write(&self) -> [u8; 16] {
                self.to_bytes()
            }
        })*
    };
}

wide_ids!(
    ClusterId = "cluster id",
    DiskId = "disk id",
    ClientId = "client id",
    Incarnation = "incarnation",
    RequestId = "request id"
);

/// Reads a wide id from a message's field.
///
/// # Errors
/// `Invalid` when it is not 16 bytes long.
pub fn id_from<T: WideId>(bytes: &[u8]) -> Result<T> {
    T::read(bytes)
        .ok_or_else(|| Error::invalid(format!("{} of {} bytes, 16 expected", T::NAME, bytes.len())))
}

/// A wide id as a message's field.
pub fn id_bytes(id: impl WideId) -> Bytes {
    Bytes::copy_from_slice(&id.write())
}

/// Takes a field that has to be there and converts it.
///
/// # Errors
/// `Invalid` when it is missing or wrong; `name` is the field's.
pub fn required<M, T: TryFrom<M, Error = Error>>(field: Option<M>, name: &str) -> Result<T> {
    let message = field.ok_or_else(|| Error::invalid(format!("field '{name}' is missing")))?;
    T::try_from(message).map_err(|error| error.while_doing(format_args!("field '{name}'")))
}

fn enumerated<T>(number: u32, name: &str, from: impl Fn(u8) -> Option<T>) -> Result<T> {
    u8::try_from(number)
        .ok()
        .and_then(from)
        .ok_or_else(|| Error::invalid(format!("{name} {number} is not known")))
}

/// Who asks for a change, and under which id, so that it is applied once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The user as whom.
    pub caller: Caller,
    /// The client incarnation.
    pub client: ClientId,
    /// The request; its retries carry the same.
    pub request: RequestId,
}

impl From<&Origin> for v1::Origin {
    fn from(origin: &Origin) -> Self {
        Self {
            caller: Some(v1::Caller::from(&origin.caller)),
            client: id_bytes(origin.client),
            request: id_bytes(origin.request),
        }
    }
}

impl TryFrom<v1::Origin> for Origin {
    type Error = Error;

    fn try_from(message: v1::Origin) -> Result<Self> {
        Ok(Self {
            caller: required(message.caller, "caller")?,
            client: id_from(&message.client)?,
            request: id_from(&message.request)?,
        })
    }
}

impl From<&Lock> for v1::Lock {
    fn from(lock: &Lock) -> Self {
        let Lock { family, mode, range, pid } = *lock;
        let (family, mode) = (family as u32, mode as u32);
        Self { family, mode, start: range.start, last: range.last, pid }
    }
}

impl TryFrom<v1::Lock> for Lock {
    type Error = Error;

    fn try_from(message: v1::Lock) -> Result<Self> {
        let range = LockRange { start: message.start, last: message.last };
        if range.start > range.last {
            return Err(Error::invalid("a lock that ends before it begins"));
        }
        Ok(Self {
            family: enumerated(message.family, "lock family", LockFamily::from_number)?,
            mode: enumerated(message.mode, "lock mode", LockMode::from_number)?,
            range,
            pid: message.pid,
        })
    }
}

impl From<&Caller> for v1::Caller {
    fn from(caller: &Caller) -> Self {
        Self { uid: caller.uid, gid: caller.gid, groups: caller.groups.clone() }
    }
}

impl TryFrom<v1::Caller> for Caller {
    type Error = Error;

    fn try_from(message: v1::Caller) -> Result<Self> {
        if message.groups.len() > GROUPS_MAX {
            return Err(Error::invalid(format!("a caller with {} groups", message.groups.len())));
        }
        Ok(Self { uid: message.uid, gid: message.gid, groups: message.groups })
    }
}

impl From<&Layout> for v1::Layout {
    fn from(layout: &Layout) -> Self {
        Self {
            table: layout.table.0,
            table_version: layout.table_version,
            chunk_bytes: layout.chunk_bytes,
            stripe: layout.stripe,
            base: layout.base,
            seed: layout.seed,
            redundancy: layout.redundancy as u32,
        }
    }
}

impl TryFrom<v1::Layout> for Layout {
    type Error = Error;

    fn try_from(message: v1::Layout) -> Result<Self> {
        let redundancy = enumerated(message.redundancy, "redundancy", |number| {
            (number == Redundancy::Replicated as u8).then_some(Redundancy::Replicated)
        })?;
        let layout = Self {
            table: ChainTableId(message.table),
            table_version: message.table_version,
            chunk_bytes: message.chunk_bytes,
            stripe: message.stripe,
            base: message.base,
            seed: message.seed,
            redundancy,
        };
        layout.validate()?;
        Ok(layout)
    }
}

/// A file's floors as a message has them.
pub fn floors(floors: &[(u64, TruncateEpoch)]) -> Vec<v1::EpochFloor> {
    let floor = |&(first_chunk, epoch): &(u64, TruncateEpoch)| v1::EpochFloor {
        first_chunk,
        epoch: epoch.0,
    };
    floors.iter().map(floor).collect()
}

/// A file's floors from a message.
///
/// # Errors
/// `Invalid` when they do not grow.
pub fn floors_from(message: &[v1::EpochFloor]) -> Result<Vec<(u64, TruncateEpoch)>> {
    let floors: Vec<_> = message.iter().map(|f| (f.first_chunk, TruncateEpoch(f.epoch))).collect();
    if !floors.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1) {
        return Err(Error::invalid("epoch floors do not grow"));
    }
    Ok(floors)
}

impl From<&Attr> for v1::Attr {
    fn from(attr: &Attr) -> Self {
        Self {
            inode: attr.inode.0,
            kind: attr.kind as u32,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            links: attr.links,
            length: attr.length,
            atime_ns: attr.atime.0,
            mtime_ns: attr.mtime.0,
            ctime_ns: attr.ctime.0,
            btime_ns: attr.btime.0,
            epoch: attr.epoch.0,
            floors: floors(&attr.floors),
            layout: attr.layout.as_ref().map(v1::Layout::from),
            dense_end: attr.dense_end,
            device: attr.device,
        }
    }
}

impl TryFrom<v1::Attr> for Attr {
    type Error = Error;

    fn try_from(message: v1::Attr) -> Result<Self> {
        let floors = floors_from(&message.floors)?;
        if message.mode > kiln_types::MODE_PERMISSIONS {
            return Err(Error::invalid(format!("mode {:o} is not a mode", message.mode)));
        }
        Ok(Self {
            inode: InodeId(message.inode),
            kind: file_kind(message.kind)?,
            mode: message.mode,
            uid: message.uid,
            gid: message.gid,
            links: message.links,
            length: message.length,
            dense_end: message.dense_end,
            device: message.device,
            atime: Timestamp(message.atime_ns),
            mtime: Timestamp(message.mtime_ns),
            ctime: Timestamp(message.ctime_ns),
            btime: Timestamp(message.btime_ns),
            epoch: TruncateEpoch(message.epoch),
            floors,
            layout: message.layout.map(Layout::try_from).transpose()?,
        })
    }
}

impl From<&Node> for v1::NodeInfo {
    fn from(node: &Node) -> Self {
        Self {
            id: node.id.0,
            kind: node.kind as u32,
            address: node.address.clone(),
            incarnation: id_bytes(node.incarnation),
            alive: node.alive,
            tags: node.tags.clone().into_iter().collect(),
        }
    }
}

impl TryFrom<v1::NodeInfo> for Node {
    type Error = Error;

    fn try_from(message: v1::NodeInfo) -> Result<Self> {
        Ok(Self {
            id: NodeId(message.id),
            kind: service_kind(message.kind)?,
            address: message.address,
            incarnation: id_from(&message.incarnation)?,
            alive: message.alive,
            tags: message.tags.into_iter().collect(),
        })
    }
}

/// Reads a file kind from a message's field.
///
/// # Errors
/// `Invalid` for a number that is none.
pub fn file_kind(number: u32) -> Result<FileKind> {
    enumerated(number, "file kind", FileKind::from_number)
}

/// Reads a service kind from a message's field.
///
/// # Errors
/// `Invalid` when the number is not known.
pub fn service_kind(number: u32) -> Result<ServiceKind> {
    enumerated(number, "service kind", ServiceKind::from_number)
}

/// Reads a local state from a message's field.
///
/// # Errors
/// `Invalid` when the number is not known.
pub fn local_state(number: u32) -> Result<LocalState> {
    enumerated(number, "local state", LocalState::from_number)
}

/// Reads a public state from a message's field.
///
/// # Errors
/// `Invalid` when the number is not known.
pub fn public_state(number: u32) -> Result<PublicState> {
    enumerated(number, "public state", PublicState::from_number)
}

impl From<&Target> for v1::TargetInfo {
    fn from(target: &Target) -> Self {
        Self {
            id: target.id.0,
            chain: target.chain.0,
            node: target.node.0,
            disk: id_bytes(target.disk),
            local_state: target.local as u32,
        }
    }
}

impl TryFrom<v1::TargetInfo> for Target {
    type Error = Error;

    fn try_from(message: v1::TargetInfo) -> Result<Self> {
        Ok(Self {
            id: TargetId(message.id),
            chain: ChainId(message.chain),
            node: NodeId(message.node),
            disk: id_from(&message.disk)?,
            local: local_state(message.local_state)?,
        })
    }
}

impl From<&Chain> for v1::ChainInfo {
    fn from(chain: &Chain) -> Self {
        let member = |m: &Member| v1::MemberInfo { target: m.target.0, state: m.state as u32 };
        Self {
            id: chain.id.0,
            version: chain.version.0,
            members: chain.members.iter().map(member).collect(),
            min_serving: chain.min_serving,
            replicas: chain.replicas,
        }
    }
}

impl TryFrom<v1::ChainInfo> for Chain {
    type Error = Error;

    fn try_from(message: v1::ChainInfo) -> Result<Self> {
        let member = |m: &v1::MemberInfo| -> Result<Member> {
            Ok(Member { target: TargetId(m.target), state: public_state(m.state)? })
        };
        let members = message.members.iter().map(member).collect::<Result<Vec<_>>>()?;
        // Before members could change, all of them were to serve.
        let replicas = match message.replicas {
            0 => members.len() as u32,
            some => some,
        };
        Ok(Self {
            id: ChainId(message.id),
            version: ChainVersion(message.version),
            members,
            min_serving: message.min_serving,
            replicas,
        })
    }
}

impl From<&ChainTable> for v1::ChainTableInfo {
    fn from(table: &ChainTable) -> Self {
        Self {
            id: table.id.0,
            version: table.version,
            chains: table.chains.iter().map(|chain| chain.0).collect(),
        }
    }
}

impl From<v1::ChainTableInfo> for ChainTable {
    fn from(message: v1::ChainTableInfo) -> Self {
        Self {
            id: ChainTableId(message.id),
            version: message.version,
            chains: message.chains.into_iter().map(ChainId).collect(),
        }
    }
}

impl From<&CredentialLimits> for v1::CredentialLimits {
    fn from(limits: &CredentialLimits) -> Self {
        Self {
            any_uid: limits.uids.is_none(),
            uids: limits.uids.clone().unwrap_or_default(),
            root: limits.root,
            subtree: limits.subtree.clone(),
            operator_rights: limits.operator,
        }
    }
}

impl TryFrom<v1::CredentialLimits> for CredentialLimits {
    type Error = Error;

    fn try_from(message: v1::CredentialLimits) -> Result<Self> {
        if !message.subtree.starts_with('/') {
            return Err(Error::invalid(format!(
                "subtree '{}' is not an absolute path",
                message.subtree
            )));
        }
        if message.any_uid && !message.uids.is_empty() {
            return Err(Error::invalid("either any user id or a list of them, not both"));
        }
        Ok(Self {
            uids: (!message.any_uid).then_some(message.uids),
            root: message.root,
            subtree: message.subtree,
            operator: message.operator_rights,
        })
    }
}

impl From<&CredentialRecord> for v1::CredentialInfo {
    fn from(record: &CredentialRecord) -> Self {
        Self {
            name: record.name.clone(),
            key: record.key.0,
            revoked: record.revoked,
            limits: Some(v1::CredentialLimits::from(&record.limits)),
        }
    }
}

impl TryFrom<v1::CredentialInfo> for CredentialRecord {
    type Error = Error;

    fn try_from(message: v1::CredentialInfo) -> Result<Self> {
        Ok(Self {
            name: message.name,
            key: KeyId(message.key),
            revoked: message.revoked,
            limits: required(message.limits, "limits")?,
        })
    }
}

impl From<&Credential> for v1::CredentialSecret {
    fn from(credential: &Credential) -> Self {
        Self {
            cluster: id_bytes(credential.cluster),
            name: credential.name.clone(),
            key: credential.key.0,
            secret: Bytes::copy_from_slice(&credential.secret.0),
        }
    }
}

impl TryFrom<v1::CredentialSecret> for Credential {
    type Error = Error;

    fn try_from(message: v1::CredentialSecret) -> Result<Self> {
        let secret = <[u8; 32]>::try_from(message.secret.as_ref())
            .map_err(|_| Error::invalid("a secret has 32 bytes"))?;
        Ok(Self {
            cluster: id_from(&message.cluster)?,
            name: message.name,
            key: KeyId(message.key),
            secret: Secret(secret),
        })
    }
}

impl From<&RoutingInfo> for v1::RoutingInfo {
    fn from(routing: &RoutingInfo) -> Self {
        Self {
            cluster: id_bytes(routing.cluster),
            version: routing.version.0,
            nodes: routing.nodes.values().map(v1::NodeInfo::from).collect(),
            targets: routing.targets.values().map(v1::TargetInfo::from).collect(),
            chains: routing.chains.values().map(v1::ChainInfo::from).collect(),
            tables: routing.tables.values().map(v1::ChainTableInfo::from).collect(),
            credentials: routing.credentials.iter().map(v1::CredentialInfo::from).collect(),
            settings: routing.settings.clone().into_iter().collect(),
        }
    }
}

impl TryFrom<v1::RoutingInfo> for RoutingInfo {
    type Error = Error;

    fn try_from(message: v1::RoutingInfo) -> Result<Self> {
        let mut routing = Self {
            cluster: id_from(&message.cluster)?,
            version: RoutingVersion(message.version),
            ..Self::default()
        };
        for node in message.nodes {
            let node = Node::try_from(node)?;
            routing.nodes.insert(node.id, node);
        }
        for target in message.targets {
            let target = Target::try_from(target)?;
            routing.targets.insert(target.id, target);
        }
        for chain in message.chains {
            let chain = Chain::try_from(chain)?;
            routing.chains.insert(chain.id, chain);
        }
        for table in message.tables.into_iter().map(ChainTable::from) {
            routing.tables.insert((table.id, table.version), table);
        }
        routing.credentials =
            message.credentials.into_iter().map(TryFrom::try_from).collect::<Result<_>>()?;
        routing.settings = message.settings.into_iter().collect();
        Ok(routing)
    }
}
