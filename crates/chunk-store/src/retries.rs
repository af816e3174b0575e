//! Retry records as a whole: they go with the chunks when a replica is filled from another one.

use crate::api::RetryRecord;
use crate::core::Core;
use crate::join::join_all;
use crate::record::{Key, Record};
use crate::state::{Effect, Remembered, RetrySlot, State};
use kiln_types::{ChannelId, ClientId, Result, RetryKey, TargetId};
use std::ops::Bound;

/// Records of one submission: a few KiB, well below a batch.
const TOGETHER: usize = 64;

/// Of the order of clients and channels, those after `after`.
pub(crate) fn page(
    state: &State,
    target: TargetId,
    after: Option<(ClientId, ChannelId)>,
    limit: usize,
) -> Vec<RetryRecord> {
    let from = match after {
        Some((client, channel)) => Bound::Excluded((target, client, channel)),
        None => Bound::Included((target, ClientId(0), ChannelId(0))),
    };
    let to = Bound::Included((target, ClientId(u128::MAX), ChannelId(u32::MAX)));
    state.retries.range((from, to)).take(limit).map(|(slot, found)| record(slot, found)).collect()
}

/// What the record of a channel says.
pub(crate) fn record(slot: &RetrySlot, found: &Remembered) -> RetryRecord {
    let key = RetryKey { client: slot.1, channel: slot.2, sequence: found.sequence };
    RetryRecord { key, chunk: found.chunk, version: found.version }
}

pub(crate) async fn forget_target(core: &Core, target: TargetId) -> Result<()> {
    let receiver = {
        let mut state = core.state.lock();
        state.target(target)?;
        // At once, and again when the record is durable: as with a client.
        state.forget_retries_of(target);
        let records = vec![Record::ForgetRetries { target }];
        let effect = Effect::RetriesForgotten { target };
        Core::submit_waiting(&mut state, records, Vec::new(), effect)
    };
    core.durable(receiver).await
}

pub(crate) async fn remember(
    core: &Core,
    target: TargetId,
    records: Vec<RetryRecord>,
) -> Result<()> {
    let record = |record: &RetryRecord| Record::Retry {
        key: Key { target, chunk: record.chunk },
        retry: record.key,
        version: record.version,
    };
    let receivers: Vec<_> = {
        let mut state = core.state.lock();
        state.target(target)?;
        let some = records.chunks(TOGETHER).map(|some| some.iter().map(record).collect());
        some.map(|some| Core::submit_waiting(&mut state, some, Vec::new(), Effect::Remembered))
            .collect()
    };
    let all = join_all(receivers.into_iter().map(|receiver| core.durable(receiver))).await;
    all.into_iter().collect()
}
