//! What operators change about targets, as values: drains, moves, and what is left of them.

use crate::convert::{id_bytes, id_from, required};
use crate::{FillProgress, v1};
use kiln_types::{ChainId, ChainTableId, DiskId, Error, NodeId, Result, TargetId};
use std::fmt;
use std::time::Duration;

/// Where everything leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Drained {
    /// All disks of a node.
    Node(NodeId),
    /// One disk.
    Disk(DiskId),
}

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Disk(disk) => write!(f, "disk {disk}"),
        }
    }
}

/// A node or a disk from which everything leaves, and that takes nothing new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// What is drained.
    pub what: Drained,
    /// The disk that its targets go to; `None`: wherever there is room.
    pub onto: Option<DiskId>,
}

/// Why a target moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// Its node or disk is drained.
    Drain = 1,
    /// Its disk carries more than others.
    Rebalance = 2,
    /// It has been gone for long.
    Rebuild = 3,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drain => "drain",
            Self::Rebalance => "rebalance",
            Self::Rebuild => "rebuild",
        })
    }
}

/// A member of a chain that another one replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The target that leaves, if the move is not cancelled.
    pub from: TargetId,
    /// Its chain.
    pub chain: ChainId,
    /// The node of its successor.
    pub node: NodeId,
    /// The disk of its successor.
    pub disk: DiskId,
    /// Its successor; `None`: the move waits for its turn.
    pub to: Option<TargetId>,
    /// Why it moves.
    pub reason: Reason,
    /// Whether the successor leaves instead.
    pub cancelled: bool,
}

/// A target that no chain has any more, and that its disk may still have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retired {
    /// The target.
    pub target: TargetId,
    /// The chain that it was of.
    pub chain: ChainId,
    /// Its node.
    pub node: NodeId,
    /// Its disk.
    pub disk: DiskId,
}

/// Chains that are being made, and the version of the table that they will be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    /// The table.
    pub table: ChainTableId,
    /// Its new version.
    pub version: u64,
    /// The first new chain; the others have the numbers behind it.
    pub first: ChainId,
    /// How many new chains there are.
    pub count: u64,
}

impl Extension {
    /// The new chains.
    pub fn chains(&self) -> impl Iterator<Item = ChainId> + use<> {
        (self.first.0..self.first.0 + self.count).map(ChainId)
    }
}

/// A move, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveProgress {
    /// The move.
    pub what: Move,
    /// How far the new target is filled, while it is.
    pub fill: Option<FillProgress>,
    /// What it waits for; empty when it goes on.
    pub waits: String,
}

/// A drain, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainProgress {
    /// The drain.
    pub drain: Drain,
    /// Targets that are still there.
    pub targets: u64,
    /// Why some of them cannot move; empty when all can.
    pub stuck: String,
}

/// A target that is gone and will be rebuilt elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingRebuild {
    /// The target.
    pub target: TargetId,
    /// When it will be.
    pub left: Duration,
    /// Why it cannot be although it is time; empty when it can.
    pub stuck: String,
}

/// A disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DiskState {
    /// The disk.
    pub disk: DiskId,
    /// Its server.
    pub node: NodeId,
    /// Whether its server is alive and has it.
    pub present: bool,
    /// Whether everything leaves it, and it takes nothing new.
    pub drained: bool,
    /// Targets on it.
    pub targets: u64,
    /// Bytes that are taken, as reported last.
    pub used_bytes: u64,
    /// Bytes that it may take.
    pub capacity_bytes: u64,
}

/// What goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// What is drained.
    pub drains: Vec<DrainProgress>,
    /// What moves.
    pub moves: Vec<MoveProgress>,
    /// What will be rebuilt.
    pub rebuilds: Vec<WaitingRebuild>,
    /// Chains that are being made.
    pub extension: Option<Extension>,
    /// Removed targets whose space is not free yet.
    pub retired: u64,
    /// All disks.
    pub disks: Vec<DiskState>,
}

impl From<&Drain> for v1::DrainInfo {
    fn from(drain: &Drain) -> Self {
        let (node, disk) = match drain.what {
            Drained::Node(node) => (node.0, bytes::Bytes::new()),
            Drained::Disk(disk) => (0, id_bytes(disk)),
        };
        Self { node, disk, onto: drain.onto.map(id_bytes).unwrap_or_default() }
    }
}

