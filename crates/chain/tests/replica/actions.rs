//! What the replicas of the world say to do, and what comes of it.

use crate::history::Seen;
use crate::world::{Caller, Flight, World};
use kiln_chain::replica::{Action, Event, Ticket, Versions};
use kiln_types::*;

impl World {
    pub(crate) fn apply(&mut self, node: usize, event: Event) {
        let life = self.nodes[node].life;
        let actions = self.nodes[node].replica.apply(event);
        let prepares = actions.iter().any(|action| matches!(action, Action::Prepare { .. }));
        for action in actions {
            match action {
                Action::Commit { chunk, version } if prepares => {
                    self.commit(node, chunk, version);
                }
                Action::Answer { ticket, result } => {
                    if let Some(to) = self.nodes[node].tickets.remove(&ticket) {
                        self.flights.push(Flight::Reply { to, result });
                    }
                }
                Action::Settled { .. } => {}
                Action::Joined { ticket } => {
                    self.nodes[node].payloads.remove(&ticket);
                }
                other => self.flights.push(Flight::Local(node, life, other)),
            }
        }
    }

    pub(crate) fn commit(&mut self, node: usize, chunk: ChunkId, version: ChunkVersion) {
        let stored = self.nodes[node].store.chunks.get_mut(&chunk).expect("it is pending");
        if stored.committed.0 < version {
            let pending = stored.pending.take().expect("a commit has its pending version");
            assert_eq!(pending.0, version);
            stored.undo = Some(stored.committed);
            stored.committed = pending;
        }
    }

    pub(crate) fn carry_out(&mut self, node: usize, action: Action) {
        match action {
            Action::Begin { chunk, retry } => {
                let store = &self.nodes[node].store;
                let stored = store.chunks.get(&chunk).cloned().unwrap_or_default();
                let versions = Versions {
                    committed: stored.committed.0,
                    present: stored.committed.0 != ChunkVersion::NONE,
                    pending: stored.pending.map(|pending| pending.0),
                };
                let channel = retry.map(|key| (key.client, key.channel));
                let remembered = channel.and_then(|c| store.retries.get(&c).copied());
                self.apply(node, Event::Began { chunk, versions: Ok(versions), remembered });
            }
            Action::Prepare { chunk, ticket, version, previous, commit } => {
                let result = self.prepare(node, chunk, ticket, version, previous, commit);
                self.apply(node, Event::Prepared { chunk, version, result });
            }
            Action::Commit { chunk, version } => {
                self.commit(node, chunk, version);
                self.apply(node, Event::Committed { chunk, version, result: Ok(()) });
            }
            Action::Discard { chunk, version } => {
                let store = &mut self.nodes[node].store;
                let stored = store.chunks.get_mut(&chunk).expect("it is pending");
                assert_eq!(stored.pending.take().map(|pending| pending.0), Some(version));
                store.undo_retry(version);
                self.apply(node, Event::Discarded { chunk, version });
            }
            Action::Forward { chunk, version, previous, to, chain_version, attempt } => {
                let stored = &self.nodes[node].store.chunks[&chunk];
                let value = match stored.pending {
                    Some((pending, value)) if pending == version => value,
                    _ => return,
                };
                let retry = stored.pending_retry;
                let from = Caller::Node(node, self.nodes[node].life, chunk, version, attempt);
                let ticket = Ticket(0);
                let event = Event::Forward {
                    ticket,
                    chain_version,
                    from: self.nodes[node].target,
                    chunk,
                    version,
                    previous,
                };
                let to = to.0 as usize;
                let life = self.nodes[to].life;
                let flight = Flight::Forward { to, life, from, event, value, retry };
                if self.random.u8(..100) < self.options.loss {
                    self.flights.push(flight.clone());
                }
                self.flights.push(flight);
            }
            Action::Install { chunk, ticket } => self.carry_out_install(node, chunk, ticket),
            Action::Sync { chunk, to, chain_version, attempt } => {
                let from = (node, self.nodes[node].life);
                let to = to.0 as usize;
                self.flights.push(Flight::LookUp { to, from, chunk, chain_version, attempt });
            }
            Action::Pause { chunk, version, attempt, .. } => {
                self.apply(node, Event::PauseOver { chunk, version, attempt });
            }
            other => panic!("carried out at once: {other:?}"),
        }
    }

