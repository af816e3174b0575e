//! The manager's decisions: `apply(event, now) -> answer` over its state. No I/O, no clock.

use crate::moves::Observed;
use crate::operations::Operation;
use crate::state::State;
use crate::suspects::Suspects;
use kiln_chain::lease::{LeaseTimes, ManagerLeases, Patience};
use kiln_chain::membership;
use kiln_rpc::{
    DiskReport, Extension, FillProgress, Heartbeat, Move, Operations, Registration, TargetOrders,
};
use kiln_types::{
    ChainId, Code, CredentialLimits, CredentialRecord, DiskId, Error, Incarnation, KeyId,
    LocalState, Monotonic, Node, NodeId, PublicState, Result, RoutingInfo, ServiceKind,
    SettingChange, TargetId, Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How many replaced runs of a node are remembered, so that they are refused.
const REPLACED_MAX: usize = 16;

/// The tag by which the primary manager is known among the nodes.
const ROLE_TAG: &str = "role";

/// What the manager is told once.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who the manager itself is.
    pub own: Node,
    /// The servers' leases.
    pub lease: LeaseTimes,
    /// When it declares servers dead.
    pub patience: Patience,
    /// The first chains.
    pub bootstrap: kiln_config::BootstrapConfig,
    /// The server key that new credentials are derived from.
    pub key: KeyId,
    /// When a target that is gone is rebuilt elsewhere; zero: never.
    pub rebuild_after: Duration,
}

/// Something that happens to the manager.
#[derive(Clone, Debug)]
pub enum Event {
    /// A server says that it runs.
    Register(Registration),
    /// A server says that it still runs.
    Heartbeat(Heartbeat),
    /// Time has passed.
    Tick,
    /// An operator wants a new client credential.
    CreateCredential {
        /// Its name.
        name: String,
        /// What it allows.
        limits: CredentialLimits,
    },
    /// An operator ends a client credential.
    RevokeCredential {
        /// Its name.
        name: String,
    },
    /// An operator changes a setting of the whole cluster.
    SetSetting {
        /// Its name.
        name: String,
        /// What it shall be; `None`: as each server's own configuration says.
        value: Option<String>,
        /// Who wants it.
        by: String,
        /// When, by the wall clock.
        at: Timestamp,
    },
    /// An operator asks for the changes of settings.
    ListChanges,
    /// An operator asks which targets are being filled.
    ListFills,
    /// An operator changes where targets are.
    Operate(Operation),
}

/// What the manager answers, after its state is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing more to say.
    Done,
    /// The server's lease runs again.
    Alive {
        /// What it shall do with its targets.
        orders: TargetOrders,
    },
    /// The credential exists.
    Credential(CredentialRecord),
    /// The last changes of settings, oldest first.
    Changes(Vec<SettingChange>),
    /// The targets that are being filled.
    Fills(Vec<FillProgress>),
    /// What moves.
    Moves(Vec<Move>),
    /// The chains that are being made.
    Extended(Extension),
    /// What goes on.
    Operations(Operations),
}

/// What is known of a node while the manager runs.
#[derive(Debug, Default)]
struct Contact {
    sequence: u64,
    disks: Vec<DiskReport>,
    replaced: Vec<Incarnation>,
    /// The targets that it fills, as it reported last.
    fills: Vec<FillProgress>,
}

/// The manager's core.
#[derive(Debug)]
pub struct Manager {
    pub(crate) options: Options,
    pub(crate) state: State,
    leases: ManagerLeases,
    contacts: BTreeMap<NodeId, Contact>,
    pub(crate) suspects: Suspects,
    pub(crate) observed: Observed,
    pub(crate) by_node: BTreeMap<NodeId, Vec<TargetId>>,
    pub(crate) unpublished: BTreeMap<ChainId, Vec<TargetId>>,
    pub(crate) changed: bool,
    /// Why the last attempt to plan chains failed, so that it is logged once.
    pub(crate) plan_failed: Option<Error>,
}

