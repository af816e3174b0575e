//! How much of a server all its callers may hold.

use crate::call::HOPS;
use crate::counters::{Counters, add, subtract};
use kiln_types::{Code, Error, Result};
use kiln_wire::{Credit, FrameHeader};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bytes that requests of all connections may hold, for each hop. Waiting is first come, first
/// served, and a connection waits with one request at a time, so a flood on one does not starve
/// another.
pub(crate) struct Budgets {
    hops: [Arc<Semaphore>; HOPS],
    bytes: u32,
}

/// What one connection may hold; more than that waits, which a caller that counts never sees.
pub(crate) struct Window {
    credit: Credit,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// The share of one request, until its answer is written.
pub(crate) struct Admission {
    _requests: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
    _budget: OwnedSemaphorePermit,
    counters: Arc<Counters>,
}

impl Budgets {
    pub(crate) fn new(bytes: usize) -> Self {
        let bytes = u32::try_from(bytes.max(1)).unwrap_or(u32::MAX);
        let budget = || Arc::new(Semaphore::new(bytes as usize));
        Self { hops: std::array::from_fn(|_| budget()), bytes }
    }
}

impl Window {
    pub(crate) fn new(credit: Credit) -> Self {
        let requests = Arc::new(Semaphore::new(credit.requests as usize));
        Self { credit, requests, bytes: Arc::new(Semaphore::new(credit.bytes as usize)) }
    }

    /// Waits until the request of `header` may be read.
    pub(crate) async fn admit(
        &self,
        header: &FrameHeader,
        budgets: &Budgets,
        counters: &Arc<Counters>,
    ) -> Result<Admission> {
        let lengths = [header.body_bytes, header.payload_bytes, header.receive_bytes];
        let [body, payload, receive] = lengths.map(|bytes| bytes as usize);
        let cost = self.credit.cost(body, payload, receive);
        let whole = Credit { requests: 1, bytes: budgets.bytes }.cost(body, payload, receive);
        let budget = &budgets.hops[usize::from(header.hop).min(HOPS - 1)];
        let requests = acquire(&self.requests, 1).await?;
        let bytes = acquire(&self.bytes, cost).await?;
        let budget = acquire(budget, whole).await?;
        add(&counters.in_flight);
        let counters = Arc::clone(counters);
        Ok(Admission { _requests: requests, _bytes: bytes, _budget: budget, counters })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        subtract(&self.counters.in_flight);
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, permits: u32) -> Result<OwnedSemaphorePermit> {
    let permit = Arc::clone(semaphore).acquire_many_owned(permits).await;
    permit.map_err(|_| Error::new(Code::Cancelled, "the server is stopping"))
}
