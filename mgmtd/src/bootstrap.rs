//! The first chains: planned once, created by their servers, then published.

use crate::manager::Manager;
use crate::moves::order;
use kiln_chain::placement::{self, Place, Server, Shape};
use kiln_rpc::{Extension, Heartbeat, TargetOrder};
use kiln_types::{
    Chain, ChainId, ChainTable, ChainTableId, ChainVersion, Error, LocalState, Member, PublicState,
    Result, ServiceKind, Target, TargetId,
};
use std::collections::BTreeSet;

/// The chain table that a cluster starts with.
pub const FIRST_TABLE: ChainTableId = ChainTableId(1);

impl Manager {
    /// Plans the first chains when enough storage servers are there.
    pub(crate) fn plan(&mut self) {
        if self.state.planned {
            return;
        }
        let servers = self.storage_servers();
        if servers.len() < self.options.bootstrap.storage_servers as usize {
            return;
        }
        let shape = Shape {
            replicas: self.options.bootstrap.replicas as usize,
            targets_per_disk: self.options.bootstrap.targets_per_disk as usize,
        };
        match placement::plan(&servers, shape) {
            Ok(chains) => {
                tracing::info!(
                    servers = servers.len(),
                    chains = chains.len(),
                    replicas = shape.replicas,
                    "the first chains are planned"
                );
                self.add_plan(&chains, ChainId(1));
                self.state.planned = true;
            }
            Err(error) if self.plan_failed.as_ref() != Some(&error) => {
                tracing::error!(servers = servers.len(), "chains cannot be planned: {error}");
                self.plan_failed = Some(error);
            }
            Err(_) => {}
        }
    }

    fn storage_servers(&self) -> Vec<Server> {
        let nodes = self.state.routing.nodes.values();
        let alive = nodes.filter(|node| node.alive && node.kind == ServiceKind::Storage);
        let servers = alive.map(|node| Server {
            node: node.id,
            tags: node.tags.clone(),
            disks: {
                let disks = self.disks_of(node.id).map(|disk| disk.disk);
                disks.filter(|disk| self.state.drain_of(node.id, *disk).is_none()).collect()
            },
        });
        servers.filter(|server| !server.disks.is_empty()).collect()
    }

    /// More chains beside those that there are, until each disk has so many targets. They are made as
    /// the first ones were; the new version of the table follows.
    pub(crate) fn plan_extension(&mut self, targets_per_disk: u32) -> Result<Extension> {
        let routing = &self.state.routing;
        let replicas = routing.chains.values().map(|chain| chain.replicas).max().unwrap_or(1);
        let shape =
            Shape { replicas: replicas as usize, targets_per_disk: targets_per_disk as usize };
        let place = |target: &Target| Place { node: target.node, disk: target.disk };
        let places = |chain: &Chain| {
            let members = chain.members.iter().filter_map(|m| routing.targets.get(&m.target));
            members.map(place).collect()
        };
        let there: Vec<_> = routing.chains.values().map(places).collect();
        let chains = placement::plan_beside(&self.storage_servers(), shape, &there)?;
        if chains.is_empty() {
            let text = format!(
                "no chain fits beside those that there are: too few disks have fewer than {targets_per_disk} targets"
            );
            return Err(Error::invalid(text).with_hint("name more targets for each disk"));
        }
        let last = routing.chains.keys().next_back();
        let first = ChainId(last.map_or(0, |last| last.0) + 1);
        let version = routing.newest_table(FIRST_TABLE).map_or(1, |table| table.version + 1);
        let extension =
            Extension { table: FIRST_TABLE, version, first, count: chains.len() as u64 };
        tracing::info!(chains = chains.len(), version, "further chains are planned");
        self.add_plan(&chains, first);
        self.state.extension = Some(extension);
        Ok(extension)
    }

    /// Targets are numbered along the chains, so that a chain's order is that of its targets' ids.
    fn add_plan(&mut self, chains: &[Vec<Place>], first: ChainId) {
        for (i, places) in chains.iter().enumerate() {
            let chain = ChainId(first.0 + i as u64);
            for place in places {
                let id = self.state.next_target;
                self.state.next_target = TargetId(id.0 + 1);
                let Place { node, disk } = *place;
                let local = LocalState::Offline;
                self.state.routing.targets.insert(id, Target { id, chain, node, disk, local });
                self.by_node.entry(node).or_default().push(id);
                self.unpublished.entry(chain).or_default().push(id);
            }
        }
        self.changed = true;
    }

    /// Publishes each planned chain whose targets all exist, and the table when all chains do.
    pub(crate) fn publish_ready(&mut self) {
        let targets = &self.state.routing.targets;
        let exists = |target: &TargetId| targets.get(target).is_some_and(|t| t.local.is_alive());
        let ready = self.unpublished.iter().filter(|(_, members)| members.iter().all(exists));
        let ready: Vec<_> = ready.map(|(id, members)| (*id, members.clone())).collect();
        for (id, members) in ready {
            self.unpublished.remove(&id);
            let member = |target| Member { target, state: PublicState::Serving };
            let chain = Chain {
                id,
                version: ChainVersion(1),
                replicas: members.len() as u32,
                members: members.into_iter().map(member).collect(),
                min_serving: self.options.bootstrap.min_serving(),
            };
            tracing::info!(chain = %id, members = chain.members.len(), "a chain serves");
            self.state.routing.chains.insert(id, chain);
            self.changed = true;
        }
        if self.state.planned && self.unpublished.is_empty() {
            self.publish_table();
        }
    }

    /// The first version of the table, or the one with the chains that were added.
    fn publish_table(&mut self) {
        let newest = self.state.routing.newest_table(FIRST_TABLE);
        let (version, chains): (_, Vec<_>) = match (newest, self.state.extension.take()) {
            (None, _) => (1, self.state.routing.chains.keys().copied().collect()),
            (Some(table), Some(extension)) => {
                let all = table.chains.iter().copied().chain(extension.chains());
                (extension.version, all.collect())
            }
            (Some(_), None) => return,
        };
        tracing::info!(table = %FIRST_TABLE, version, chains = chains.len(), "the chain table is ready");
        let table = ChainTable { id: FIRST_TABLE, version, chains };
        self.state.routing.tables.insert((table.id, table.version), table);
        self.changed = true;
    }

    /// Planned targets that the server has not got yet. A target of a published chain is never
    /// created complete: it may have held data.
    pub(crate) fn planned_orders(&self, heartbeat: &Heartbeat) -> Vec<TargetOrder> {
        let there: BTreeSet<_> =
            heartbeat.targets.iter().filter(|r| r.local.is_alive()).map(|r| r.target).collect();
        let mine = self.by_node.get(&heartbeat.node).into_iter().flatten();
        let missing = mine.filter(|target| !there.contains(*target));
        let missing = missing.filter_map(|target| self.state.routing.targets.get(target));
        let planned = missing.filter(|target| self.unpublished.contains_key(&target.chain));
        planned.map(|target| order(target, false)).collect()
    }
}