impl TryFrom<v1::DrainInfo> for Drain {
    type Error = Error;

    fn try_from(message: v1::DrainInfo) -> Result<Self> {
        let what = match (message.node, message.disk.is_empty()) {
            (0, false) => Drained::Disk(id_from(&message.disk)?),
            (node, true) if node != 0 => Drained::Node(NodeId(node)),
            _ => return Err(Error::invalid("a drain names a node or a disk")),
        };
        let onto = (!message.onto.is_empty()).then(|| id_from(&message.onto)).transpose()?;
        Ok(Self { what, onto })
    }
}

impl From<&Move> for v1::MoveInfo {
    fn from(m: &Move) -> Self {
        Self {
            from: m.from.0,
            chain: m.chain.0,
            node: m.node.0,
            disk: id_bytes(m.disk),
            to: m.to.map_or(0, |target| target.0),
            reason: m.reason as u32,
            cancelled: m.cancelled,
        }
    }
}

impl TryFrom<v1::MoveInfo> for Move {
    type Error = Error;

    fn try_from(message: v1::MoveInfo) -> Result<Self> {
        let reason = match message.reason {
            1 => Reason::Drain,
            2 => Reason::Rebalance,
            3 => Reason::Rebuild,
            other => return Err(Error::invalid(format!("reason {other} of a move is not known"))),
        };
        Ok(Self {
            from: TargetId(message.from),
            chain: ChainId(message.chain),
            node: NodeId(message.node),
            disk: id_from(&message.disk)?,
            to: Some(TargetId(message.to)).filter(|target| target.0 != 0),
            reason,
            cancelled: message.cancelled,
        })
    }
}

impl From<&Retired> for v1::RetiredInfo {
    fn from(retired: &Retired) -> Self {
        Self {
            target: retired.target.0,
            chain: retired.chain.0,
            node: retired.node.0,
            disk: id_bytes(retired.disk),
        }
    }
}

impl TryFrom<v1::RetiredInfo> for Retired {
    type Error = Error;

    fn try_from(message: v1::RetiredInfo) -> Result<Self> {
        Ok(Self {
            target: TargetId(message.target),
            chain: ChainId(message.chain),
            node: NodeId(message.node),
            disk: id_from(&message.disk)?,
        })
    }
}

impl From<&Extension> for v1::ExtensionInfo {
    fn from(extension: &Extension) -> Self {
        Self {
            table: extension.table.0,
            version: extension.version,
            first: extension.first.0,
            count: extension.count,
        }
    }
}

impl From<v1::ExtensionInfo> for Extension {
    fn from(message: v1::ExtensionInfo) -> Self {
        Self {
            table: ChainTableId(message.table),
            version: message.version,
            first: ChainId(message.first),
            count: message.count,
        }
    }
}

impl From<&DiskState> for v1::DiskState {
    fn from(disk: &DiskState) -> Self {
        Self {
            disk: id_bytes(disk.disk),
            node: disk.node.0,
            present: disk.present,
            drained: disk.drained,
            targets: disk.targets,
            used_bytes: disk.used_bytes,
            capacity_bytes: disk.capacity_bytes,
        }
    }
}

impl TryFrom<v1::DiskState> for DiskState {
    type Error = Error;

    fn try_from(message: v1::DiskState) -> Result<Self> {
        Ok(Self {
            disk: id_from(&message.disk)?,
            node: NodeId(message.node),
            present: message.present,
            drained: message.drained,
            targets: message.targets,
            used_bytes: message.used_bytes,
            capacity_bytes: message.capacity_bytes,
        })
    }
}