    pub(crate) fn prepare(
        &mut self,
        node: usize,
        chunk: ChunkId,
        ticket: Ticket,
        version: ChunkVersion,
        previous: ChunkVersion,
        commit: bool,
    ) -> Result<()> {
        if !self.calm && self.random.u8(..100) < self.options.full {
            return Err(Error::from(Code::NoSpace));
        }
        let (value, retry) = self.nodes[node].payloads[&ticket];
        let store = &mut self.nodes[node].store;
        for stored in store.chunks.values_mut() {
            stored.undo = None;
        }
        let stored = store.chunks.entry(chunk).or_default();
        let matches = stored.committed.0 == previous && stored.pending.is_none();
        assert!(matches && version > previous, "prepared on another base");
        stored.pending = Some((version, value));
        stored.pending_retry = retry;
        if commit {
            stored.committed = stored.pending.take().unwrap();
        }
        if let Some(key) = retry {
            let remembered = RetryRecord { key, chunk, version };
            store.retries.insert((key.client, key.channel), remembered);
        }
        store.version_max = store.version_max.max(version);
        Ok(())
    }

    pub(crate) fn ticket(
        &mut self,
        node: usize,
        caller: Caller,
        value: u64,
        retry: Option<RetryKey>,
    ) -> Ticket {
        let ticket = Ticket(self.next_ticket());
        self.nodes[node].tickets.insert(ticket, caller);
        self.nodes[node].payloads.insert(ticket, (value, retry));
        ticket
    }

    pub(crate) fn next_ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    pub(crate) fn forward(
        &mut self,
        to: usize,
        from: Caller,
        event: Event,
        value: u64,
        retry: Option<RetryKey>,
    ) {
        if self.lost() || !self.nodes[to].answers() || self.nodes[to].replica.view().is_none() {
            let result = Err(Error::from(Code::ConnectionLost));
            return self.flights.push(Flight::Reply { to: from, result });
        }
        let new = self.ticket(to, from, value, retry);
        let Event::Forward { chain_version, from, chunk, version, previous, .. } = event else {
            unreachable!("only forwards fly so")
        };
        let event = Event::Forward { ticket: new, chain_version, from, chunk, version, previous };
        self.apply(to, event);
    }

    pub(crate) fn reply(&mut self, to: Caller, result: Result<ChunkVersion>) {
        let lost = self.lost();
        let result = if lost { Err(Error::from(Code::ConnectionLost)) } else { result };
        match to {
            Caller::Node(node, life, chunk, version, attempt) => {
                if self.nodes[node].life == life {
                    let result = result.map(drop);
                    self.apply(node, Event::Forwarded { chunk, version, attempt, result });
                }
            }
            Caller::Client(client, attempt) if self.clients[client].attempt == attempt => {
                match result {
                    Ok(version) => self.finish(client, Some(version)),
                    // The client is told, and its write may or may not have taken effect: over.
                    Err(error) if error.code() == Code::NoSpace => self.finish(client, None),
                    Err(_) => self.send(client),
                }
            }
            Caller::Client(..) => {}
            Caller::Filler(node, life, chunk, attempt) => {
                if self.nodes[node].life == life {
                    let result = result.map(drop);
                    self.apply(node, Event::Synced { chunk, attempt, result });
                }
            }
            Caller::Walk(walk) => {
                self.walk_on(walk, result.is_ok());
            }
        }
    }

    pub(crate) fn finish(&mut self, client: usize, version: Option<ChunkVersion>) {
        let operation = self.clients[client].operation.take().expect("an answer to something");
        let Some(version) = version else { return };
        self.history.push(Seen {
            chunk: operation.chunk,
            started: operation.started,
            ended: self.now,
            version,
            value: operation.value,
            is_write: operation.is_write,
            is_relaxed: !operation.is_write && operation.consistency == Consistency::Relaxed,
        });
    }
}
