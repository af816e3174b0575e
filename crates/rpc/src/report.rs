//! What servers and the manager tell each other, as values.

use crate::convert::{id_bytes, id_from, local_state, service_kind};
use crate::v1;
use kiln_types::{
    ChainId, ChainVersion, ClusterId, DiskId, Error, Incarnation, LocalState, NodeId, Result,
    RoutingVersion, ServiceKind, TargetId,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// A disk as its server sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskReport {
    /// Its chunk store's identity.
    pub disk: DiskId,
    /// Bytes that the store may take.
    pub capacity_bytes: u64,
    /// Bytes that are taken.
    pub used_bytes: u64,
}

/// A target as its server sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetReport {
    /// The target.
    pub target: TargetId,
    /// Its state.
    pub local: LocalState,
    /// The version of its chain that the server has taken up for it; 0 while it knows none.
    pub chain_version: ChainVersion,
    /// Bytes that are taken.
    pub used_bytes: u64,
    /// Age of the oldest request that its disk has not answered; zero when there is none.
    pub oldest_io: Duration,
    /// The target behind it in the chain, when that does not answer.
    pub unreachable: Option<TargetId>,
    /// How far the filling of the target behind it is.
    pub fill: Option<FillProgress>,
}

/// How far the filling of a target is that was away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillProgress {
    /// The target that is filled.
    pub target: TargetId,
    /// Chunks that are the same as at the target that fills it.
    pub done_chunks: u64,
    /// Chunks that there were when it began.
    pub total_chunks: u64,
    /// Bytes that were copied.
    pub copied_bytes: u64,
    /// How long it takes already.
    pub elapsed: Duration,
}

/// A server that says that it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The cluster that it is of.
    pub cluster: ClusterId,
    /// Its id.
    pub node: NodeId,
    /// What it runs.
    pub kind: ServiceKind,
    /// Where it listens, `host:port`.
    pub address: String,
    /// This run of it.
    pub incarnation: Incarnation,
    /// All its disks.
    pub disks: Vec<DiskReport>,
    /// Failure-domain tags: host, rack, power.
    pub tags: BTreeMap<String, String>,
    /// The version of the program.
    pub version: String,
}

/// A server that says that it still runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Its id.
    pub node: NodeId,
    /// This run of it.
    pub incarnation: Incarnation,
    /// Grows with each heartbeat of the run.
    pub sequence: u64,
    /// The routing information that it has.
    pub routing: RoutingVersion,
    /// All its targets: one that is not named is not there.
    pub targets: Vec<TargetReport>,
    /// All its disks.
    pub disks: Vec<DiskReport>,
    /// It has ceased to serve and will not come back: its role may be given away.
    pub stopping: bool,
}

/// The manager's order to create an empty target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetOrder {
    /// The target.
    pub target: TargetId,
    /// The chain that it will be of.
    pub chain: ChainId,
    /// The disk that it goes on.
    pub disk: DiskId,
    /// Its chain has data already: it has to be filled before it counts.
    pub incomplete: bool,
}

/// What a server is to do with its targets; said again with each heartbeat until it is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetOrders {
    /// To be created. One that exists is never created again.
    pub create: Vec<TargetOrder>,
    /// To cease to serve, as long as it is said: enough others serve.
    pub leave: Vec<TargetId>,
    /// To be deleted with their data: no chain has them.
    pub remove: Vec<TargetId>,
}

impl From<&DiskReport> for v1::Disk {
    fn from(report: &DiskReport) -> Self {
        Self {
            disk: id_bytes(report.disk),
            capacity_bytes: report.capacity_bytes,
            used_bytes: report.used_bytes,
        }
    }
}

impl TryFrom<&v1::Disk> for DiskReport {
    type Error = Error;

    fn try_from(message: &v1::Disk) -> Result<Self> {
        Ok(Self {
            disk: id_from(&message.disk)?,
            capacity_bytes: message.capacity_bytes,
            used_bytes: message.used_bytes,
        })
    }
}

