//! The routing information that the manager publishes and everyone follows.

use crate::{
    ChainId, ChainTableId, ChainVersion, ClusterId, CredentialLimits, DiskId, Error, Incarnation,
    KeyId, Layout, LocalState, NodeId, PublicState, Result, RoutingVersion, TargetId, Timestamp,
};
use std::collections::BTreeMap;

/// What a node runs.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum ServiceKind {
    /// A manager.
    Mgmtd = 1,
    /// A metadata server.
    Meta = 2,
    /// A storage server.
    Storage = 3,
}

impl ServiceKind {
    /// The kind with this number in a message.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Mgmtd, Self::Meta, Self::Storage].into_iter().find(|kind| *kind as u8 == number)
    }
}

impl std::fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Mgmtd => "mgmtd",
            Self::Meta => "meta",
            Self::Storage => "storage",
        })
    }
}

/// A server that has registered.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// What it runs.
    pub kind: ServiceKind,
    /// Where it listens, `host:port`.
    pub address: String,
    /// The run that registered last.
    pub incarnation: Incarnation,
    /// Whether its lease holds.
    pub alive: bool,
    /// Failure-domain tags: host, rack, power.
    pub tags: BTreeMap<String, String>,
}

/// One replica's place.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Target {
    /// Its id.
    pub id: TargetId,
    /// The chain that it is of.
    pub chain: ChainId,
    /// The node that has it.
    pub node: NodeId,
    /// The disk of that node.
    pub disk: DiskId,
    /// What its server last said of it.
    pub local: LocalState,
}

/// A target's place in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Member {
    /// The target.
    pub target: TargetId,
    /// Its published state.
    pub state: PublicState,
}

/// A replication chain: writes enter at the first serving member and are decided at the last one.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Chain {
    /// Its id.
    pub id: ChainId,
    /// Grows with each change of members, order or states.
    pub version: ChainVersion,
    /// Serving ones first, then lastsrv, syncing, waiting, offline.
    pub members: Vec<Member>,
    /// Below this many serving members writes wait.
    pub min_serving: u32,
    /// How many members should serve; there are more members while one takes another's place.
    pub replicas: u32,
}

impl Chain {
    /// Whether fewer members serve than should.
    pub fn is_degraded(&self) -> bool {
        self.serving().count() < self.replicas as usize
    }

    /// The serving members, head first.
    pub fn serving(&self) -> impl DoubleEndedIterator<Item = TargetId> + '_ {
        self.members.iter().filter(|m| m.state == PublicState::Serving).map(|m| m.target)
    }

    /// Where writes enter.
    pub fn head(&self) -> Option<TargetId> {
        self.serving().next()
    }

    /// Where writes are decided.
    pub fn tail(&self) -> Option<TargetId> {
        self.serving().next_back()
    }

    /// The state of `target`, if it is a member.
    pub fn state_of(&self, target: TargetId) -> Option<PublicState> {
        self.members.iter().find(|m| m.target == target).map(|m| m.state)
    }

    /// The next member after `target` that takes writes.
    pub fn successor_of(&self, target: TargetId) -> Option<TargetId> {
        let mut after = self.members.iter().skip_while(|m| m.target != target).skip(1);
        after.find(|m| m.state.takes_writes()).map(|m| m.target)
    }
}

/// The chains over which layouts spread files; each change makes a new version, and old ones stay.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ChainTable {
    /// Its id.
    pub id: ChainTableId,
    /// Grows with each change.
    pub version: u64,
    /// The chains in table order.
    pub chains: Vec<ChainId>,
}

/// A client credential as servers know it; the secret is derived from the server key.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CredentialRecord {
    /// Its name.
    pub name: String,
    /// The server key that it is derived from.
    pub key: KeyId,
    /// Whether it opens nothing any more.
    pub revoked: bool,
    /// What it allows.
    pub limits: CredentialLimits,
}

/// Everything that a service or client needs to find the others.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, Default)]
pub struct RoutingInfo {
    /// The cluster.
    pub cluster: ClusterId,
    /// Grows with each change.
    pub version: RoutingVersion,
    /// Every node that ever registered.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Every target.
    pub targets: BTreeMap<TargetId, Target>,
    /// Every chain.
    pub chains: BTreeMap<ChainId, Chain>,
    /// Every version of every chain table.
    pub tables: BTreeMap<(ChainTableId, u64), ChainTable>,
    /// Client credentials; sent to servers only.
    pub credentials: Vec<CredentialRecord>,
    /// Settings of all servers of a kind, by name (`storage.recovery.rate`); sent to servers only.
    pub settings: BTreeMap<String, String>,
}

/// A change of a setting of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SettingChange {
    /// Counts them.
    pub sequence: u64,
    /// When, by the manager's wall clock.
    pub at: Timestamp,
    /// Who: the name of a credential.
    pub by: String,
    /// The setting.
    pub name: String,
    /// What it was; `None`: as each server's own configuration says.
    pub before: Option<String>,
    /// What it is; `None`: as each server's own configuration says.
    pub after: Option<String>,
}

impl RoutingInfo {
    /// The chain of each stripe slot of `layout`: chunk c is on entry `c mod stripe`.
    ///
    /// # Errors
    /// `UnknownMember` when the table version is not known (routing older than the layout), `Corrupt`
    /// when the table is empty.
    pub fn stripe(&self, layout: &Layout) -> Result<Vec<ChainId>> {
        let key = (layout.table, layout.table_version);
        let table = self.tables.get(&key).ok_or_else(|| {
            Error::new(
                crate::Code::UnknownMember,
                format!("chain table {} version {} is not known", key.0, key.1),
            )
        })?;
        if table.chains.is_empty() {
            return Err(Error::corrupt(format!("chain table {} has no chains", key.0)));
        }
        let order = layout.stripe_order(table.chains.len());
        Ok(order.into_iter().map(|index| table.chains[index]).collect())
    }

    /// The newest version of a chain table.
    pub fn newest_table(&self, id: ChainTableId) -> Option<&ChainTable> {
        self.tables.range((id, 0)..=(id, u64::MAX)).next_back().map(|(_, table)| table)
    }

    /// The node that has `target`.
    pub fn node_of(&self, target: TargetId) -> Option<&Node> {
        self.nodes.get(&self.targets.get(&target)?.node)
    }
}
