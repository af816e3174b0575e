//! What the clients of the world do, and how replicas answer their reads.

use crate::world::{Caller, Flight, Operation, Plant, World};
use kiln_chain::replica::{Event, ReadRule};
use kiln_types::*;

impl World {
    pub(crate) fn start_operation(&mut self, client: usize) {
        self.now += 1;
        self.values += 1;
        let is_write = self.random.bool();
        let chunk = ChunkId::file(TreeId(0), InodeId(1), self.random.u64(..self.options.chunks));
        let state = &mut self.clients[client];
        state.left -= 1;
        state.sequence += u64::from(is_write);
        let value = if is_write { self.values } else { 0 };
        let consistency = match self.random.u32(..3) {
            0 => Consistency::Relaxed,
            _ => Consistency::Linearizable,
        };
        let started = self.now;
        state.operation = Some(Operation { chunk, value, started, is_write, consistency });
        self.send(client);
    }

    pub(crate) fn send(&mut self, client: usize) {
        let state = &mut self.clients[client];
        state.attempt += 1;
        let (attempt, chain) = (state.attempt, &state.chain);
        let is_write = state.operation.as_ref().is_some_and(|operation| operation.is_write);
        let serving: Vec<_> = chain.serving().collect();
        if serving.is_empty() {
            let result = Err(Error::from(Code::NotServing));
            return self
                .flights
                .push(Flight::Reply { to: Caller::Client(client, attempt), result });
        }
        let flight = if is_write {
            Flight::Write { node: serving[0].0 as usize, client, attempt }
        } else {
            let node = self.random.choice(&serving).unwrap().0 as usize;
            Flight::Read { node, client, attempt }
        };
        self.flights.push(flight);
    }

    pub(crate) fn write(&mut self, node: usize, client: usize, attempt: u64) {
        let caller = Caller::Client(client, attempt);
        if self.lost() || !self.nodes[node].answers() || self.nodes[node].replica.view().is_none() {
            let result = Err(Error::from(Code::ConnectionLost));
            return self.flights.push(Flight::Reply { to: caller, result });
        }
        let state = &self.clients[client];
        let Some(operation) = state.operation.clone().filter(|_| state.attempt == attempt) else {
            return;
        };
        let retry = Some(RetryKey {
            client: ClientId(client as u128),
            channel: ChannelId(0),
            sequence: Sequence(state.sequence),
        });
        let chain_version = state.chain.version;
        let ticket = self.ticket(node, caller, operation.value, retry);
        let channel = (ClientId(client as u128), ChannelId(0));
        let remembered = self.nodes[node].store.retries.get(&channel).copied();
        let chunk = operation.chunk;
        self.apply(node, Event::Write { ticket, chain_version, chunk, retry, remembered });
    }

    pub(crate) fn read(&mut self, node: usize, client: usize, attempt: u64) {
        let state = &self.clients[client];
        let Some(operation) = state.operation.clone().filter(|_| state.attempt == attempt) else {
            return;
        };
        let chain_version = state.chain.version;
        let failed = Flight::ReadReply { client, attempt, result: None };
        let view = self.nodes[node].replica.view().copied();
        let view = view.filter(|v| v.chain_version == chain_version);
        let view = view.filter(|v| v.state == PublicState::Serving);
        let lost = self.lost();
        if view.is_none() || lost || !self.nodes[node].answers() {
            return self.flights.push(failed);
        }
        let chunk = operation.chunk;
        let stored = self.nodes[node].store.chunks.get(&chunk).cloned().unwrap_or_default();
        let rule = self.nodes[node].replica.read_rule(&chunk, operation.consistency);
        if self.options.plant == Some(Plant::DirtyReads) && stored.pending.is_some() {
            let result = stored.pending;
            return self.flights.push(Flight::ReadReply { client, attempt, result });
        }
        let tail = match rule {
            ReadRule::Committed => {
                let result = Some(stored.committed);
                return self.flights.push(Flight::ReadReply { client, attempt, result });
            }
            ReadRule::Wait => return self.flights.push(failed),
            ReadRule::Ask(target) => target.0 as usize,
        };
        let life = self.nodes[node].life;
        self.flights.push(Flight::AskCommitted { tail, node, life, client, attempt });
    }

    pub(crate) fn ask_committed(
        &mut self,
        tail: usize,
        node: usize,
        life: u64,
        client: usize,
        attempt: u64,
    ) {
        let chain_version = self.nodes[node].replica.view().map(|view| view.chain_version);
        let there = self.nodes[tail].replica.view();
        let current = there
            .is_some_and(|view| view.is_commit_point && Some(view.chain_version) == chain_version);
        if !current || !self.nodes[tail].answers() || self.lost() {
            return self.flights.push(Flight::ReadReply { client, attempt, result: None });
        }
        let Some(operation) = &self.clients[client].operation else { return };
        if self.nodes[tail].replica.read_rule(&operation.chunk, Consistency::Linearizable)
            != ReadRule::Committed
        {
            return self.flights.push(Flight::ReadReply { client, attempt, result: None });
        }
        let stored = self.nodes[tail].store.chunks.get(&operation.chunk);
        let version = stored.map_or(ChunkVersion::NONE, |stored| stored.committed.0);
        self.flights.push(Flight::Committed { node, life, client, attempt, version });
    }

    pub(crate) fn committed(
        &mut self,
        node: usize,
        life: u64,
        client: usize,
        attempt: u64,
        version: ChunkVersion,
    ) {
        let state = &self.clients[client];
        let Some(operation) = state.operation.clone().filter(|_| state.attempt == attempt) else {
            return;
        };
        let stored = self.nodes[node].store.chunks.get(&operation.chunk).cloned();
        let stored = stored.unwrap_or_default();
        let found = if stored.committed.0 >= version {
            Some(stored.committed)
        } else {
            stored.pending.filter(|pending| pending.0 == version)
        };
        let alive = self.nodes[node].life == life && self.nodes[node].answers();
        let result = found.filter(|_| alive);
        self.flights.push(Flight::ReadReply { client, attempt, result });
    }

    pub(crate) fn read_reply(
        &mut self,
        client: usize,
        attempt: u64,
        result: Option<(ChunkVersion, u64)>,
    ) {
        if self.clients[client].attempt != attempt {
            return;
        }
        match result {
            Some((version, value)) => {
                if let Some(operation) = &mut self.clients[client].operation {
                    operation.value = value;
                }
                self.finish(client, Some(version));
            }
            None => self.send(client),
        }
    }
}