impl From<&TargetReport> for v1::TargetReport {
    fn from(report: &TargetReport) -> Self {
        Self {
            target: report.target.0,
            local_state: report.local as u32,
            chain_version: report.chain_version.0,
            used_bytes: report.used_bytes,
            oldest_io_ms: milliseconds(report.oldest_io),
            unreachable: report.unreachable.map_or(0, |target| target.0),
            fill: report.fill.as_ref().map(v1::FillProgress::from),
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<&FillProgress> for v1::FillProgress {
    fn from(fill: &FillProgress) -> Self {
        Self {
            target: fill.target.0,
            done_chunks: fill.done_chunks,
            total_chunks: fill.total_chunks,
            copied_bytes: fill.copied_bytes,
            elapsed_ms: milliseconds(fill.elapsed),
        }
    }
}

impl From<&v1::FillProgress> for FillProgress {
    fn from(message: &v1::FillProgress) -> Self {
        Self {
            target: TargetId(message.target),
            done_chunks: message.done_chunks,
            total_chunks: message.total_chunks,
            copied_bytes: message.copied_bytes,
            elapsed: Duration::from_millis(message.elapsed_ms),
        }
    }
}

impl TryFrom<&v1::TargetReport> for TargetReport {
    type Error = Error;

    fn try_from(message: &v1::TargetReport) -> Result<Self> {
        Ok(Self {
            target: TargetId(message.target),
            local: local_state(message.local_state)?,
            chain_version: ChainVersion(message.chain_version),
            used_bytes: message.used_bytes,
            oldest_io: Duration::from_millis(message.oldest_io_ms),
            unreachable: Some(TargetId(message.unreachable)).filter(|target| target.0 != 0),
            fill: message.fill.as_ref().map(FillProgress::from),
        })
    }
}

impl From<&Registration> for v1::RegisterRequest {
    fn from(registration: &Registration) -> Self {
        Self {
            cluster: id_bytes(registration.cluster),
            node: registration.node.0,
            kind: registration.kind as u32,
            address: registration.address.clone(),
            incarnation: id_bytes(registration.incarnation),
            disks: registration.disks.iter().map(v1::Disk::from).collect(),
            tags: registration.tags.clone().into_iter().collect(),
            version: registration.version.clone(),
        }
    }
}

impl TryFrom<v1::RegisterRequest> for Registration {
    type Error = Error;

    fn try_from(message: v1::RegisterRequest) -> Result<Self> {
        if message.node == 0 {
            return Err(Error::invalid("node id 0 names nothing"));
        }
        Ok(Self {
            cluster: id_from(&message.cluster)?,
            node: NodeId(message.node),
            kind: service_kind(message.kind)?,
            address: message.address,
            incarnation: id_from(&message.incarnation)?,
            disks: message.disks.iter().map(TryFrom::try_from).collect::<Result<_>>()?,
            tags: message.tags.into_iter().collect(),
            version: message.version,
        })
    }
}

impl From<&Heartbeat> for v1::HeartbeatRequest {
    fn from(heartbeat: &Heartbeat) -> Self {
        Self {
            node: heartbeat.node.0,
            incarnation: id_bytes(heartbeat.incarnation),
            sequence: heartbeat.sequence,
            routing_version: heartbeat.routing.0,
            targets: heartbeat.targets.iter().map(v1::TargetReport::from).collect(),
            disks: heartbeat.disks.iter().map(v1::Disk::from).collect(),
            stopping: heartbeat.stopping,
        }
    }
}

impl TryFrom<v1::HeartbeatRequest> for Heartbeat {
    type Error = Error;

    fn try_from(message: v1::HeartbeatRequest) -> Result<Self> {
        Ok(Self {
            node: NodeId(message.node),
            incarnation: id_from(&message.incarnation)?,
            sequence: message.sequence,
            routing: RoutingVersion(message.routing_version),
            targets: message.targets.iter().map(TryFrom::try_from).collect::<Result<_>>()?,
            disks: message.disks.iter().map(TryFrom::try_from).collect::<Result<_>>()?,
            stopping: message.stopping,
        })
    }
}

impl From<&TargetOrder> for v1::CreateTargetOrder {
    fn from(order: &TargetOrder) -> Self {
        Self {
            target: order.target.0,
            chain: order.chain.0,
            disk: id_bytes(order.disk),
            incomplete: order.incomplete,
        }
    }
}

impl TryFrom<&v1::CreateTargetOrder> for TargetOrder {
    type Error = Error;

    fn try_from(message: &v1::CreateTargetOrder) -> Result<Self> {
        Ok(Self {
            target: TargetId(message.target),
            chain: ChainId(message.chain),
            disk: id_from(&message.disk)?,
            incomplete: message.incomplete,
        })
    }
}

impl TargetOrders {
    /// The manager's answer to a heartbeat.
    pub fn reply(&self, routing: RoutingVersion) -> v1::HeartbeatReply {
        let numbers = |targets: &[TargetId]| targets.iter().map(|target| target.0).collect();
        v1::HeartbeatReply {
            routing_version: routing.0,
            create_targets: self.create.iter().map(v1::CreateTargetOrder::from).collect(),
            leave_targets: numbers(&self.leave),
            remove_targets: numbers(&self.remove),
        }
    }
}

impl TryFrom<v1::HeartbeatReply> for TargetOrders {
    type Error = Error;

    fn try_from(message: v1::HeartbeatReply) -> Result<Self> {
        let targets = |numbers: Vec<u64>| numbers.into_iter().map(TargetId).collect();
        Ok(Self {
            create: message.create_targets.iter().map(TryFrom::try_from).collect::<Result<_>>()?,
            leave: targets(message.leave_targets),
            remove: targets(message.remove_targets),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back() {
        let disk = DiskReport { disk: DiskId(7), capacity_bytes: 100, used_bytes: 3 };
        let registration = Registration {
            cluster: ClusterId(1),
            node: NodeId(101),
            kind: ServiceKind::Storage,
            address: "localhost:1".into(),
            incarnation: Incarnation(9),
            disks: vec![disk],
            tags: BTreeMap::from([("host".into(), "a".into())]),
            version: "0.1.0".into(),
        };
        let message = v1::RegisterRequest::from(&registration);
        assert_eq!(Registration::try_from(message.clone()).unwrap(), registration);
        assert!(Registration::try_from(v1::RegisterRequest { node: 0, ..message }).is_err());
        let target = TargetReport {
            target: TargetId(5),
            local: LocalState::Online,
            chain_version: ChainVersion(3),
            used_bytes: 8,
            oldest_io: Duration::from_millis(20),
            unreachable: Some(TargetId(8)),
            fill: Some(FillProgress {
                target: TargetId(8),
                done_chunks: 1,
                total_chunks: 2,
                copied_bytes: 3,
                elapsed: Duration::from_millis(4),
            }),
        };
        let heartbeat = Heartbeat {
            node: NodeId(101),
            incarnation: Incarnation(9),
            sequence: 4,
            routing: RoutingVersion(6),
            targets: vec![target],
            disks: vec![disk],
            stopping: true,
        };
        let message = v1::HeartbeatRequest::from(&heartbeat);
        assert_eq!(Heartbeat::try_from(message).unwrap(), heartbeat);
        let order = |incomplete| TargetOrder {
            target: TargetId(1),
            chain: ChainId(2),
            disk: DiskId(3),
            incomplete,
        };
        let orders = TargetOrders {
            create: vec![order(true), order(false)],
            leave: vec![TargetId(4)],
            remove: vec![TargetId(5), TargetId(6)],
        };
        assert_eq!(TargetOrders::try_from(orders.reply(RoutingVersion(1))).unwrap(), orders);
    }
}