impl Manager {
    /// Begins with what the store had. What follows from it (a torn last change, a new run of the
    /// manager) is in the state at once, under a new version.
    pub fn new(options: Options, mut state: State, now: Monotonic) -> Self {
        state.repair();
        let alive = |node: &&Node| node.alive && node.kind != ServiceKind::Mgmtd;
        let alive: Vec<_> = state.routing.nodes.values().filter(alive).map(|n| n.id).collect();
        let leases = ManagerLeases::new(options.patience, now, alive);
        let (by_node, unpublished) = (state.targets_by_node(), state.unpublished());
        let (contacts, plan_failed) = (BTreeMap::new(), None);
        let mut manager = Self {
            options,
            state,
            leases,
            contacts,
            suspects: Suspects::default(),
            observed: Observed::default(),
            by_node,
            unpublished,
            changed: true,
            plan_failed,
        };
        manager.begin();
        manager.finish_change();
        manager
    }

    fn begin(&mut self) {
        let nodes = self.state.routing.nodes.values_mut();
        for node in nodes.filter(|node| node.kind == ServiceKind::Mgmtd) {
            node.alive = false;
            node.tags.remove(ROLE_TAG);
        }
        let mut own = self.options.own.clone();
        own.tags.insert(ROLE_TAG.into(), "primary".into());
        if self.state.routing.nodes.is_empty() && !self.options.bootstrap.credential.is_empty() {
            let name = self.options.bootstrap.credential.clone();
            self.add_credential(name, CredentialLimits::default());
        }
        self.state.routing.nodes.insert(own.id, own);
        let nodes = &self.state.routing.nodes;
        let gone = |node: &NodeId| nodes.get(node).is_none_or(|node| !node.alive);
        let gone: Vec<_> = self.by_node.keys().copied().filter(gone).collect();
        for node in gone {
            self.set_all_offline(node);
        }
        let chains = self.state.routing.chains.keys().copied().collect();
        self.advance_chains(&chains, "state at the manager's start");
        self.advance_moves();
        self.publish_ready();
    }

    /// What everyone is told, once it is durable.
    pub fn routing(&self) -> &RoutingInfo {
        &self.state.routing
    }

    /// What has to be durable before anyone hears of it, or of the answer that came with it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Takes up one event at `now`. When the state changed, the routing information has a new
    /// version.
    ///
    /// # Errors
    /// Why the caller is refused; the state is as it was then.
    pub fn apply(&mut self, event: Event, now: Monotonic) -> Result<Answer> {
        let answer = match event {
            Event::Register(registration) => self.register(registration, now),
            Event::Heartbeat(heartbeat) => self.heartbeat(&heartbeat, now),
            Event::Tick => Ok(self.tick(now)),
            Event::CreateCredential { name, limits } => self.create_credential(name, limits),
            Event::RevokeCredential { name } => self.revoke_credential(&name),
            Event::SetSetting { name, value, by, at } => self.set_setting(name, value, by, at),
            Event::ListChanges => Ok(Answer::Changes(self.state.changes.iter().cloned().collect())),
            Event::ListFills => Ok(Answer::Fills(self.fills())),
            Event::Operate(operation) => self.operate(operation, now),
        };
        self.finish_change();
        answer
    }

