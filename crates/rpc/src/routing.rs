//! Changes of the routing information, and of settings, as messages.

use crate::{convert, v1};
use kiln_types::{
    ChainId, Error, NodeId, Result, RoutingChange, RoutingVersion, SettingChange, TargetId,
    Timestamp,
};

impl From<&RoutingChange> for v1::RoutingChange {
    fn from(change: &RoutingChange) -> Self {
        Self {
            since: change.since.0,
            changed: Some(v1::RoutingInfo::from(&change.changed)),
            gone_nodes: change.gone_nodes.iter().map(|id| id.0).collect(),
            gone_targets: change.gone_targets.iter().map(|id| id.0).collect(),
            gone_chains: change.gone_chains.iter().map(|id| id.0).collect(),
            credentials: change.credentials,
            settings: change.settings,
        }
    }
}

impl TryFrom<v1::RoutingChange> for RoutingChange {
    type Error = Error;

    fn try_from(message: v1::RoutingChange) -> Result<Self> {
        Ok(Self {
            since: RoutingVersion(message.since),
            changed: convert::required(message.changed, "changed")?,
            gone_nodes: message.gone_nodes.into_iter().map(NodeId).collect(),
            gone_targets: message.gone_targets.into_iter().map(TargetId).collect(),
            gone_chains: message.gone_chains.into_iter().map(ChainId).collect(),
            credentials: message.credentials,
            settings: message.settings,
        })
    }
}

impl From<&SettingChange> for v1::SettingChange {
    fn from(change: &SettingChange) -> Self {
        Self {
            sequence: change.sequence,
            at: change.at.0,
            by: change.by.clone(),
            name: change.name.clone(),
            before: change.before.clone(),
            after: change.after.clone(),
        }
    }
}

impl From<v1::SettingChange> for SettingChange {
    fn from(message: v1::SettingChange) -> Self {
        let v1::SettingChange { sequence, at, by, name, before, after } = message;
        Self { sequence, at: Timestamp(at), by, name, before, after }
    }
}
