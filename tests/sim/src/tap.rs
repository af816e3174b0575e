//! Listens at the servers' doors: which version an operation got, also when its client never hears.
//!
//! What is learned here only tells the search for an order where to look first.

use crate::history::History;
use async_trait::async_trait;
use kiln_net::{Handler, Peer, Request, Response};
use kiln_storage_server::ChunkService;
use kiln_types::{ChunkId, ChunkVersion, Result, RetryKey, TruncateEpoch};
use kiln_wire::{Body, Change, Forward, Operation, Update, Write, WriteDone};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// What was learned.
#[derive(Default)]
pub(crate) struct Hints {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tags: HashMap<(ChunkId, Vec<u64>), u32>,
    retries: HashMap<RetryKey, u32>,
}

/// What tells a change of a chunk from others.
pub(crate) fn likeness(change: &Change, epoch: TruncateEpoch) -> Vec<u64> {
    match change {
        Change::Write { checksums, .. } | Change::Replace { checksums } => {
            checksums.iter().map(|checksum| u64::from(*checksum)).collect()
        }
        Change::Zero { offset, length } => vec![u64::from(*offset), u64::from(*length)],
        // A cut has an epoch of its own.
        Change::Truncate { .. } | Change::Remove => vec![epoch.0],
    }
}

impl Hints {
    /// Operation `tag` is about to make a change that looks like this.
    pub(crate) fn expect(&self, tag: u32, chunk: ChunkId, likeness: Vec<u64>) {
        self.state.lock().tags.insert((chunk, likeness), tag);
    }

    fn tag(&self, chunk: ChunkId, update: &Update) -> Option<u32> {
        let mut state = self.state.lock();
        let retry = update.retry?;
        if let Some(tag) = state.retries.get(&retry) {
            return Some(*tag);
        }
        let tag = state.tags.get(&(chunk, likeness(&update.change, update.epoch))).copied()?;
        state.retries.insert(retry, tag);
        Some(tag)
    }
}

/// The door of one server.
pub(crate) struct Tap {
    pub(crate) service: Arc<ChunkService>,
    pub(crate) hints: Arc<Hints>,
    pub(crate) history: Arc<History>,
}

impl Tap {
    fn learn(&self, tag: Option<u32>, version: ChunkVersion) {
        if let Some(tag) = tag {
            let order = u128::from(version.chain.0) << 64 | u128::from(version.counter);
            self.history.ordered(tag, order);
        }
    }
}

#[async_trait]
impl Handler for Tap {
    async fn handle(&self, peer: &Arc<Peer>, request: Request) -> Result<Response> {
        let operation = Operation::from_number(request.operation)?;
        let mut tag = None;
        if operation == Operation::Write {
            let write = Write::decode(&request.body)?;
            tag = self.hints.tag(write.name.chunk, &write.update);
        } else if operation == Operation::Forward {
            let forward = Forward::decode(&request.body)?;
            self.learn(self.hints.tag(forward.name.chunk, &forward.update), forward.version);
        }
        let response = self.service.handle(peer, request).await?;
        if operation == Operation::Write {
            self.learn(tag, WriteDone::decode(&response.body)?.version);
        }
        Ok(response)
    }
}
