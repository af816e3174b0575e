//! Write channels: what makes a retried write count once.

use kiln_env::Env;
use kiln_types::{ChainId, ChannelId, ChunkId, ClientId, Deadline, Result, RetryKey, Sequence};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::OwnedMutexGuard;

/// Channels to each chain: as many writes may be outstanding there.
const CHANNELS: u64 = 64;

/// The channels of one client incarnation.
///
/// A chunk always uses the same channel of its chain, so that its writes carry growing numbers: a copy of
/// an earlier one that comes late is recognised as old.
pub(crate) struct Channels {
    client: ClientId,
    channels: Mutex<HashMap<(ChainId, ChannelId), Arc<Channel>>>,
}

/// The number of the last write; locked as long as it is outstanding.
type Channel = tokio::sync::Mutex<Sequence>;

/// The right to have one write outstanding.
pub(crate) struct Turn {
    pub(crate) key: RetryKey,
    _sequence: OwnedMutexGuard<Sequence>,
}

impl Channels {
    pub(crate) fn new(client: ClientId) -> Self {
        Self { client, channels: Mutex::default() }
    }

    /// Waits until no other write is outstanding on the chunk's channel, and numbers the next one.
    pub(crate) async fn turn(
        &self,
        env: &Env,
        chain: ChainId,
        chunk: &ChunkId,
        deadline: Deadline,
    ) -> Result<Turn> {
        let channel = ChannelId((spread(chunk) % CHANNELS) as u32);
        let sequence = Arc::clone(self.channels.lock().entry((chain, channel)).or_default());
        let what = "earlier writes of the same channel";
        let mut sequence = env.until(deadline, what, sequence.lock_owned()).await?;
        sequence.0 += 1;
        let key = RetryKey { client: self.client, channel, sequence: *sequence };
        Ok(Turn { key, _sequence: sequence })
    }

    /// The chains that were written to.
    pub(crate) fn chains(&self) -> Vec<ChainId> {
        let mut chains: Vec<_> = self.channels.lock().keys().map(|(chain, _)| *chain).collect();
        chains.sort_unstable();
        chains.dedup();
        chains
    }
}

/// FNV-1a over the id: neighbours of one chain spread over its channels.
fn spread(chunk: &ChunkId) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let hash = chunk.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step);
    hash ^ (hash >> 32)
}
