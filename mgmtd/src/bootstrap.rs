//! The first chains: planned once, created by their servers, then published.

use crate::manager::Manager;
use kiln_chain::placement::{self, Place, Server, Shape};
use kiln_rpc::{Heartbeat, TargetOrder};
use kiln_types::{
    Chain, ChainId, ChainTable, ChainTableId, ChainVersion, LocalState, Member, PublicState,
    ServiceKind, Target, TargetId,
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
                self.add_plan(&chains);
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
            host: node.tags.get("host").cloned(),
            disks: self.disks_of(node.id).map(|disk| disk.disk).collect(),
        });
        servers.filter(|server| !server.disks.is_empty()).collect()
    }

    /// Targets are numbered along the chains, so that a chain's order is that of its targets' ids.
    fn add_plan(&mut self, chains: &[Vec<Place>]) {
        let mut next_target = 1;
        for (i, places) in chains.iter().enumerate() {
            let chain = ChainId(i as u64 + 1);
            for place in places {
                let id = TargetId(next_target);
                next_target += 1;
                let Place { node, disk } = *place;
                let local = LocalState::Offline;
                self.state.routing.targets.insert(id, Target { id, chain, node, disk, local });
                self.by_node.entry(node).or_default().push(id);
                self.unpublished.entry(chain).or_default().push(id);
            }
        }
        self.state.planned = true;
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
                members: members.into_iter().map(member).collect(),
                min_serving: self.options.bootstrap.min_serving(),
            };
            tracing::info!(chain = %id, members = chain.members.len(), "a chain serves");
            self.state.routing.chains.insert(id, chain);
            self.changed = true;
        }
        let complete = self.state.planned && self.unpublished.is_empty();
        if complete && self.state.routing.newest_table(FIRST_TABLE).is_none() {
            let chains: Vec<_> = self.state.routing.chains.keys().copied().collect();
            tracing::info!(table = %FIRST_TABLE, chains = chains.len(), "the chain table is ready");
            let table = ChainTable { id: FIRST_TABLE, version: 1, chains };
            self.state.routing.tables.insert((table.id, table.version), table);
            self.changed = true;
        }
    }

    /// Planned targets that the server has not got yet. A target of a published chain is never
    /// created again: it may have held data.
    pub(crate) fn orders(&self, heartbeat: &Heartbeat) -> Vec<TargetOrder> {
        let there: BTreeSet<_> =
            heartbeat.targets.iter().filter(|r| r.local.is_alive()).map(|r| r.target).collect();
        let mine = self.by_node.get(&heartbeat.node).into_iter().flatten();
        let missing = mine.filter(|target| !there.contains(*target));
        let missing = missing.filter_map(|target| self.state.routing.targets.get(target));
        let planned = missing.filter(|target| self.unpublished.contains_key(&target.chain));
        let order = |t: &Target| TargetOrder { target: t.id, chain: t.chain, disk: t.disk };
        planned.map(order).collect()
    }
}