    fn finish_change(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.state.routing.version.0 += 1;
        }
    }

    fn register(&mut self, registration: Registration, now: Monotonic) -> Result<Answer> {
        self.check_registration(&registration, now)?;
        let Registration { node: id, kind, address, incarnation, disks, tags, version, .. } =
            registration;
        let old = self.state.routing.nodes.get(&id);
        let contact = self.contacts.entry(id).or_default();
        let restarted = old.filter(|old| old.incarnation != incarnation);
        if let Some(old) = restarted {
            if contact.replaced.len() == REPLACED_MAX {
                contact.replaced.remove(0);
            }
            contact.replaced.push(old.incarnation);
            contact.sequence = 0;
        }
        contact.disks = disks;
        let (restarted, was_alive) = (restarted.is_some(), old.is_some_and(|old| old.alive));
        tracing::info!(
            node = %id, %kind, address, run = %incarnation, version, was_alive, restarted,
            "a server registered"
        );
        let node = Node { id, kind, address, incarnation, alive: true, tags };
        if old != Some(&node) {
            self.state.routing.nodes.insert(id, node);
            self.changed = true;
        }
        self.leases.heard(id, now);
        if restarted {
            self.acquit(id);
        }
        self.drop_missing_disks(id);
        self.judge_accused(id, now);
        self.plan();
        self.advance_moves();
        Ok(Answer::Alive { orders: TargetOrders::default() })
    }

    fn check_registration(&self, registration: &Registration, now: Monotonic) -> Result<()> {
        let id = registration.node;
        if registration.cluster != self.state.routing.cluster {
            let message = format!(
                "node {id} is of cluster {}, this is cluster {}",
                registration.cluster, self.state.routing.cluster
            );
            return Err(Error::new(Code::WrongCluster, message)
                .with_hint("check the server's key file and the manager's address"));
        }
        let Some(old) = self.state.routing.nodes.get(&id) else { return Ok(()) };
        if registration.kind != old.kind {
            let message = format!("node {id} is a {} server, not {}", old.kind, registration.kind);
            return Err(Error::invalid(message).with_hint("give each server its own node id"));
        }
        let contact = self.contacts.get(&id);
        if contact.is_some_and(|contact| contact.replaced.contains(&registration.incarnation)) {
            return Err(replaced(id));
        }
        let may_run = old.incarnation != registration.incarnation
            && old.alive
            && self.leases.holds(id, now)
            && !self.proves_predecessor_dead(old, registration);
        if may_run {
            let message = format!("node {id} runs at {}, and its lease has not ended", old.address);
            return Err(Error::new(Code::Busy, message).with_hint(
                "give each server its own node id; after a loss of its disks, wait for the lease",
            ));
        }
        Ok(())
    }

    /// Whether the run before cannot serve any more: the new one holds a disk of it, and two processes
    /// cannot hold the same. A node without disks has nothing that two must not serve.
    fn proves_predecessor_dead(&self, old: &Node, registration: &Registration) -> bool {
        let mut disks: BTreeSet<DiskId> = self.disks_of(old.id).map(|disk| disk.disk).collect();
        let targets = self.by_node.get(&old.id).into_iter().flatten();
        let targets = targets.filter_map(|target| self.state.routing.targets.get(target));
        disks.extend(targets.map(|target| target.disk));
        disks.is_empty() || registration.disks.iter().any(|disk| disks.contains(&disk.disk))
    }

    /// The disks of a node as it reported them last, since the manager started.
    pub(crate) fn disks_of(&self, node: NodeId) -> impl Iterator<Item = &DiskReport> {
        self.contacts.get(&node).into_iter().flat_map(|contact| &contact.disks)
    }

    /// Targets whose disk their server does not have any more are gone until it comes back.
    fn drop_missing_disks(&mut self, node: NodeId) {
        let present: BTreeSet<_> = self.disks_of(node).map(|disk| disk.disk).collect();
        let mut chains = BTreeSet::new();
        for target in self.by_node.get(&node).cloned().unwrap_or_default() {
            let disk = self.state.routing.targets.get(&target).map(|target| target.disk);
            if disk.is_some_and(|disk| !present.contains(&disk)) {
                chains.extend(self.set_local(target, LocalState::Offline));
            }
        }
        self.advance_chains(&chains, "its server registered without the disk");
    }

    fn heartbeat(&mut self, heartbeat: &Heartbeat, now: Monotonic) -> Result<Answer> {
        let id = heartbeat.node;
        self.check_heartbeat(heartbeat)?;
        let contact = self.contacts.entry(id).or_default();
        contact.sequence = heartbeat.sequence;
        contact.disks.clone_from(&heartbeat.disks);
        contact.fills = heartbeat.targets.iter().filter_map(|report| report.fill).collect();
        if heartbeat.stopping {
            self.stop_node(id);
            return Ok(Answer::Alive { orders: TargetOrders::default() });
        }
        self.take_complaints(heartbeat, now);
        if self.is_accused(id) {
            let message = format!("a target of node {id} is to leave its chain");
            return Err(Error::new(Code::UnknownMember, message));
        }
        self.leases.heard(id, now);
        let chains = self.take_reports(heartbeat, now);
        self.advance_chains(&chains, "reported by its server");
        self.observe(heartbeat, now);
        self.advance_moves();
        self.publish_ready();
        self.plan();
        Ok(Answer::Alive { orders: self.orders(heartbeat) })
    }

    /// A server has ceased to serve: its targets leave at once where enough others serve. The others keep
    /// their role until its lease has ended, as it may be back before: without them writes wait either way.
    fn stop_node(&mut self, id: NodeId) {
        let targets = self.by_node.get(&id).cloned().unwrap_or_default();
        let needed = |target: &TargetId| {
            self.state.chain_of(*target).is_some_and(|chain| {
                chain.state_of(*target) == Some(PublicState::Serving)
                    && !membership::may_leave(chain, *target)
            })
        };
        let (kept, given): (Vec<_>, Vec<_>) = targets.into_iter().partition(needed);
        tracing::info!(node = %id, kept = kept.len(), given = given.len(), "a server stops");
        if kept.is_empty() {
            self.end_node(id);
        }
        let offline = |target| self.set_local(target, LocalState::Offline);
        let chains: BTreeSet<_> = given.into_iter().filter_map(offline).collect();
        self.advance_chains(&chains, "its server stops");
        self.advance_moves();
    }

    fn check_heartbeat(&self, heartbeat: &Heartbeat) -> Result<()> {
        let id = heartbeat.node;
        let unknown = |message: String| Err(Error::new(Code::UnknownMember, message));
        let Some(node) = self.state.routing.nodes.get(&id) else {
            return unknown(format!("node {id} has not registered"));
        };
        if node.incarnation != heartbeat.incarnation {
            return Err(replaced(id));
        }
        if !node.alive {
            return unknown(format!("node {id} was declared dead or has stopped"));
        }
        let sequence = self.contacts.get(&id).map_or(0, |contact| contact.sequence);
        if heartbeat.sequence <= sequence {
            let message = format!("heartbeat {} of node {id} after {sequence}", heartbeat.sequence);
            return Err(Error::new(Code::DuplicateRequest, message));
        }
        Ok(())
    }

    /// Takes up what a living server says of its targets. A target that it does not name is not
    /// there. That one is open counts only when said under the chain's current version: before, the
    /// server may not know yet that it missed writes.
    fn take_reports(&mut self, heartbeat: &Heartbeat, now: Monotonic) -> BTreeSet<ChainId> {
        let reports: BTreeMap<_, _> =
            heartbeat.targets.iter().map(|report| (report.target, report)).collect();
        let mine = self.by_node.get(&heartbeat.node).cloned().unwrap_or_default();
        let leaving = self.leaving();
        let mut chains = BTreeSet::new();
        for target in &mine {
            let Some(known) = self.state.routing.targets.get(target) else { continue };
            let chain = self.state.routing.chains.get(&known.chain);
            let last = chain
                .is_some_and(|chain| chain.state_of(*target) == Some(PublicState::LastServing));
            let local = match reports.get(target) {
                None => LocalState::Offline,
                Some(_) if self.suspects.contains(*target, now) && !last => LocalState::Offline,
                Some(_) if self.stays_out(&leaving, *target) => LocalState::Offline,
                Some(report) => match chain {
                    Some(chain)
                        if report.local.is_alive() && report.chain_version < chain.version =>
                    {
                        continue;
                    }
                    _ => report.local,
                },
            };
            chains.extend(self.set_local(*target, local));
        }
        let known =
            |target: &TargetId| mine.contains(target) || self.state.retired.contains_key(target);
        for stray in reports.keys().filter(|target| !known(target)) {
            tracing::warn!(node = %heartbeat.node, target = %stray, "a target that is not its own");
        }
        chains
    }

    /// The fillings that go on, as the servers that do them reported last.
    pub(crate) fn fills(&self) -> Vec<FillProgress> {
        let routing = &self.state.routing;
        let syncs = |fill: &&FillProgress| {
            let chain = routing.targets.get(&fill.target).map(|target| target.chain);
            let chain = chain.and_then(|chain| routing.chains.get(&chain));
            chain.and_then(|c| c.state_of(fill.target)) == Some(PublicState::Syncing)
        };
        let alive = self
            .contacts
            .iter()
            .filter(|(node, _)| routing.nodes.get(node).is_some_and(|node| node.alive));
        alive.flat_map(|(_, contact)| &contact.fills).filter(syncs).copied().collect()
    }

    fn tick(&mut self, now: Monotonic) -> Answer {
        let ended = self.leases.tick(now);
        let mut chains = BTreeSet::new();
        for id in &ended {
            let silent = self.leases.last_heard(*id).map(|heard| now.since(heard));
            tracing::warn!(node = %id, ?silent, "a server's lease has ended: declared dead");
            kiln_telemetry::metrics::MGMTD_DECLARED_DEAD.add(1);
            self.end_node(*id);
            chains.extend(self.set_all_offline(*id));
        }
        self.advance_chains(&chains, "its server's lease has ended");
        self.advance_moves();
        self.look_for_moves(now);
        Answer::Done
    }

    pub(crate) fn forget_contact(&mut self, id: NodeId) {
        self.leases.forget(id);
        self.contacts.remove(&id);
    }

    fn end_node(&mut self, id: NodeId) {
        self.leases.forget(id);
        if let Some(node) = self.state.routing.nodes.get_mut(&id) {
            node.alive = false;
            self.changed = true;
        }
    }

    fn set_all_offline(&mut self, node: NodeId) -> BTreeSet<ChainId> {
        let targets = self.by_node.get(&node).cloned().unwrap_or_default();
        targets.into_iter().filter_map(|t| self.set_local(t, LocalState::Offline)).collect()
    }

    /// Notes a target's local state; its chain when that changed.
    pub(crate) fn set_local(&mut self, target: TargetId, local: LocalState) -> Option<ChainId> {
        let target = self.state.routing.targets.get_mut(&target)?;
        if target.local == local {
            return None;
        }
        target.local = local;
        self.changed = true;
        Some(target.chain)
    }

    /// Lets chains follow the local states of their targets.
    pub(crate) fn advance_chains(&mut self, chains: &BTreeSet<ChainId>, reason: &str) {
        let targets = &self.state.routing.targets;
        let local =
            |target: TargetId| targets.get(&target).map_or(LocalState::Offline, |t| t.local);
        for id in chains {
            let Some(chain) = self.state.routing.chains.get_mut(id) else { continue };
            let next = membership::advance(chain, local);
            if next == *chain {
                continue;
            }
            for change in membership::changes(chain, &next) {
                tracing::info!(
                    chain = %id, version = %next.version, target = %change.target,
                    from = %change.from, to = %change.to, reason, "membership"
                );
            }
            let serving = next.serving().count();
            if serving < next.min_serving as usize {
                tracing::warn!(chain = %id, serving, needed = next.min_serving, "writes wait");
            }
            *chain = next;
            self.changed = true;
        }
    }

    fn create_credential(&mut self, name: String, limits: CredentialLimits) -> Result<Answer> {
        kiln_wire::check_credential_name(&name)?;
        if let Some(old) = self.state.routing.credentials.iter().find(|old| old.name == name) {
            let what = if old.revoked { "was revoked" } else { "exists" };
            return Err(Error::new(Code::Exists, format!("credential '{name}' {what}"))
                .with_hint("names are never given twice: take another one"));
        }
        tracing::info!(name, ?limits, "a credential was created");
        Ok(Answer::Credential(self.add_credential(name, limits)))
    }

    fn add_credential(&mut self, name: String, limits: CredentialLimits) -> CredentialRecord {
        let record = CredentialRecord { name, key: self.options.key, revoked: false, limits };
        self.state.routing.credentials.push(record.clone());
        self.changed = true;
        record
    }

    fn revoke_credential(&mut self, name: &str) -> Result<Answer> {
        let mut records = self.state.routing.credentials.iter_mut();
        let Some(record) = records.find(|record| record.name == name) else {
            return Err(Error::new(Code::NotFound, format!("there is no credential '{name}'")));
        };
        if !record.revoked {
            record.revoked = true;
            self.changed = true;
            tracing::info!(name, "a credential was revoked");
        }
        Ok(Answer::Done)
    }

    /// How many targets are in each published state, for status pages and tests.
    pub fn count(&self, state: PublicState) -> usize {
        let members = self.state.routing.chains.values().flat_map(|chain| &chain.members);
        members.filter(|member| member.state == state).count()
    }
}

fn replaced(node: NodeId) -> Error {
    Error::new(Code::StaleIncarnation, format!("a newer run of node {node} has registered"))
        .with_hint("two servers must not have the same node id")
}
