//! What is different between two versions of the routing information.

use crate::{ChainId, Code, Error, NodeId, Result, RoutingInfo, RoutingVersion, TargetId};
use std::collections::BTreeMap;

/// What leads from one version of the routing information to a later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingChange {
    /// The version that it is laid over; 0: everything is new.
    pub since: RoutingVersion,
    /// The new version, with the records that are new or changed.
    pub changed: RoutingInfo,
    /// Nodes that are gone.
    pub gone_nodes: Vec<NodeId>,
    /// Targets that are gone.
    pub gone_targets: Vec<TargetId>,
    /// Chains that are gone.
    pub gone_chains: Vec<ChainId>,
    /// Whether the credentials are those in `changed`.
    pub credentials: bool,
    /// Whether the settings are those in `changed`.
    pub settings: bool,
}

impl RoutingInfo {
    /// What leads here from `old`, an earlier version of the same cluster. Tables never go.
    pub fn since(&self, old: &RoutingInfo) -> RoutingChange {
        let (credentials, settings) =
            (self.credentials != old.credentials, self.settings != old.settings);
        RoutingChange {
            since: old.version,
            changed: RoutingInfo {
                cluster: self.cluster,
                version: self.version,
                nodes: changed(&old.nodes, &self.nodes),
                targets: changed(&old.targets, &self.targets),
                chains: changed(&old.chains, &self.chains),
                tables: changed(&old.tables, &self.tables),
                credentials: if credentials { self.credentials.clone() } else { Vec::new() },
                settings: if settings { self.settings.clone() } else { BTreeMap::new() },
            },
            gone_nodes: gone(&old.nodes, &self.nodes),
            gone_targets: gone(&old.targets, &self.targets),
            gone_chains: gone(&old.chains, &self.chains),
            credentials,
            settings,
        }
    }

    /// Lays a change over this version.
    ///
    /// # Errors
    /// `StaleHandle` when it is laid over another version: everything has to be asked for anew.
    pub fn lay(&mut self, change: RoutingChange) -> Result<()> {
        let RoutingChange { since, changed, credentials, settings, .. } = change;
        if since == RoutingVersion(0) {
            *self = changed;
            return Ok(());
        }
        if since != self.version {
            let what = format!("a change since routing {since} where {} is known", self.version);
            return Err(Error::new(Code::StaleHandle, what));
        }
        self.version = changed.version;
        self.nodes.extend(changed.nodes);
        self.targets.extend(changed.targets);
        self.chains.extend(changed.chains);
        self.tables.extend(changed.tables);
        remove(&mut self.nodes, &change.gone_nodes);
        remove(&mut self.targets, &change.gone_targets);
        remove(&mut self.chains, &change.gone_chains);
        if credentials {
            self.credentials = changed.credentials;
        }
        if settings {
            self.settings = changed.settings;
        }
        Ok(())
    }
}

fn changed<K: Ord + Clone, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> BTreeMap<K, V> {
    let other = new.iter().filter(|(id, value)| old.get(id) != Some(value));
    other.map(|(id, value)| (id.clone(), value.clone())).collect()
}

fn remove<K: Ord, V>(map: &mut BTreeMap<K, V>, ids: &[K]) {
    for id in ids {
        map.remove(id);
    }
}

fn gone<K: Ord + Copy, V>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Vec<K> {
    old.keys().filter(|id| !new.contains_key(id)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Chain, ChainTable, ChainTableId, ChainVersion, CredentialLimits, CredentialRecord, DiskId,
        Incarnation, KeyId, LocalState, Node, ServiceKind, Target,
    };

    /// A few records of each kind, each in one of a few forms.
    fn random_state(version: u64, random: &mut fastrand::Rng) -> RoutingInfo {
        let mut routing =
            RoutingInfo { version: RoutingVersion(version), ..RoutingInfo::default() };
        let ids: Vec<u64> = (1..8).filter(|_| random.bool()).collect();
        for id in ids {
            let form = random.u64(..3);
            let node = Node {
                id: NodeId(id),
                kind: ServiceKind::Storage,
                address: form.to_string(),
                incarnation: Incarnation(1),
                alive: true,
                tags: BTreeMap::new(),
            };
            routing.nodes.insert(node.id, node);
            let (target, chain) = (TargetId(id), ChainId(id));
            let (node, disk, local) = (NodeId(form), DiskId(1), LocalState::Online);
            routing.targets.insert(target, Target { id: target, chain, node, disk, local });
            let version = ChainVersion(form);
            let members = Vec::new();
            routing
                .chains
                .insert(chain, Chain { id: chain, version, members, min_serving: 1, replicas: 1 });
            routing.settings.insert(id.to_string(), form.to_string());
        }
        // Tables only come, and never change.
        for version in 1..=version / 3 {
            let table = ChainTable { id: ChainTableId(1), version, chains: Vec::new() };
            routing.tables.insert((table.id, version), table);
        }
        let limits = CredentialLimits::default();
        let record = CredentialRecord {
            name: random.u8(..2).to_string(),
            key: KeyId(1),
            revoked: false,
            limits,
        };
        routing.credentials.push(record);
        routing
    }

    #[test]
    fn who_lays_every_change_over_the_one_before_has_the_newest() {
        let mut random = fastrand::Rng::with_seed(5);
        let (mut published, mut followed) = (RoutingInfo::default(), RoutingInfo::default());
        for version in 1..500 {
            let new = random_state(version, &mut random);
            let change = new.since(&published);
            assert_eq!(followed.lay(change.clone()), Ok(()));
            assert_eq!(followed, new);
            if version > 1 {
                let late = followed.clone().lay(change).map_err(|error| error.code());
                assert_eq!(late, Err(Code::StaleHandle));
            }
            published = new;
        }
    }
}
