//! How nodes of the world die and return, and what the manager makes of it.

use crate::world::{Flight, Node, Plant, REPLICAS, World};
use kiln_chain::membership;
use kiln_chain::replica::{Event, View};
use kiln_types::*;

impl World {
    pub(crate) fn kill(&mut self, node: usize) {
        let dying = &mut self.nodes[node];
        let mut store = std::mem::take(&mut dying.store);
        for stored in store.chunks.values_mut() {
            if let Some(undo) = stored.undo.take().filter(|_| self.random.bool()) {
                stored.pending = Some(stored.committed);
                stored.committed = undo;
            }
            if self.options.plant == Some(Plant::StoreForgets) {
                stored.pending = None;
            }
        }
        let mut waiting: Vec<_> = dying.tickets.drain().collect();
        waiting.sort_by_key(|(ticket, _)| *ticket);
        self.flights.extend(
            waiting.into_iter().map(|(_, to)| Flight::Reply {
                to,
                result: Err(Error::from(Code::ConnectionLost)),
            }),
        );
        let (target, life, dead) = (dying.target, dying.life + 1, dying.dead);
        self.nodes[node] = Node::new(target, store, life);
        self.nodes[node].dead = dead;
        self.nodes[node].down = true;
    }

    /// The manager declares a node dead, which it may be, or only cut off.
    pub(crate) fn bury(&mut self, node: usize) {
        if self.options.returns && self.random.bool() {
            self.nodes[node].fenced = true;
            self.flights.push(Flight::View(node));
        } else {
            self.nodes[node].dead = true;
            self.kill(node);
        }
        self.report(node, LocalState::Offline);
    }

    pub(crate) fn revive_all(&mut self) {
        if self.options.returns {
            (0..REPLICAS).for_each(|node| self.revive(node));
        }
    }

    pub(crate) fn revive(&mut self, node: usize) {
        if self.nodes[node].dead && self.local[node] == LocalState::Offline {
            self.nodes[node].dead = false;
            self.flights.push(Flight::Restart(node));
        }
    }

    /// The manager hears of a target.
    pub(crate) fn report(&mut self, node: usize, local: LocalState) {
        self.local[node] = local;
        let local = self.local;
        let local = |target: TargetId| local[target.0 as usize];
        let next = membership::advance(&self.chain, local);
        if next != self.chain {
            self.chain = next;
            self.flights.extend((0..REPLICAS).map(Flight::View));
            self.flights.extend((0..self.clients.len()).map(Flight::ClientView));
            self.flights.extend((0..REPLICAS).map(Flight::Report));
        }
    }

    pub(crate) fn heartbeat(&mut self, node: usize) {
        let Node { down, dead, replica, filled, .. } = &self.nodes[node];
        if *down || *dead || self.nodes[node].fenced {
            return;
        }
        let Some(view) = replica.view().copied().filter(|v| v.chain_version == self.chain.version)
        else {
            return self.flights.push(Flight::Report(node));
        };
        let filled =
            *filled == Some(view.chain_version) || self.options.plant == Some(Plant::PromotesStale);
        let up_to_date = match view.state {
            PublicState::Serving | PublicState::LastServing => true,
            PublicState::Syncing => filled,
            _ => false,
        };
        let local = if up_to_date { LocalState::UpToDate } else { LocalState::Online };
        self.report(node, local);
    }

    pub(crate) fn restart(&mut self, node: usize) {
        if self.nodes[node].dead {
            return;
        }
        self.nodes[node].down = false;
        self.recover(node);
        self.flights.push(Flight::View(node));
        self.flights.push(Flight::Report(node));
    }

    pub(crate) fn recover(&mut self, node: usize) {
        let store = &self.nodes[node].store;
        let pending = store.chunks.iter().filter_map(|(c, s)| Some((*c, s.pending?.0)));
        for (chunk, version) in pending.collect::<Vec<_>>() {
            self.apply(node, Event::Recovered { chunk, version });
        }
    }

    pub(crate) fn take_view(&mut self, node: usize) {
        if !self.nodes[node].down {
            let view = View::of(&self.chain, self.nodes[node].target);
            let old = self.nodes[node].replica.view().copied();
            let serves = |view: &View| view.state == PublicState::Serving;
            if view.as_ref().is_some_and(serves) && !old.as_ref().is_some_and(serves) {
                self.recover(node);
            }
            self.apply(node, Event::View(view));
            if std::mem::take(&mut self.nodes[node].fenced) {
                self.flights.push(Flight::Report(node));
            }
            self.begin_walk(node, old, view);
        }
    }
}