impl From<&Operations> for v1::OperationList {
    fn from(operations: &Operations) -> Self {
        let drains = operations.drains.iter().map(|drain| v1::DrainProgress {
            drain: Some(v1::DrainInfo::from(&drain.drain)),
            targets: drain.targets,
            stuck: drain.stuck.clone(),
        });
        let moves = operations.moves.iter().map(|progress| v1::MoveProgress {
            r#move: Some(v1::MoveInfo::from(&progress.what)),
            fill: progress.fill.as_ref().map(v1::FillProgress::from),
            waits: progress.waits.clone(),
        });
        let rebuilds = operations.rebuilds.iter().map(|rebuild| v1::WaitingRebuild {
            target: rebuild.target.0,
            left_ms: u64::try_from(rebuild.left.as_millis()).unwrap_or(u64::MAX),
            stuck: rebuild.stuck.clone(),
        });
        Self {
            drains: drains.collect(),
            moves: moves.collect(),
            rebuilds: rebuilds.collect(),
            extension: operations.extension.as_ref().map(v1::ExtensionInfo::from),
            retired: operations.retired,
            disks: operations.disks.iter().map(v1::DiskState::from).collect(),
        }
    }
}

impl TryFrom<v1::OperationList> for Operations {
    type Error = Error;

    fn try_from(message: v1::OperationList) -> Result<Self> {
        let drain = |message: v1::DrainProgress| -> Result<DrainProgress> {
            let drain = required(message.drain, "drain")?;
            Ok(DrainProgress { drain, targets: message.targets, stuck: message.stuck })
        };
        let progress = |message: v1::MoveProgress| -> Result<MoveProgress> {
            let what = required(message.r#move, "move")?;
            let fill = message.fill.as_ref().map(FillProgress::from);
            Ok(MoveProgress { what, fill, waits: message.waits })
        };
        let rebuild = |message: v1::WaitingRebuild| WaitingRebuild {
            target: TargetId(message.target),
            left: Duration::from_millis(message.left_ms),
            stuck: message.stuck,
        };
        Ok(Self {
            drains: message.drains.into_iter().map(drain).collect::<Result<_>>()?,
            moves: message.moves.into_iter().map(progress).collect::<Result<_>>()?,
            rebuilds: message.rebuilds.into_iter().map(rebuild).collect(),
            extension: message.extension.map(Extension::from),
            retired: message.retired,
            disks: message.disks.into_iter().map(TryFrom::try_from).collect::<Result<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back() {
        let drains = [
            Drain { what: Drained::Node(NodeId(3)), onto: None },
            Drain { what: Drained::Disk(DiskId(4)), onto: Some(DiskId(5)) },
        ];
        for drain in drains {
            assert_eq!(Drain::try_from(v1::DrainInfo::from(&drain)).unwrap(), drain);
        }
        assert!(Drain::try_from(v1::DrainInfo::default()).is_err());
        let what = Move {
            from: TargetId(1),
            chain: ChainId(2),
            node: NodeId(3),
            disk: DiskId(4),
            to: None,
            reason: Reason::Rebalance,
            cancelled: true,
        };
        let fill = FillProgress {
            target: TargetId(9),
            done_chunks: 1,
            total_chunks: 2,
            copied_bytes: 3,
            elapsed: Duration::from_millis(4),
        };
        let moving = Move { to: Some(TargetId(9)), reason: Reason::Rebuild, ..what };
        let (target, chain) = (TargetId(7), ChainId(2));
        let operations = Operations {
            drains: vec![DrainProgress { drain: drains[0], targets: 3, stuck: "no".into() }],
            moves: vec![
                MoveProgress { what, fill: None, waits: "its turn".into() },
                MoveProgress { what: moving, fill: Some(fill), waits: String::new() },
            ],
            rebuilds: vec![WaitingRebuild {
                target,
                left: Duration::from_millis(1),
                stuck: String::new(),
            }],
            extension: Some(Extension {
                table: ChainTableId(1),
                version: 2,
                first: chain,
                count: 3,
            }),
            retired: 6,
            disks: vec![DiskState {
                disk: DiskId(4),
                node: NodeId(3),
                present: true,
                drained: true,
                targets: 5,
                used_bytes: 6,
                capacity_bytes: 7,
            }],
        };
        let message = v1::OperationList::from(&operations);
        assert_eq!(Operations::try_from(message).unwrap(), operations);
        let retired = Retired { target, chain, node: NodeId(1), disk: DiskId(2) };
        assert_eq!(Retired::try_from(v1::RetiredInfo::from(&retired)).unwrap(), retired);
    }
}
